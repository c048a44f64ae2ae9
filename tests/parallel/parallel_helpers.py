"""What the processes of the tests do; in a module of its own so that they can import it."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from tiny import picture, seeded, tiny_pipeline
from tiny_wan import KINDS, tiny_vae
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from pixeldance import parallel
from pixeldance.api import Model
from pixeldance.backbones import autoencoder
from pixeldance.backbones.lora import Lora, load_loras
from pixeldance.backbones.step_cache import StepCache
from pixeldance.cli import app
from pixeldance.errors import GenerationCancelled, InputError
from pixeldance.pipeline import PixelDancePipeline

ROUNDING = 1e-5
"""Of frames in [0, 1] made of float32."""
REQUEST: dict[str, Any] = {
    "prompt": "a red fox jumps",
    "negative_prompt": "a cat",
    "num_frames": 13,
    "height": 32,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
}


def among(branches: int, degree: int, rank: int = 0, mode: str = "context") -> parallel.Parallelism:
    """A process that knows of others without talking to them."""
    mesh: Any = Mesh((branches, 1, degree), rank)
    return parallel.Parallelism(mode, torch.device("cpu"), mesh)


class Mesh:
    """What of a ``DeviceMesh`` can be known without a process group."""

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        self.shape = shape
        self.rank = rank

    def __getitem__(self, names: str | tuple[str, ...]) -> "Mesh":
        return Mesh(self.shape[-1:] if isinstance(names, str) else self.shape[1:], self.rank)

    def size(self, axis: int | None = None) -> int:
        return math.prod(self.shape) if axis is None else self.shape[axis]

    def get_rank(self) -> int:
        return self.rank

    def get_local_rank(self, name: str) -> int:
        assert name == "guidance"
        return self.rank // self.shape[-1]


def with_pictures(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, "first_frame": picture(1), "last_frame": picture(2), **fields}


def together(pipeline: PixelDancePipeline, mode: str) -> parallel.Parallelism:
    parallelism = parallel.start(mode, "cpu")
    parallelism.apply(pipeline)
    return parallelism


def check_same(mode: str, shared: Any, alone: Any) -> None:
    """Bit for bit, except where sums are split over the processes, and so rounded otherwise."""
    tolerance = ROUNDING if "tensor" in mode else 0.0
    np.testing.assert_allclose(shared, alone, rtol=0.0, atol=tolerance)


def make_alone_then_together(mode: str, dtype: torch.dtype, threshold: float | None) -> None:
    """The refiner looks at the pictures, and processes that draw other noise must not matter."""
    pipeline = tiny_pipeline(has_refiner=True)
    pipeline.transformer.to(dtype)
    request = with_pictures(keyframes={6: picture(3)})
    if threshold is not None:
        pipeline.step_cache = StepCache(threshold)
        request["num_inference_steps"] = 20
    (alone,) = pipeline(**request, generator=seeded(5), return_dict=False)
    parallelism = together(pipeline, mode)
    others_noise = seeded(5 + parallelism.rank)
    (shared,) = pipeline(**request, generator=others_noise, return_dict=False)
    check_same(mode, shared, alone)
    first = parallelism.broadcast(torch.from_numpy(shared)).numpy()
    np.testing.assert_array_equal(shared, first)


def make_released_alone_then_together(folder: Path, mode: str, loras: Sequence[Path] = ()) -> None:
    """Per-token timesteps, CLIP tokens or two experts, whatever the checkpoint has."""
    pipeline = PixelDancePipeline.from_pretrained(folder)
    load_loras(pipeline, [Lora(path, 0.1) for path in loras])
    assert isinstance(pipeline.vae, AutoencoderKLWan)
    pipeline.set_progress_bar_config(disable=True)
    # t2v takes no pictures.
    takes_pictures = pipeline.transformer.config.in_channels != 4
    request = with_pictures() if takes_pictures else REQUEST
    request = {**request, "prompt": "a red fox", "num_frames": 5}

    def generate(output_type: str) -> Any:
        (clip,) = pipeline(
            **request, generator=seeded(5), output_type=output_type, return_dict=False
        )
        return clip

    alone = generate("latent"), generate("np")
    together(pipeline, mode)
    check_same(mode, generate("latent"), alone[0])
    np.testing.assert_allclose(generate("np"), alone[1], rtol=0.0, atol=2 * ROUNDING)


def decode_alone_then_together() -> None:
    """Rows that 2 processes share evenly and not, by both kinds of autoencoder."""
    parallelism = parallel.start("context", "cpu")
    for kind, rows, own in (("t2v-1.3b", 4, 2), ("ti2v-5b", 5, 2 + parallelism.rank)):
        vae = random_vae(kind)
        latents = torch.randn(1, vae.config.z_dim, 3, rows, 3, generator=seeded(rows))
        alone, all_work = decode(vae, latents, None)
        shared, own_work = decode(vae, latents, parallelism)
        assert alone.std() > 0.1
        torch.testing.assert_close(shared, alone, rtol=0.0, atol=2 * ROUNDING)
        assert own_work * rows == all_work * own  # no row is computed twice
        with torch.no_grad():  # nor counted, which would keep native operations out
            uncounted = [autoencoder.decode(vae, latents, by) for by in (None, parallelism)]
        for video in uncounted:
            torch.testing.assert_close(video, alone, rtol=0.0, atol=2 * ROUNDING)


def decode_fewer_rows_than_processes() -> None:
    parallelism = parallel.start("context", "cpu")
    vae = random_vae("t2v-1.3b")
    for rows in (2, 7):
        latents = torch.randn(1, vae.config.z_dim, 2, rows, 3, generator=seeded(rows))
        alone, _ = decode(vae, latents, None)
        shared, _ = decode(vae, latents, parallelism)
        torch.testing.assert_close(shared, alone, rtol=0.0, atol=2 * ROUNDING)


def decode(
    vae: AutoencoderKLWan, latents: torch.Tensor, parallelism: parallel.Parallelism | None
) -> tuple[torch.Tensor, int]:
    """The video, and the operations that convolutions took."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        video = autoencoder.decode(vae, latents, parallelism)
    return video, counter.get_flop_counts()["Global"][torch.ops.aten.convolution]


def random_vae(kind: str) -> AutoencoderKLWan:
    """The same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_vae(KINDS[kind]).eval()


def count_weights(folder: Path) -> None:
    """How many weights of the blocks a process holds, and whether fused projections are in use."""
    pipeline = tiny_pipeline()
    pipeline.transformer.fuse_qkv_projections()
    parallelism = together(pipeline, "tensor")
    blocks = pipeline.transformer.blocks
    parts = [
        parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for parameter in blocks.parameters()
    ]
    counted = {
        "weights": sum(part.numel() for part in parts),
        "fused": any(getattr(module, "fused_projections", False) for module in blocks.modules()),
    }
    (folder / str(parallelism.rank)).write_text(json.dumps(counted))


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
