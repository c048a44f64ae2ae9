"""One step of the transformer against diffusers' WanTransformer3DModel with equal weights.

Every repeat runs each side once, one after another; the ratio is the median over the repeats of
their ratios, so that a machine that gets slower slows both sides of a pair. With one thread
(the default) time is CPU time of the process, which other programs hardly change.

Run: python benchmarks/transformer_step.py [--json FILE] [--pairs 7] [--threads 1]
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pixeldance import ops
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.ops.build import cpu_flags

WAN_30M = {
    "num_attention_heads": 3,
    "attention_head_dim": 128,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 768,
    "ffn_dim": 1536,
    "num_layers": 12,
}
EMBEDDED = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 132,
    "out_channels": 64,
    "text_dim": 384,
    "ffn_dim": 1024,
    "num_layers": 8,
}


@dataclass(frozen=True)
class Case:
    """A model with an input."""

    name: str
    config: dict[str, Any]
    latent_size: tuple[int, int, int]
    text_tokens: int
    real_text_tokens: int
    dtype: torch.dtype


CASES = [
    Case("Wan 30M, 2304 tokens", WAN_30M, (9, 32, 32), 512, 40, torch.bfloat16),
    Case("Wan 30M, 2304 tokens", WAN_30M, (9, 32, 32), 512, 40, torch.float32),
    Case("embedded, 1008 tokens", EMBEDDED, (7, 9, 16), 64, 20, torch.bfloat16),
    Case("embedded, 1008 tokens", EMBEDDED, (7, 9, 16), 64, 20, torch.float32),
]


@dataclass(frozen=True)
class Row:
    """What one side needs in one case."""

    case: str
    dtype: str
    side: str
    seconds: float
    speedup: float
    error: float


@contextmanager
def tier(side: str) -> Iterator[None]:
    """Let a side compute the operations as it is called; diffusers does not use them."""
    os.environ["PIXELDANCE_OPS"] = "auto" if side == "diffusers" else side
    ops.active_tier.cache_clear()
    ops.active_tier("cpu")
    try:
        yield
    finally:
        del os.environ["PIXELDANCE_OPS"]
        ops.active_tier.cache_clear()


def randomize(model: torch.nn.Module) -> None:
    """Leave no weight trivial, so that equal results mean something."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def keep_float32(model: Any, dtype: torch.dtype) -> Any:
    """Convert as ``from_pretrained`` does: the delicate parts stay in float32."""
    kept = model._keep_in_fp32_modules
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    return model


def measure_times(calls: Mapping[str, Callable[[], Tensor]], pairs: int) -> dict[str, list[float]]:
    """Seconds of each side in each repeat, after one warm-up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {side: [] for side in calls}
    for repeat in range(pairs + 1):
        for side, call in calls.items():
            with tier(side):
                start = clock()
                call()
                if repeat > 0:
                    times[side].append(clock() - start)
    return times


@torch.inference_mode()
def measure(case: Case, pairs: int, native: bool) -> list[Row]:
    """Time every side of a case and compare it with diffusers in float32."""
    torch.manual_seed(0)
    exact = WanTransformer3DModel(**case.config).eval()
    randomize(exact)
    theirs = WanTransformer3DModel(**case.config).eval()
    ours = PixelDanceTransformer3DModel(**case.config).eval()
    for model in (theirs, ours):
        model.load_state_dict(exact.state_dict())
        keep_float32(model, case.dtype)
    latents = torch.randn(1, case.config["in_channels"], *case.latent_size)
    text = torch.randn(1, case.text_tokens, case.config["text_dim"])
    text[:, case.real_text_tokens :] = 0
    timestep = torch.tensor([500.0])
    expected = exact(latents, timestep, text).sample
    latents, text = latents.to(case.dtype), text.to(case.dtype)

    context = ours.prepare_context(text, num_real_tokens=[case.real_text_tokens])
    calls: dict[str, Callable[[], Tensor]] = {
        "diffusers": lambda: theirs(latents, timestep, text).sample,
        "torch": lambda: ours(latents, timestep, context=context).sample,
    }
    if native:
        calls["native"] = calls["torch"]
    errors = {}
    for side, call in calls.items():
        with tier(side):
            errors[side] = relative_error(call(), expected)
    times = measure_times(calls, pairs)
    return [
        Row(
            case.name,
            str(case.dtype).removeprefix("torch."),
            side,
            statistics.median(seconds),
            statistics.median(a / b for a, b in zip(times["diffusers"], seconds, strict=True)),
            errors[side],
        )
        for side, seconds in times.items()
    ]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``|actual - expected| / |expected|``."""
    return float((actual.float() - expected).norm() / expected.norm())


