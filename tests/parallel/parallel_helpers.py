"""What the processes of the tests do; in a module of its own so that they can import it."""

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from tiny import picture, seeded, tiny_pipeline

from pixeldance import parallel
from pixeldance.api import Model
from pixeldance.backbones.step_cache import StepCache
from pixeldance.cli import app
from pixeldance.errors import GenerationCancelled, InputError
from pixeldance.pipeline import PixelDancePipeline

REQUEST: dict[str, Any] = {
    "prompt": "a red fox jumps",
    "negative_prompt": "a cat",
    "num_frames": 13,
    "height": 32,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
}


def with_pictures(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, "first_frame": picture(1), "last_frame": picture(2), **fields}


def together(pipeline: PixelDancePipeline, mode: str) -> parallel.Parallelism:
    parallelism = parallel.start(mode, "cpu")
    parallelism.apply(pipeline)
    return parallelism


def make_alone_then_together(mode: str, dtype: torch.dtype, threshold: float | None) -> None:
    """The refiner looks at the pictures, and processes that draw other noise must not matter."""
    pipeline = tiny_pipeline(has_refiner=True)
    pipeline.transformer.to(dtype)
    request = with_pictures(keyframes={6: picture(3)})
    if threshold is not None:
        pipeline.step_cache = StepCache(threshold)
        request["num_inference_steps"] = 20
    (alone,) = pipeline(**request, generator=seeded(5), return_dict=False)
    rank = together(pipeline, mode).rank
    (shared,) = pipeline(**request, generator=seeded(5 + rank), return_dict=False)
    np.testing.assert_array_equal(shared, alone)


def make_released_alone_then_together(folder: Path, mode: str) -> None:
    """Per-token timesteps, CLIP tokens or two experts, whatever the checkpoint has."""
    pipeline = PixelDancePipeline.from_pretrained(folder)
    assert isinstance(pipeline.vae, AutoencoderKLWan)
    pipeline.set_progress_bar_config(disable=True)
    # t2v takes no pictures.
    takes_pictures = pipeline.transformer.config.in_channels != 4
    request = with_pictures() if takes_pictures else REQUEST
    request = {**request, "prompt": "a red fox", "num_frames": 5}
    (alone,) = pipeline(**request, generator=seeded(5), return_dict=False)
    together(pipeline, mode)
    (shared,) = pipeline(**request, generator=seeded(5), return_dict=False)
    np.testing.assert_array_equal(shared, alone)


def stop_from_the_second(folder: Path) -> None:
    pipeline = tiny_pipeline()
    parallelism = together(pipeline, "context")

    def stop(pipeline: Any, step: int, *_: Any) -> None:
        if parallelism.rank == 1 and step == 1:
            pipeline._interrupt = True

    try:
        pipeline(**REQUEST, callback_on_step_end=stop)
    except GenerationCancelled as cancelled:
        (folder / str(parallelism.rank)).write_text(str(cancelled))


def save_unseeded(folder: Path) -> None:
    pipeline = tiny_pipeline()
    parallelism = together(pipeline, "context")
    model = Model(name="tiny", pipeline=pipeline, sha256="0" * 64)
    clip = model.generate(height=32, width=64, num_frames=5, num_inference_steps=1, model="tiny")
    np.savez(folder / str(parallelism.rank), seed=clip.seed, frames=clip.frames)


def refuse_what_cannot_be_shared(folder: Path) -> None:
    pipeline = tiny_pipeline()
    parallelism = together(pipeline, "guidance")
    try:
        pipeline(**{**REQUEST, "guidance_scale": 1.0})
    except InputError as error:
        (folder / str(parallelism.rank)).write_text(str(error))


def run_command(folder: Path, *arguments: str) -> None:
    """What the command prints goes to a file for each process."""
    with (folder / os.environ["RANK"]).open("w") as file, redirect_stdout(file):
        app(arguments, standalone_mode=False)
