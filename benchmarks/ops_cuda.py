"""The operations on an NVIDIA GPU: PyTorch's, Triton's and torch.compile's.

All of them are bound by memory. The share is that of the bandwidth of a plain copy on the same GPU,
counting what an operation has to read and write at least once. Every repeat times each side once,
one after another, over several calls, so that the time to launch counts where it is longer than the
work (the last size); the figures are medians over the repeats.

Run: python benchmarks/ops_cuda.py [--json FILE] [--repeats 15] [--only TEXT]

Without such a GPU it says so and exits with 2.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixeldance.ops import active_tier, reference

CALLS = 20  # per repeat
EPS = 1e-6
SIDES = ("torch", "triton", "compile")


@dataclass(frozen=True)
class Size:
    """A clip inside a transformer, and a part of it inside the autoencoder's decoder."""

    name: str
    tokens: int
    heads: int
    frames: tuple[int, int, int]
    channels: int
    head_dim: int = 128

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim


SIZES = [
    Size("14B, 81 frames of 480p", 32760, 40, (4, 480, 832), 96),
    Size("1.3B, 81 frames of 480p", 32760, 12, (4, 240, 416), 192),
    Size("embedded, 25 frames of 256x144", 1008, 2, (4, 36, 64), 96),
]


@dataclass(frozen=True)
class Case:
    """An operation with its arguments and the bytes that it has to move."""

    operation: str
    arguments: tuple[Any, ...]
    num_bytes: int


@dataclass(frozen=True)
class Row:
    """What one side needs for one case."""

    size: str
    operation: str
    side: str
    microseconds: float
    speedup: float
    bandwidth_share: float


def cases_of(size: Size, dtype: torch.dtype, device: str) -> list[Case]:
    """Every operation as a transformer block and the decoder call it."""
    torch.manual_seed(0)

    def values(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device).to(kind)

    tokens, update = values(2, 1, size.tokens, size.width)
    weight = values(size.width)
    shift, scale = values(2, 1, 1, size.width, kind=torch.float32)
    rotary_emb = values(1, size.tokens, 1, size.head_dim // 2, 2, kind=torch.float32)
    query = values(1, size.tokens, 3 * size.width)[..., : size.width]  # fused projections
    frames = values(*size.frames, size.channels)
    out = torch.empty_like(frames)
    once = tokens.nbytes
    return [
        Case("layer_norm", (tokens, weight, weight, EPS), 2 * once),
        Case("modulated_norm", (tokens, shift, scale, EPS), 2 * once),
        Case("gated_residual", (tokens, update, shift), 3 * once),
        Case(
            "rms_norm_rotate",
            (query, weight, EPS, size.heads, rotary_emb),
            2 * once + rotary_emb.nbytes,
        ),
        Case("rms_norm_silu", (frames, weight[: size.channels], 1e-12, out), 2 * frames.nbytes),
    ]


def measure(case: Case, library: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each side in each repeat, after a warm-up that compiles."""
    plain = getattr(reference, case.operation)
    sides: dict[str, Callable[..., Tensor]] = {
        "torch": plain,
        "triton": getattr(library, case.operation),
        "compile": torch.compile(plain, dynamic=False),
    }
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(repeats + 1):
        for side, compute in sides.items():
            seconds = time_calls(partial(compute, *case.arguments))
            if repeat > 0:
                times[side].append(seconds)
    return times


def time_calls(call: Callable[[], object]) -> float:
    """Seconds per call on the GPU, launches included where they are what takes longer."""
    call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000.0 / CALLS


def measure_copy(repeats: int, num_bytes: int = 2**30) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = [time_calls(partial(target.copy_, source)) for _ in range(repeats)]
    return 2 * num_bytes / statistics.median(seconds)


@torch.inference_mode()
def rows_of(size: Size, library: Any, bandwidth: float, repeats: int) -> list[Row]:
    """All operations at one size, in bfloat16."""
    rows = []
    for case in cases_of(size, torch.bfloat16, "cuda"):
        times = measure(case, library, repeats)
        for side, seconds in times.items():
            median = statistics.median(seconds)
            ratios = [a / b for a, b in zip(times["torch"], seconds, strict=True)]
            share = case.num_bytes / median / bandwidth
            speedup = statistics.median(ratios)
            rows.append(Row(size.name, case.operation, side, median * 1e6, speedup, share))
    return rows


def main() -> int:
    """Print the table and write the JSON file; 2 if there is no GPU to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="sizes whose name contains this")
    parser.add_argument("--json", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    tier = active_tier("cuda")
    if tier.name != "triton":
        sys.stderr.write(f"Nothing to measure: {tier.reason}.\n")
        return 2
    bandwidth = measure_copy(options.repeats)
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "operations": str(tier),
        "copy_bytes_per_second": bandwidth,
    }
    show(machine)
    rows = []
    for size in (size for size in SIZES if options.only in size.name):
        for row in rows_of(size, tier.library, bandwidth, options.repeats):
            rows.append(row)
            show(
                f"{row.size:<32}{row.operation:<17}{row.side:<9}{row.microseconds:10.1f} us"
                f"{row.speedup:7.2f}x  {row.bandwidth_share:6.1%} of a copy's bandwidth"
            )
    if options.json is not None:
        report = {"machine": machine, "operations": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def show(line: object) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
