"""Making the clips of a batch of rows with one call of the pipeline."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pixeldance.api import Clip, Model
from pixeldance.geometry import fit_picture
from pixeldance.pictures import load_picture
from pixeldance.video import build_recipe, installed_versions

if TYPE_CHECKING:
    from pixeldance.batch.rows import BatchRow

__all__ = ["make_clips"]


def make_clips(model: Model, rows: Sequence["BatchRow"]) -> list[Clip]:
    """Make clips that share size, length, steps, guidance and strength.

    Args:
        model: The model.
        rows: What to make; see ``plan.batches``.

    Returns:
        A clip for each row. One row gives what ``Model.generate`` gives, bit for bit; in a batch
        every clip has its own noise, too, and differs by rounding in the last bits of its sums.
    """
    if len(rows) == 1:
        return [model.generate(rows[0].request, on_step=lambda _: None)]
    return _together(model, rows)


def _together(model: Model, rows: Sequence["BatchRow"]) -> list[Clip]:
    requests, size = [row.request for row in rows], rows[0].size
    pictures = [_fitted_pictures(row) for row in rows]
    start = sampled = time.monotonic()

    def after_step(*_: object) -> None:
        nonlocal sampled
        sampled = time.monotonic()

    model.pipeline.set_progress_bar_config(disable=True)
    output = model.pipeline(
        prompt=[request.prompt for request in requests],
        negative_prompt=[request.negative_prompt for request in requests],
        first_frame=[given.get("first_frame") for given in pictures],
        last_frame=[given.get("last_frame") for given in pictures],
        keyframes=[
            {frame: given[f"keyframe:{frame}"] for frame in request.keyframes}
            for request, given in zip(requests, pictures, strict=True)
        ],
        last_frame_strength=requests[0].last_frame_strength,
        height=size.height,
        width=size.width,
        num_frames=requests[0].resolved_num_frames,
        num_inference_steps=requests[0].num_inference_steps,
        guidance_scale=requests[0].guidance_scale,
        guidance_scale_2=requests[0].guidance_scale_2,
        generator=[_generator(row) for row in rows],
        output_type="np",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=[],
        return_dict=False,
    )
    end = time.monotonic()
    timings = {
        "load": model.load_s,
        "sample": (sampled - start) / len(rows),
        "decode": (end - sampled) / len(rows),
    }
    return [
        _clip(model, row, frames, given, timings)
        for row, frames, given in zip(rows, output[0], pictures, strict=True)
    ]


def _fitted_pictures(row: "BatchRow") -> dict[str, Image.Image]:
    """The pictures of a row as the model sees them."""
    request = row.request
    return {
        role: fit_picture(load_picture(source), row.size, fit=request.fit, focus=request.focus)
        for role, source in request.pictures.items()
    }


def _seed(row: "BatchRow") -> int:
    assert row.request.seed is not None, "checked rows have seeds"
    return row.request.seed


def _generator(row: "BatchRow") -> torch.Generator:
    return torch.Generator().manual_seed(_seed(row))


def _clip(
    model: Model,
    row: "BatchRow",
    frames: Any,
    pictures: dict[str, Image.Image],
    timings: dict[str, float],
) -> Clip:
    frames = (frames * 255.0).round().astype(np.uint8)
    recipe = build_recipe(
        row.request.to_recipe(pictures),
        seed=_seed(row),
        frames=frames,
        fps=row.request.fps,
        model=model.facts,
        versions=installed_versions(),
        timings=timings,
        pictures=pictures,
    )
    return Clip(frames=frames, fps=row.request.fps, seed=_seed(row), recipe=recipe)
