"""The native operations are built once, safely, and not where they cannot be."""

import logging
import subprocess
import sys
from pathlib import Path

import ops_cases
import pytest
import torch

from pixeldance.errors import ConfigError
from pixeldance.ops import build
from pixeldance.ops.build import Unavailable, build_library, cpu_flags, instruction_set
from pixeldance.ops.native import NativeOps
from pixeldance.ops.tiers import active_tier

pytestmark = pytest.mark.usefixtures("choose_anew")

AVX512 = ["avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that only notes its calls and copies its input to its output."""
    script = tmp_path / "fake compiler"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n'
        'while [ "$1" != -o ]; do shift; done\necho built > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{script}'")
    return script


def compiled(tmp_path):
    """How often the compiler was called: once to compile, once to link."""
    calls = tmp_path / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_instructions_follow_the_processor(tmp_path):
    (tmp_path / "cpuinfo").write_text(f"model name: x\nflags\t\t: sse {' '.join(AVX512)}\n")
    assert instruction_set(cpu_flags(tmp_path / "cpuinfo")) == tuple(AVX512)
    assert instruction_set([*AVX512, "avx512_bf16"]) == (*AVX512, "avx512_bf16")
    assert cpu_flags(tmp_path / "nowhere") == frozenset()
    with pytest.raises(Unavailable, match="no avx512f avx512bw"):
        instruction_set(["avx2", "fma"])


def test_built_once_and_again_after_a_change(tmp_path, compiler, monkeypatch):
    folder = tmp_path / "cache"
    first = build_library(AVX512, folder)
    assert first == build_library(AVX512, folder)
    assert compiled(tmp_path) == 2
    others = {build_library([*AVX512, "avx512_bf16"], folder)}
    monkeypatch.setattr(build.torch, "__version__", "0.0")
    others.add(build_library(AVX512, folder))
    compiler.write_text(compiler.read_text() + "\n")
    others.add(build_library(AVX512, folder))
    assert len(others - {first}) == 3
    assert {path.name for path in folder.iterdir()} == {path.name for path in {first, *others}}


def test_failed_build_leaves_nothing_and_says_why(tmp_path, compiler):
    compiler.write_text("#!/bin/sh\necho 'native.cpp:1: error: unknown target' >&2\nexit 1\n")
    with pytest.raises(Unavailable, match="error: unknown target"):
        build_library(AVX512, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_folder_that_cannot_be_written_is_named(tmp_path, compiler):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Unavailable, match="cache cannot be written"):
        build_library(AVX512, tmp_path / "cache")


def test_without_a_compiler_pytorch_computes(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("pixeldance.ops.tiers.cpu_flags", lambda: frozenset(AVX512))
    with caplog.at_level(logging.INFO, logger="pixeldance.ops"):
        assert active_tier("cpu") is active_tier("cpu")
    assert active_tier("cpu").name == "torch"
    assert "no C++ compiler" in str(active_tier("cpu"))
    assert [record.message for record in caplog.records] == [
        f"operations on the CPU: {active_tier('cpu')}"
    ]


def test_variable_decides(monkeypatch):
    monkeypatch.setenv("PIXELDANCE_OPS", "torch")
    assert str(active_tier("cpu")) == "torch (PIXELDANCE_OPS asks for it)"
    active_tier.cache_clear()
    monkeypatch.setenv("PIXELDANCE_OPS", "fast")
    with pytest.raises(ConfigError, match=r"auto, torch, native, triton, got 'fast'"):
        active_tier("cpu")
    monkeypatch.setenv("PIXELDANCE_OPS", "native")
    monkeypatch.setattr("pixeldance.ops.tiers.cpu_flags", lambda: frozenset(["avx2"]))
    with pytest.raises(ConfigError, match="'native', but the processor has no avx512f"):
        active_tier("cpu")


def test_file_that_is_no_library_is_not_used(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("PIXELDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pixeldance.ops.tiers.cpu_flags", lambda: frozenset(AVX512))
    tier = active_tier("cpu")
    assert tier.name == "torch"
    assert "cannot be loaded" in tier.reason


# --- memory


def instructions_here():
    try:
        return instruction_set(cpu_flags())
    except Unavailable as problem:
        pytest.skip(str(problem))


def runtime_of(sanitizer):
    found = subprocess.run(
        ["c++", f"-print-file-name=lib{sanitizer}.so"], capture_output=True, text=True, check=False
    )
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip(f"no {sanitizer}")
    return found.stdout.strip()


def run_sanitized(library, *command):
    environment = {
        "LD_PRELOAD": f"{runtime_of('asan')} {runtime_of('ubsan')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    folder = Path(ops_cases.__file__).parent
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True
    )


BEYOND_THE_END = """
import sys, torch
from pathlib import Path
from pixeldance.ops.native import NativeOps
native = NativeOps(Path(sys.argv[1]), [], has_amx=False)
x = torch.zeros(100)
native._functions["gelu_tanh", x.dtype](x.data_ptr(), x.data_ptr(), 117, 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_bf16", [True, False])
def test_no_operation_reads_or_writes_out_of_bounds(tmp_path, has_bf16):
    instructions = [i for i in instructions_here() if has_bf16 or i != "avx512_bf16"]
    options = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    library = build_library(instructions, tmp_path, options)

    done = run_sanitized(library, ops_cases.__file__, str(library), *instructions)
    assert done.stdout == "all ran\n", done.stderr[-3000:]

    beyond = run_sanitized(library, "-c", BEYOND_THE_END, str(library))
    assert "heap-buffer-overflow" in beyond.stderr  # or the test would see nothing


@pytest.mark.slow
def test_bfloat16_is_rounded_alike_without_its_instruction(tmp_path):
    instructions = instructions_here()
    if "avx512_bf16" not in instructions:
        pytest.skip("the processor has no such instruction to compare with")
    without = [name for name in instructions if name != "avx512_bf16"]
    one, other = (
        NativeOps(build_library(names, tmp_path), names, has_amx=False)
        for names in (instructions, without)
    )
    values = torch.randn(5000) * 10.0 ** torch.randint(-20, 20, (5000,))
    x = torch.cat([values, torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])])
    x = x.to(torch.bfloat16).view(1, -1, 4)
    gate = torch.randn(1, 1, 4)
    for operation, arguments in (("gated_residual", (x, x, gate)), ("gelu_tanh", (x,))):
        expected = getattr(one, operation)(*arguments)
        actual = getattr(other, operation)(*arguments)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    query = torch.randn(1, 4, 1, 8, dtype=torch.bfloat16)
    assert other.attention(query, query, query, None) is None
