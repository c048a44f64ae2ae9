"""Time against diffusers at equal weights, both sides in one process, call by call in turn.

Run: python benchmarks/wan_peers.py --threads 1,2 --json result.json   (about an hour on two cores)
     python benchmarks/wan_peers.py --quick --pairs 1                  (about a minute)

Both sides start from the same pictures, text tokens, noise and bfloat16 weights, which are random:
agreement is measured, not beauty. With one thread the ratio is of CPU seconds, with more of wall
seconds. A ratio counts only if our frames are as near to the float32 run of diffusers as diffusers'
own bfloat16 frames are (PSNR lower by 0.5 dB at most), and at least 45 dB.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from wan_sides import Case

CASES = ("call", "tuned", "torch", "step", "encode33", "encode81", "decode", "embedded")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "diffusers", "transformers", "numpy")
MAX_LOSS_DB = 0.5
MIN_PSNR_DB = 45.0
ALLOCATOR = {  # keep freed memory instead of returning it to the kernel page by page
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "THP_MEM_ALLOC_ENABLE": "1",
}


@dataclass(frozen=True)
class Timing:
    """Medians of one row of the table.

    Attributes:
        name: The row.
        threads: Threads of both sides.
        theirs_s: Seconds of diffusers, of the processor with one thread, else of the clock.
        ours_s: Seconds of pixeldance.
        ratio: Median of the ratios of the pairs, diffusers / pixeldance.
        theirs_mib: Peak memory of a call above what was in use before it.
        ours_mib: The same of pixeldance.
    """

    name: str
    threads: int
    theirs_s: float | None
    ours_s: float
    ratio: float | None
    theirs_mib: float | None
    ours_mib: float


def main() -> None:
    """Measure what was asked for, print a table, write the JSON and the plot."""
    options = parse_options()
    if options.allocator and any(os.environ.get(k) != v for k, v in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    import torch
    from wan_sides import QUICK, Case, scaled

    case = QUICK if options.quick else Case()
    changes = {"num_frames": options.num_frames, "size": options.size, "num_steps": options.steps}
    case = scaled(case, **{name: value for name, value in changes.items() if value})
    machine = describe_machine()
    show(json.dumps(machine, indent=2))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(case, Path(folder), options.pairs)
        quality = bench.check_quality() if options.cases & {"call", "tuned", "torch"} else None
        if quality:
            show(f"PSNR to float32 diffusers: {quality}")
        timings = []
        for threads in options.threads:
            torch.set_num_threads(threads)
            for name in CASES:
                if name in options.cases:
                    timings.append(bench.measure(name, threads))
                    show(row(timings[-1]))
        share = bench.share_of_peak() if "step" in options.cases else None
        scaling = bench.measure_scaling() if options.scaling else None
    show(table(timings))
    if share is not None:
        show(f"our transformer step: {share:.0%} of what large matrix products reach")
    if options.json:
        result = {
            "machine": machine,
            "case": asdict(case),
            "pairs": options.pairs,
            "quality": quality,
            "share_of_matmul_peak": share,
            "timings": [asdict(timing) for timing in timings],
            "scaling": scaling,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if scaling:
        plot_scaling(scaling, options.scaling)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models and clips")
    parser.add_argument("--num-frames", type=int, help="frames of the clip, 4k + 1")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--steps", type=int, help="solver steps")
    parser.add_argument("--pairs", type=int, default=5, help="calls of each side after warm-up")
    parser.add_argument("--threads", type=_numbers, default=[1], help="for example 1,2")
    parser.add_argument("--cases", type=_names, default=set(CASES), help=",".join(CASES))
    parser.add_argument("--allocator", action="store_true", help="both sides keep freed memory")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--scaling", type=Path, help="plot time against sizes to this file")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> set[str]:
    names = set(text.split(","))
    if not names <= set(CASES):
        raise argparse.ArgumentTypeError(f"cases are {', '.join(CASES)}")
    return names


class Bench:
    """Both sides with the same weights.

    Args:
        case: Sizes.
        folder: For the weights.
        pairs: Calls of each side after one for warm-up.
    """

    def __init__(self, case: "Case", folder: Path, pairs: int) -> None:
        import torch
        from wan_sides import DiffusersSide, Inputs, PixelDanceSide, write_weights

        self.case, self.folder, self.pairs = case, folder, pairs
        write_weights(case, folder)
        self.inputs: Inputs = Inputs.draw(case)
        self.theirs: DiffusersSide = DiffusersSide(folder, torch.bfloat16)
        self.ours: PixelDanceSide = PixelDanceSide(folder, torch.bfloat16)
        self.tuned: DiffusersSide | None = None

    def check_quality(self) -> dict[str, Any]:
        """PSNR of both sides to the float32 run of diffusers, and whether ratios count."""
        import torch
        from wan_sides import DiffusersSide, operations

        reference = DiffusersSide(self.folder, torch.float32).generate(self.case, self.inputs)
        theirs = psnr(self.theirs.generate(self.case, self.inputs), reference)
        ours = {}
        for tier in ("auto", "torch"):
            with operations(tier):
                ours[tier] = psnr(self.ours.generate(self.case, self.inputs), reference)
        worst = min(ours.values())
        is_valid = worst >= theirs - MAX_LOSS_DB and worst >= MIN_PSNR_DB
        return {"diffusers": theirs, "pixeldance": ours, "ratios_count": is_valid}

    def measure(self, name: str, threads: int) -> Timing:
        """One row of the table.

        Args:
            name: One of :data:`CASES`.
            threads: In force already; says what is timed.

        Returns:
            The row.
        """
        from wan_sides import operations

        if name == "embedded":
            return self._measure_embedded(threads)
        with operations("torch") if name == "torch" else contextlib.nullcontext():
            theirs, ours = self._calls(name)
            return compare(name, threads, theirs, ours, self.pairs)

    def _calls(self, name: str) -> tuple[Callable[[], "Tensor"], Callable[[], "Tensor"]]:
        import torch
        from wan_sides import DiffusersSide, scaled

        case, inputs = self.case, self.inputs
        if name in {"call", "torch", "tuned"}:
            theirs = self.theirs
            if name == "tuned":
                self.tuned = self.tuned or DiffusersSide(self.folder, torch.bfloat16, tuned=True)
                theirs = self.tuned
            return lambda: theirs.generate(case, inputs), lambda: self.ours.generate(case, inputs)
        if name.startswith("encode"):
            longer = scaled(case, num_frames=int(name.removeprefix("encode")))
            return (
                lambda: self.theirs.encode(longer, inputs),
                lambda: self.ours.encode(longer, inputs),
            )
        if name == "decode":
            return lambda: self.theirs.decode(inputs.noise), lambda: self.ours.decode(inputs.noise)
        latents = self._model_input()
        self.theirs.prepare_step(inputs)
        self.ours.prepare_step(inputs)
        return lambda: self.theirs.step(latents), lambda: self.ours.step(latents)

    def _model_input(self) -> "Tensor":
        """Noise in place of latents, mask and condition: for the time it makes no difference."""
        import torch

        noise = self.inputs.noise
        return torch.cat([noise, noise, noise[:, :4]], dim=1)

    def share_of_peak(self) -> float:
        """Arithmetic of our transformer step a second, divided by that of a large bf16 product."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        self.ours.prepare_step(self.inputs)
        latents, side = self._model_input(), 2048
        with FlopCounterMode(display=False) as counter:
            self.ours.step(latents)
        matrix = torch.randn(side, side, dtype=torch.bfloat16)
        step_s, product_s = (
            min(seconds(call, threads=1) for _ in range(self.pairs + 1))
            for call in (lambda: self.ours.step(latents), lambda: matrix @ matrix)
        )
        return counter.get_total_flops() / step_s / (2 * side**3 / product_s)

    def _measure_embedded(self, threads: int) -> Timing:
        """Seconds of the model inside the package for its default clip (2 s), loaded before."""
        from wan_sides import QUICK

        import pixeldance

        model = pixeldance.load()
        ends = {"first_frame": self.inputs.first, "last_frame": self.inputs.last}
        few = {"num_inference_steps": self.case.num_steps} if self.case == QUICK else {}

        def generate() -> Any:
            return model.generate(prompt="a red balloon rises", seed=0, **ends, **few)

        return compare("embedded", threads, None, generate, self.pairs)

    def measure_scaling(self) -> dict[str, list[dict[str, float]]]:
        """Seconds of whole calls while one size grows and the others stay."""
        from wan_sides import Inputs, scaled

        case = self.case
        sizes: dict[str, list[int]] = {
            "num_frames": [case.num_frames, 2 * case.num_frames - 1, 4 * case.num_frames - 3],
            "size": [case.size, case.size * 3 // 2, case.size * 2],
            "num_steps": [case.num_steps, 2 * case.num_steps, 4 * case.num_steps],
            "batch": [1, 2, 4],
        }
        found: dict[str, list[dict[str, float]]] = {}
        for field, values in sizes.items():
            for value in values:
                bigger = scaled(case, **{field: value})
                inputs = Inputs.draw(bigger)
                point = {"value": float(value)}
                for name, side in (("diffusers", self.theirs), ("pixeldance", self.ours)):
                    point[name] = seconds(lambda: side.generate(bigger, inputs), threads=1)  # noqa: B023
                found.setdefault(field, []).append(point)
                show(f"{field} {value}: {point}")
        return found


def compare(
    name: str,
    threads: int,
    theirs: Callable[[], Any] | None,
    ours: Callable[[], Any],
    pairs: int,
) -> Timing:
    """Time two calls in turn.

    Args:
        name: The row.
        threads: Says which clock.
        theirs: A call of the peer, or None if there is none.
        ours: A call of this package.
        pairs: How often, after one for warm-up in which memory is measured.

    Returns:
        The row.
    """
    theirs_mib = None if theirs is None else peak_mib(theirs)
    ours_mib = peak_mib(ours)
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        first = 0.0 if theirs is None else seconds(theirs, threads=threads)
        times.append((first, seconds(ours, threads=threads)))
    ours_s = statistics.median(own for _, own in times)
    if theirs is None:
        return Timing(name, threads, None, ours_s, None, None, ours_mib)
    theirs_s = statistics.median(other for other, _ in times)
    ratio = statistics.median(other / own for other, own in times)
    return Timing(name, threads, theirs_s, ours_s, ratio, theirs_mib, ours_mib)


def seconds(call: Callable[[], Any], *, threads: int) -> float:
    """Duration of a call: of the processor with one thread (steady on a busy machine)."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def peak_mib(call: Callable[[], Any]) -> float:
    """Largest resident memory during a call, above that before it; 0 where Linux is not."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc can give memory back
        ctypes.CDLL(None).malloc_trim(0)
    before = _status_kib("VmRSS")
    with contextlib.suppress(OSError):  # resets the high-water mark
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    return 0


def psnr(frames: "Tensor", reference: "Tensor") -> float:
    """Peak signal-to-noise ratio of frames in [0, 1], in dB."""
    error = (frames.float() - reference.float()).square().mean()
    return float(-10 * error.log10())


def describe_machine() -> dict[str, Any]:
    """Versions, processor and settings that the figures depend on."""
    from pixeldance.ops import active_tier

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = named.get("flags", "").split()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": named.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "load": os.getloadavg()[0],
        "operations": str(active_tier("cpu")),
        "allocator": {key: os.environ.get(key) for key in ALLOCATOR},
    }