@torch.inference_mode()
def measure_operations(dtype: torch.dtype, pairs: int) -> list[tuple[str, float, float]]:
    """Milliseconds of each operation of one block of the 30M model, with PyTorch and natively."""
    torch.manual_seed(0)
    tokens, update = torch.randn(2, 1, 2304, 384).to(dtype)
    rows = torch.randn(1, 6, 384).unbind(1)
    shift, gate = (row.unsqueeze(1) for row in rows[:2])
    weight = torch.randn(384, dtype=dtype)
    rotary_emb = torch.randn(1, 2304, 1, 64, 2)
    wide = torch.randn(1, 2304, 1536).to(dtype)
    linear = torch.nn.Linear(384, 1536).to(dtype)
    query, key, value = torch.randn(3, 1, 2304, 3, 128).to(dtype)
    few = key[:, :41]
    video = torch.randn(1, 4, 64, 64, 96).to(dtype)
    bias = torch.randn(1, 1, 1, 41)
    calls: dict[str, Callable[[], Tensor]] = {
        "layer norm, shift, scale": lambda: ops.modulated_norm(tokens, shift, gate, 1e-6),
        "gated residual": lambda: ops.gated_residual(tokens, update, gate),
        "RMS norm, positions": lambda: ops.rms_norm_rotate(tokens, weight, 1e-6, 3, rotary_emb),
        "GELU": lambda: ops.gelu_tanh(wide),
        "linear, GELU": lambda: ops.gelu_linear(tokens, linear),
        "attention, 2304 keys": lambda: ops.attention(query, key, value),
        "attention, 41 keys, bias": lambda: ops.attention(query, few, few, bias),
        "RMS norm, SiLU (4x64x64x96)": lambda: ops.rms_norm_silu(video, weight[:96], 1e-12),
    }
    results = []
    for name, call in calls.items():
        times = measure_times({"torch": call, "native": call}, pairs)
        slow, fast = (statistics.median(times[side]) * 1000.0 for side in ("torch", "native"))
        results.append((name, slow, fast))
    return results


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    flags = sorted(f for f in cpu_flags() if f.startswith(("avx", "amx", "fma")))
    with tier("diffusers"):
        active = str(ops.active_tier("cpu"))
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "cpu_flags": flags,
        "operations": active,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="repeats of every case")
    parser.add_argument("--only", default="", help="cases whose name or dtype contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = machine()
    native = about["operations"].startswith("native")
    show(about)
    rows = []
    for case in (c for c in CASES if options.only in f"{c.name} {c.dtype}"):
        for row in measure(case, options.pairs, native):
            rows.append(row)
            show(
                f"{row.case:<24}{row.dtype:<10}{row.side:<11}{row.seconds * 1000:8.0f} ms"
                f"{row.speedup:7.2f}x   error to float32 {row.error:.2e}"
            )
    operations: dict[str, list[tuple[str, float, float]]] = {}
    for dtype in (torch.bfloat16, torch.float32) if native else ():
        name = str(dtype).removeprefix("torch.")
        operations[name] = measure_operations(dtype, options.pairs)
        for what, slow, fast in operations[name]:
            show(f"{what:<30}{name:<10}{slow:8.2f} -> {fast:6.2f} ms {slow / fast:6.1f}x")
    if options.json is not None:
        report = {"machine": about, "steps": [asdict(row) for row in rows], "ms": operations}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def show(line: object) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
