"""Builds the native operations in ``csrc``, in about six seconds, once per machine.

The library has a plain C interface and includes none of PyTorch's headers: with them (through
``torch.utils.cpp_extension``) the same code takes half a minute to build and needs ninja. It runs
on PyTorch's own OpenMP threads, because it is linked against the runtime that PyTorch has loaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

__all__ = ["Unavailable", "build_library", "cpu_flags", "instruction_set"]

SOURCES = Path(__file__).with_name("csrc")
REQUIRED_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
BFLOAT16_FLAG = "avx512_bf16"
COMPILER_OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-w")
TIMEOUT_SECONDS = 300.0

logger = logging.getLogger(__name__)


class Unavailable(Exception):  # noqa: N818 - an outcome, not a failure
    """The native operations cannot be used here; the message says why."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can do, in the names of Linux; nothing on other systems."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.split()) for line in lines if line.startswith("flags")), frozenset()
    )


def instruction_set(flags: Iterable[str]) -> tuple[str, ...]:
    """The instructions to build for.

    Args:
        flags: From :func:`cpu_flags`.

    Returns:
        Names of the processor's flags.

    Raises:
        Unavailable: If the processor does not have AVX-512.
    """
    have = frozenset(flags)
    missing = [flag for flag in REQUIRED_FLAGS if flag not in have]
    if missing:
        raise Unavailable(f"the processor has no {' '.join(missing)}")
    return (*REQUIRED_FLAGS, *([BFLOAT16_FLAG] if BFLOAT16_FLAG in have else []))


def build_library(
    instructions: Iterable[str], folder: Path | None = None, extra_options: Iterable[str] = ()
) -> Path:
    """Build the library, unless it has been built before from the same things.

    The finished file is moved into place, so that processes that build at the same time do not
    disturb each other and an interrupted build leaves nothing behind that would be used.

    Args:
        instructions: From :func:`instruction_set`.
        folder: Where the library is kept; None means ``ops`` in ``$PIXELDANCE_CACHE`` or, if that
            is not set, in ``~/.cache/pixeldance``.
        extra_options: Further options for the compiler.

    Returns:
        The library's path. Its name tells source, options, compiler and PyTorch apart.

    Raises:
        Unavailable: If there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = _find_compiler()
    runtime = _find_openmp_runtime()
    machine = [f"-m{name.replace('_', '')}" for name in instructions]
    options = [*COMPILER_OPTIONS, *machine, *extra_options]
    library = (folder or _cache_folder()) / f"{_fingerprint(compiler, runtime, options)}.so"
    try:
        if not library.is_file():
            logger.info("building the operations for this processor (once, a few seconds)")
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
                built = _compile(compiler, options, runtime, Path(scratch))
                built.replace(library)
    except OSError as error:
        raise Unavailable(f"{library.parent} cannot be written ({error.strerror})") from error
    return library


def _find_compiler() -> list[str]:
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for command in map(shlex.split, candidates):
        found = shutil.which(command[0]) if command else None
        if found is not None:
            return [found, *command[1:]]
    raise Unavailable("no C++ compiler is installed (c++, g++, clang++ or $CXX)")


def _find_openmp_runtime() -> Path:
    """A second runtime would bring its own threads, which fight with PyTorch's for the cores."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        raise Unavailable("it needs Linux") from None
    files = {Path(line.split(maxsplit=5)[-1]) for line in maps.splitlines() if "/" in line}
    names = ("libgomp", "libiomp5", "libomp")
    for name in names:
        for file in sorted(files):
            if file.name.split(".")[0].split("-")[0] == name:
                return file
    raise Unavailable("PyTorch has loaded no OpenMP runtime")


def _cache_folder() -> Path:
    root = os.environ.get("PIXELDANCE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "pixeldance") / "ops"


def _fingerprint(compiler: list[str], runtime: Path, options: list[str]) -> str:
    program = Path(compiler[0]).resolve()
    status = program.stat()
    parts = [
        *(file.read_text(encoding="utf-8") for file in sorted(SOURCES.iterdir())),
        torch.__version__,
        str(runtime),
        *(str(program), str(status.st_size), str(status.st_mtime_ns)),
        *compiler[1:],
        *options,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(compiler: list[str], options: list[str], runtime: Path, scratch: Path) -> Path:
    # In two steps: linking with -fopenmp would add the compiler's own runtime.
    unit, library = scratch / "native.o", scratch / "native.so"
    link_options = [option for option in options if option.startswith("-fsanitize")]
    for command in (
        [*compiler, *options, "-c", str(SOURCES / "native.cpp"), "-o", str(unit)],
        [*compiler, *link_options, "-shared", str(unit), str(runtime), "-o", str(library)],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{compiler[0]} takes longer than {TIMEOUT_SECONDS:.0f} s") from None
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            said = (lines or done.stderr.splitlines() or ["no message"])[0]
            raise Unavailable(f"{compiler[0]} cannot build it: {said}")
    return library
