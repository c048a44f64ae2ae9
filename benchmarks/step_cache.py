"""What the step cache saves and what it costs: steps, CPU seconds, PSNR and LPIPS to the same clip.

For each case the clip is made without the cache, then with each threshold, all from the same noise.
``steps saved`` counts transformer passes whose blocks were skipped. CPU seconds are those of the
process (one thread by default), so that other programs disturb little; the calibration, once for
each model and number of steps, is timed by itself. The released Wan checkpoints are too large for
most machines; ``wan`` is a small transformer of their kind with random weights, which shows that
the steps are skipped there as well, not what it does to real pictures.

Run: python benchmarks/step_cache.py [--cases embedded-24,embedded-50,wan-24] [--json FILE]
     [--thresholds 0.03,0.1,0.3] [--frames 25] [--threads 1] [--model NAME]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from PIL import Image
from wan_sides import TEXT_DIM, TEXT_TOKENS, Case, write_weights

import pixeldance
from pixeldance.api import load
from pixeldance.backbones.step_cache import StepCache
from pixeldance.evaluation.lpips import load_lpips
from pixeldance.evaluation.metrics import psnr
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.pipeline import PixelDancePipeline

EXAMPLES = Path(pixeldance.__file__).parent / "examples"


@dataclass(frozen=True)
class Row:
    """One clip with the cache, compared with the clip without."""

    case: str
    threshold: float
    passes: int
    skipped: int
    cpu_seconds_without: float
    cpu_seconds: float
    calibration_cpu_seconds: float
    psnr: float
    lpips: float


def embedded(model: str, num_frames: int) -> tuple[PixelDancePipeline, dict[str, Any]]:
    """The shipped model with its example pictures and prompt, at the size it was trained at."""
    first, last = (Image.open(EXAMPLES / f"{name}.png") for name in ("first", "last"))
    request = {
        "prompt": (EXAMPLES / "prompt.txt").read_text(encoding="utf-8").strip(),
        "first_frame": first,
        "last_frame": last,
        "num_frames": num_frames,
    }
    return load(model, device="cpu").pipeline, request


def random_wan(num_frames: int) -> tuple[PixelDancePipeline, dict[str, Any]]:
    """A transformer of Wan's kind with random weights, its autoencoder and UniPC."""
    case = Case(num_frames=num_frames, size=96, num_heads=2, num_layers=12, vae_width=8)
    with tempfile.TemporaryDirectory() as folder:
        write_weights(case, Path(folder))
        pipeline = PixelDancePipeline(
            transformer=PixelDanceTransformer3DModel.from_pretrained(
                folder, subfolder="transformer"
            ),
            vae=AutoencoderKLWan.from_pretrained(folder, subfolder="vae"),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            pixel_budget=case.size**2,
        )
    embeds = torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    embeds[:, case.real_tokens :] = 0
    picture = Image.open(EXAMPLES / "first.png")
    sides = {"height": case.size, "width": case.size}
    request = {"prompt_embeds": embeds, "first_frame": picture, "num_frames": num_frames, **sides}
    return pipeline, request


def measure(case: str, thresholds: list[float], num_frames: int, model: str) -> Iterator[Row]:
    """Make the clips of one case.

    Args:
        case: ``embedded-STEPS`` or ``wan-STEPS``.
        thresholds: Of the step cache.
        num_frames: Length of the clips.
        model: Name of the embedded model.

    Yields:
        A row for each threshold.
    """
    kind, _, steps = case.partition("-")
    pipeline, request = (
        embedded(model, num_frames) if kind == "embedded" else random_wan(num_frames)
    )
    pipeline.set_progress_bar_config(disable=True)
    request["num_inference_steps"] = int(steps)
    lpips = load_lpips()

    def make() -> tuple[npt.NDArray[np.uint8], float, int]:
        start = time.process_time()
        with counted_passes(pipeline) as passes:
            clip = pipeline(**request, generator=torch.Generator().manual_seed(1)).frames[0]
        seconds = time.process_time() - start
        return (clip * 255.0).round().astype(np.uint8), seconds, len(passes)

    make()  # warm-up
    reference, without, total = make()
    for threshold in thresholds:
        pipeline.step_cache = StepCache(threshold)
        start = time.process_time()
        pipeline.step_cache.calibrate(pipeline, int(steps))
        calibration = time.process_time() - start
        clip, seconds, computed = make()
        pipeline.step_cache = None
        yield Row(
            case,
            threshold,
            total,
            total - computed,
            without,
            seconds,
            calibration,
            psnr(reference, clip),
            lpips(reference, clip),
        )


@contextmanager
def counted_passes(pipeline: PixelDancePipeline) -> Iterator[list[int]]:
    """One entry for each pass whose blocks are computed."""
    passes: list[int] = []
    inside: Any = pipeline.transformer.blocks[1]
    handle = inside.attn1.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="embedded-24,embedded-50,wan-24")
    parser.add_argument("--thresholds", default="0.03,0.1,0.3")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="pixeldance-mini")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    thresholds = [float(text) for text in options.thresholds.split(",")]
    print("| case | threshold | steps saved | CPU s | calibration s | PSNR dB | LPIPS |")  # noqa: T201
    print("|---|---|---|---|---|---|---|")  # noqa: T201
    rows = []
    for case in options.cases.split(","):
        for row in measure(case, thresholds, options.frames, options.model):
            rows.append(row)
            print(  # noqa: T201
                f"| {row.case} | {row.threshold:g} | {row.skipped} of {row.passes} "
                f"| {row.cpu_seconds_without:.1f} -> {row.cpu_seconds:.1f} "
                f"| {row.calibration_cpu_seconds:.1f} | {row.psnr:.1f} | {row.lpips:.4f} |",
                flush=True,
            )
    if options.json is not None:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
