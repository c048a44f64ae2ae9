"""Wan checkpoints in diffusers' layout: 2.1 T2V, I2V, FLF2V; 2.2 A14B, TI2V-5B; Fun-InP.

What a checkpoint can do is read from its configuration: 16 (or 48) input channels take text alone,
or pictures as held latent frames where timesteps are expanded; twice as many and a mask of 4 take
pictures at any frame.

References:
    Wan, https://arxiv.org/abs/2503.20314
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image
from torch import Tensor

from pixeldance.backbones import autoencoder
from pixeldance.backbones.base import (
    Backbone,
    Guidance,
    Moment,
    PicturesByFrame,
    PicturesInForce,
    StepFn,
    Texts,
    VelocityFn,
)
from pixeldance.backbones.conditions import (
    ConcatenatedPictures,
    HeldPictures,
    NoPictures,
    concatenated,
    held,
)
from pixeldance.backbones.facts import Abilities, pixel_budget
from pixeldance.backbones.text import encode_prompts
from pixeldance.errors import CheckpointError, ConfigError
from pixeldance.geometry import LatentGrid

if TYPE_CHECKING:
    from pixeldance.models.transformer import PixelDanceTransformer3DModel


class ReleasedBackbone(Backbone):
    """Wan with the solver, text encoder and picture encoder of its checkpoint.

    Args:
        pipeline: The pipeline whose components are used.

    Raises:
        CheckpointError: If the transformer takes other inputs than those named above, or a
            component is missing.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self.scheduler = pipeline.scheduler
        if self.scheduler.order != 1:
            raise CheckpointError(
                f"{type(self.scheduler).__name__} evaluates the model more than once a step, which "
                "is not supported. Use UniPCMultistepScheduler."
            )
        if self.transformer.config.image_dim is not None and pipeline.image_encoder is None:
            raise CheckpointError(
                "The checkpoint has no image_encoder, but its transformer needs one."
            )
        channels, latents = int(self.transformer.config.in_channels), self.latent_channels
        self.concatenates = channels == 2 * latents + self.temporal_factor
        self.holds = channels == latents and bool(pipeline.config.expand_timesteps)
        if not self.concatenates and channels != latents:
            raise CheckpointError(
                f"The transformer takes {channels} channels; {latents} (text) and "
                f"{2 * latents + self.temporal_factor} (pictures) are supported. Use a T2V, I2V, "
                "FLF2V, TI2V or InP checkpoint."
            )

    # ---- facts

    @property
    def pixel_budget(self) -> int:
        """Height times width to aim at: that given, or what the checkpoint was trained at."""
        return pixel_budget(self.pipeline.config, self.scheduler.config)

    @property
    def abilities(self) -> Abilities:
        """What of a request these weights can follow."""
        return Abilities(
            takes_pictures=self.concatenates or self.holds,
            has_two_experts=self.boundary is not None,
        )

    @property
    def boundary(self) -> float | None:
        """Timestep below which the second expert takes over, or None."""
        ratio = self.pipeline.config.boundary_ratio
        if ratio is None or self.pipeline.transformer_2 is None:
            return None
        return float(ratio * self.scheduler.config.num_train_timesteps)

    def expert(self, moment: Moment) -> "tuple[PixelDanceTransformer3DModel, bool]":
        """The transformer of a step, and whether it is the second one."""
        is_second = self.boundary is not None and float(moment.timestep) < self.boundary
        name = "transformer_2" if is_second else "transformer"
        return getattr(self.pipeline, name), is_second

    def boundary_share(self, num_steps: int) -> float:
        """Share of the steps that the first of two experts does, in [0, 1]; 1.0 with one."""
        self.scheduler.set_timesteps(num_steps, device="cpu")
        boundary = -math.inf if self.boundary is None else self.boundary
        return float((self.scheduler.timesteps >= boundary).float().mean())

    # ---- preparing

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """UMT5 token states, ``prompts 512 dim``, zeros after the real tokens."""
        return encode_prompts(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts)

    def prepare_pictures(
        self,
        clips: Sequence[PicturesByFrame],
        owners: Sequence[int],
        noise: Tensor,
        grid: LatentGrid,
        num_frames: int,
    ) -> NoPictures:
        """The pictures in force in the form that the checkpoint was trained with."""

        def encode(pictures: Mapping[int, Tensor], length: int) -> Tensor:
            return autoencoder.encode_keyframes(self.vae, pictures, length, self.device)

        rows = list(owners)
        if self.concatenates:
            channels = concatenated(
                clips,
                encode,
                channels=self.latent_channels,
                factors=(self.temporal_factor, self.spatial_factor),
                num_frames=num_frames,
                grid=grid,
            )
            return ConcatenatedPictures(
                image_tokens=self._image_tokens(clips), channels=channels.to(self.device)[rows]
            )
        if self.holds and any(clips):
            mask, clean = held(
                clips,
                encode,
                channels=self.latent_channels,
                temporal_factor=self.temporal_factor,
                num_frames=num_frames,
                grid=grid,
            )
            _, *patch = self.transformer.config.patch_size
            return HeldPictures(
                mask=mask.to(self.device)[rows],
                clean=clean.to(self.device)[rows],
                noise=noise,
                patch=(patch[0], patch[1]),
            )
        return NoPictures()

    def _image_tokens(self, clips: Sequence[PicturesByFrame]) -> Tensor | None:
        """CLIP tokens of every prompt's pictures, zeros for one that is not given.

        FLF2V checkpoints take two rows for each prompt, of the earliest and of the latest picture;
        I2V checkpoints one, of the earliest.
        """
        config = self.transformer.config
        if config.image_dim is None:
            return None
        known: dict[int, Tensor] = {}

        def tokens(picture: Image.Image) -> Tensor:
            if id(picture) not in known:
                known[id(picture)] = self._encode_image(picture)
            return known[id(picture)]

        rows: list[Tensor | None] = []
        for clip in clips:
            first, last = _ends(clip)
            given = (first, last) if config.pos_embed_seq_len else (first or last,)
            rows += [None if picture is None else tokens(picture) for picture in given]
        absent = torch.zeros(self._num_image_tokens(), int(config.image_dim), device=self.device)
        return torch.stack([absent if row is None else row for row in rows])

    def _num_image_tokens(self) -> int:
        """Tokens of one picture: its patches and the class token."""
        config = self.pipeline.image_encoder.config
        return int((config.image_size // config.patch_size) ** 2 + 1)

    def _encode_image(self, picture: Image.Image) -> Tensor:
        """States of CLIP's last but one layer, ``tokens dim``, float32."""
        encoder = self.pipeline.image_encoder
        pixels = self.pipeline.image_processor(images=picture, return_tensors="pt").pixel_values
        states = encoder(
            pixels.to(get_module_execution_device(encoder)), output_hidden_states=True
        ).hidden_states
        return cast("Tensor", states[-2][0].float().to(self.device))

    # ---- sampling

    def sample(
        self, velocity_fn: VelocityFn, latents: Tensor, num_steps: int, on_step: StepFn
    ) -> Tensor:
        """Steps of the checkpoint's own scheduler, in float32."""
        self.num_steps = num_steps
        scheduler = self.scheduler
        # On the CPU: looking at a timestep must not wait for the accelerator.
        scheduler.set_timesteps(num_steps, device="cpu")
        scheduler.set_begin_index(0)
        if len(scheduler.timesteps) != num_steps:
            raise ConfigError(
                f"{type(scheduler).__name__} makes {len(scheduler.timesteps)} steps of {num_steps}."
                " Use UniPCMultistepScheduler."
            )
        latents = latents.float()
        for step, timestep in enumerate(scheduler.timesteps):
            moment = Moment(step, scheduler.sigmas[step].float().cpu(), timestep)
            velocity = velocity_fn(latents, moment)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            replaced = on_step(step, latents)
            latents = latents if replaced is None else replaced.float()
        return latents

    def velocity(
        self,
        latents: Tensor,
        moment: Moment,
        conditions: NoPictures,
        texts: Texts,
        guidance: Guidance,
        owners: Sequence[int],
    ) -> Tensor:
        """Guided velocity of all clips from the expert of this step, float32."""
        transformer, is_second = self.expert(moment)
        scale = guidance.scale
        if is_second and guidance.scale_2 is not None:
            scale = guidance.scale_2
        contexts = self.contexts(
            transformer,
            texts,
            owners,
            with_uncond=scale > 1.0,
            image_tokens=conditions.image_tokens,
        )
        predicted = self.guided(
            transformer,
            conditions.model_input(latents),
            conditions.timestep(moment, latents),
            moment,
            contexts,
            scale,
        )
        return conditions.velocity(predicted)

    def finish(self, latents: Tensor, conditions: NoPictures) -> Tensor:
        """Clean latents as they are decoded."""
        return conditions.finish(latents)

    def decode_video(
        self,
        latents: Tensor,
        clips: Sequence[PicturesInForce],  # noqa: ARG002 - the codec needs latents only
        texts: Texts,  # noqa: ARG002
        owner: int,  # noqa: ARG002
    ) -> Tensor:
        """Video of one clip in [-1, 1], ``1 3 frames height width``."""
        return autoencoder.decode(self.vae, latents, self.parallel)


def _ends(clip: PicturesByFrame) -> tuple[Image.Image | None, Image.Image | None]:
    """The earliest and the latest picture; a single one is the first only at the start."""
    if not clip:
        return None, None
    earliest, latest = min(clip), max(clip)
    has_first = earliest == 0 or earliest < latest
    return clip[earliest] if has_first else None, clip[latest] if latest > 0 else None
