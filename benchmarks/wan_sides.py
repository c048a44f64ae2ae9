"""The two sides of ``wan_peers.py``: diffusers and pixeldance on the same random Wan weights."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from torch import Tensor, nn

from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.models.wan_autoencoder import FastWanAutoencoder
from pixeldance.ops import active_tier

Z_DIM = 16
TEXT_DIM = 768
TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is generated, and with a model of which size. The defaults are those of issue 6."""

    num_frames: int = 33
    size: int = 256
    num_steps: int = 8
    batch: int = 1
    num_heads: int = 3
    num_layers: int = 12
    vae_width: int = 32
    real_tokens: int = 40

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise."""
        return (self.batch, Z_DIM, (self.num_frames - 1) // 4 + 1, self.size // 8, self.size // 8)


QUICK = Case(num_frames=9, size=64, num_steps=2, num_heads=1, num_layers=2, vae_width=8)
"""For tests and busy machines."""


def write_weights(case: Case, folder: Path) -> None:
    """Write random weights in the released layout, already rounded to bfloat16.

    Args:
        case: Sizes of the models.
        folder: Where to write ``transformer`` and ``vae``.
    """
    torch.manual_seed(0)
    width = 128 * case.num_heads
    transformer = WanTransformer3DModel(
        num_attention_heads=case.num_heads,
        attention_head_dim=128,
        in_channels=2 * Z_DIM + 4,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        ffn_dim=4 * width,
        num_layers=case.num_layers,
    )
    vae = AutoencoderKLWan(base_dim=case.vae_width, z_dim=Z_DIM)
    for name, model in (("transformer", transformer), ("vae", vae)):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        model.save_pretrained(folder / name)


@dataclass(frozen=True)
class Inputs:
    """Two pictures, a text and noise."""

    first: Image.Image
    last: Image.Image
    prompt_embeds: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, case: Case) -> "Inputs":
        """Random but smooth pictures, random text tokens, zero-padded, and noise.

        Args:
            case: Sizes.

        Returns:
            The same for equal cases.
        """
        generator = torch.Generator().manual_seed(1)

        def picture() -> Image.Image:
            blocks = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
            return Image.fromarray(blocks.numpy()).resize((case.size, case.size))

        embeds = torch.randn(case.batch, TEXT_TOKENS, TEXT_DIM, generator=generator)
        embeds[:, case.real_tokens :] = 0
        noise = torch.randn(case.latent_shape, generator=generator)
        return cls(picture(), picture(), embeds, noise)


class Side(Protocol):
    """What is timed. ``case`` may differ from call to call in all but the models' sizes."""

    def generate(self, case: Case, inputs: Inputs) -> Tensor:
        """Frames ``batch frames 3 height width`` in [0, 1]."""

    def encode(self, case: Case, inputs: Inputs) -> Tensor:
        """Latents of the video that shows the two pictures, ``1 channels ...``."""

    def step(self, latents: Tensor) -> Tensor:
        """Velocity at one timestep; ``latents`` hold mask and condition, too."""

    def decode(self, latents: Tensor) -> Tensor:
        """Video of latents that are not normalised."""


def diffusers_pipeline(folder: Path, dtype: torch.dtype) -> WanImageToVideoPipeline:
    """The unmodified pipeline with the weights of a folder.

    Args:
        folder: With ``transformer`` and ``vae``.
        dtype: Of both.

    Returns:
        The pipeline, without text encoder.
    """
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=WanTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype
        ),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype),
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class DiffusersSide:
    """``WanImageToVideoPipeline`` as it is, or tuned by hand.

    Args:
        folder: Weights.
        dtype: Of everything.
        tuned: Whether convolutions get channels-last weights and the blocks are compiled.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, *, tuned: bool = False) -> None:
        self.pipeline = diffusers_pipeline(folder, dtype)
        self.dtype = dtype
        if tuned:
            for layer in self.pipeline.vae.modules():  # vae.to() refuses: it has 2D layers, too
                if isinstance(layer, nn.Conv3d):
                    layer.to(memory_format=torch.channels_last_3d)
                elif isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)
            self.pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)

    def generate(self, case: Case, inputs: Inputs) -> Tensor:
        """See :class:`Side`."""
        return self.pipeline(
            image=inputs.first,
            last_image=inputs.last,
            prompt_embeds=inputs.prompt_embeds.to(self.dtype),
            height=case.size,
            width=case.size,
            num_frames=case.num_frames,
            num_inference_steps=case.num_steps,
            guidance_scale=1.0,
            latents=inputs.noise.clone(),
            output_type="pt",
        ).frames

    def encode(self, case: Case, inputs: Inputs) -> Tensor:
        """See :class:`Side`."""
        pictures = pixels(self.pipeline, inputs, case)
        video = pictures.new_zeros(1, 3, case.num_frames, case.size, case.size)
        video[:, :, [0, -1]] = pictures
        return self.pipeline.vae.encode(video.to(self.dtype)).latent_dist.mode()

    def prepare_step(self, inputs: Inputs) -> None:
        """Set the text of :meth:`step`."""
        self.text = inputs.prompt_embeds.to(self.dtype)

    def step(self, latents: Tensor) -> Tensor:
        """See :class:`Side`."""
        timestep = torch.full((len(latents),), 500)
        return self.pipeline.transformer(latents.to(self.dtype), timestep, self.text).sample

    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`Side`."""
        return self.pipeline.vae.decode(latents.to(self.dtype)).sample