def row(timing: Timing) -> str:
    """A line of the table."""

    def cell(value: float | None, digits: int) -> str:
        return f"{'-':>9}" if value is None else f"{value:9.{digits}f}"

    numbers = [(timing.theirs_s, 3), (timing.ours_s, 3), (timing.ratio, 2)]
    memory = [(timing.theirs_mib, 0), (timing.ours_mib, 0)]
    cells = " ".join(cell(value, digits) for value, digits in numbers + memory)
    return f"{timing.name:<10} {timing.threads:>7} {cells}"


def table(timings: list[Timing]) -> str:
    """All lines with their heading."""
    titles = ("diffusers", "ours", "ratio", "MiB", "MiB ours")
    heading = f"{'case':<10} {'threads':>7} " + " ".join(f"{title:>9}" for title in titles)
    return "\n".join([heading, *map(row, timings)])


def plot_scaling(scaling: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw CPU seconds of a call against each size, and save the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(scaling), figsize=(4 * len(scaling), 3.5), squeeze=False)
    for axis, (field, points) in zip(axes[0], scaling.items(), strict=True):
        values = [point["value"] for point in points]
        for name in ("diffusers", "pixeldance"):
            axis.plot(values, [point[name] for point in points], marker="o", label=name)
        axis.set(xlabel=field, ylim=(0, None))
    axes[0][0].set_ylabel("CPU seconds per call")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def show(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