class PixelDanceSide:
    """The package's transformer and autoencoder around diffusers' scheduler.

    Args:
        folder: Weights.
        dtype: Of everything.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.pipeline = diffusers_pipeline(folder, dtype)  # its scheduler and image processor
        self.dtype = dtype
        self.vae = FastWanAutoencoder(self.pipeline.vae)
        self.transformer = PixelDanceTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype
        ).eval()
        config = self.pipeline.vae.config
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)

    def generate(self, case: Case, inputs: Inputs) -> Tensor:
        """See :class:`Side`."""
        clean = (self.encode(case, inputs).float() - self.mean) / self.std
        condition = torch.cat([mask_of_ends(clean), clean], dim=1).expand(
            case.batch, -1, -1, -1, -1
        )
        self.prepare_step(inputs)
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(case.num_steps)
        latents = inputs.noise.clone()
        for timestep in scheduler.timesteps:
            given = torch.cat([latents, condition], dim=1).to(self.dtype)
            velocity = self.transformer(given, timestep.expand(case.batch), context=self.context)
            latents = scheduler.step(velocity.sample.float(), timestep, latents).prev_sample
        video = self.decode(latents * self.std + self.mean)
        return self.pipeline.video_processor.postprocess_video(video, output_type="pt")

    def encode(self, case: Case, inputs: Inputs) -> Tensor:
        """See :class:`Side`."""
        pictures = pixels(self.pipeline, inputs, case)
        return self.vae.encode_keyframes(pictures, [0, -1], case.num_frames)

    def prepare_step(self, inputs: Inputs) -> None:
        """Compute what all steps share of the text."""
        embeds = inputs.prompt_embeds.to(self.dtype)
        is_real = embeds.ne(0).any(-1)
        self.context = self.transformer.prepare_context(embeds, num_real_tokens=is_real.sum(1))

    def step(self, latents: Tensor) -> Tensor:
        """See :class:`Side`."""
        timestep = torch.full((len(latents),), 500)
        return self.transformer(latents.to(self.dtype), timestep, context=self.context).sample

    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`Side`."""
        return self.vae.decode(latents.to(self.dtype)).sample


def pixels(pipeline: WanImageToVideoPipeline, inputs: Inputs, case: Case) -> Tensor:
    """Both pictures as ``1 3 2 height width`` in [-1, 1]."""
    sizes = {"height": case.size, "width": case.size}
    pair = (inputs.first, inputs.last)
    return torch.stack([pipeline.video_processor.preprocess(p, **sizes) for p in pair], dim=2)


def mask_of_ends(latents: Tensor) -> Tensor:
    """Wan's mask of a clip whose first and last frame are given, four channels."""
    mask = torch.zeros(1, 4, *latents.shape[2:])
    mask[:, :, 0] = 1
    mask[:, 3, -1] = 1
    return mask


@contextlib.contextmanager
def operations(tier: str) -> Iterator[None]:
    """Choose the implementation of the package's operations for a while.

    Args:
        tier: A value of ``PIXELDANCE_OPS``.

    Yields:
        None: While it is in force.
    """
    before = os.environ.get("PIXELDANCE_OPS")
    os.environ["PIXELDANCE_OPS"] = tier
    active_tier.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("PIXELDANCE_OPS")
        if before is not None:
            os.environ["PIXELDANCE_OPS"] = before
        active_tier.cache_clear()


def scaled(case: Case, **changes: Any) -> Case:
    """The case with some sizes changed."""
    return replace(case, **changes)
