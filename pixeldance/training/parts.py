"""The two things that are trained: what a step computes, and how the result is exported."""

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pixeldance.diffusion.flow import add_noise, timesteps_of, velocity_target
from pixeldance.diffusion.sampler import sample_euler
from pixeldance.diffusion.schedule import SAMPLING_SHIFT, shift_sigmas, shifted_sigmas
from pixeldance.instructions import place_keyframes
from pixeldance.models.codec import (
    LinearVideoCodec,
    References,
    denormalized,
    encode_pictures,
    grouped,
)
from pixeldance.models.perceptual import load_perceptual_distance
from pixeldance.models.refiner import GROUP
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training.config import TrainConfig
from pixeldance.training.data import sample_generator


class Part(Protocol):
    """What the training loop needs to know about the thing it trains."""

    model: nn.Module

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scalar loss of one batch, computed with ``model`` (the prepared ``self.model``)."""
        ...

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write a state dict of ``self.model`` in diffusers' layout."""
        ...


class TransformerPart:
    """Flow matching on latents with the instructions as extra channels."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec) -> None:
        self.config = config
        if config.initial is not None:
            self.model = PixelDanceTransformer3DModel.from_pretrained(config.initial)
            return
        channels = codec.config.z_dim
        shape = config.model
        self.model = PixelDanceTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=shape.num_attention_heads,
            attention_head_dim=shape.attention_head_dim,
            in_channels=2 * channels + GROUP,
            out_channels=channels,
            text_dim=shape.text_dim,
            ffn_dim=shape.ffn_dim,
            num_layers=shape.num_layers,
        )
        _initialize(self.model)

    def sigmas(self, sample_ids: Tensor) -> Tensor:
        """Noise level of each sample: a shifted logit-normal."""
        normal = torch.stack(
            [torch.randn((), generator=sample_generator(int(i), "sigma")) for i in sample_ids]
        )
        level = (self.config.logit_mean + self.config.logit_std * normal).sigmoid()
        return shift_sigmas(level, self.config.shift)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the velocity."""
        clean = batch["clean_latents"]
        sigma = self.sigmas(batch["sample_ids"]).to(clean.device)
        noise = torch.stack(
            [
                torch.randn(clean.shape[1:], generator=sample_generator(int(i), "noise"))
                for i in batch["sample_ids"]
            ]
        ).to(clean.device)
        noisy = add_noise(clean, noise, sigma)
        velocity = model(
            hidden_states=torch.cat([noisy, batch["conditions"]], dim=1),
            timestep=timesteps_of(sigma),
            encoder_hidden_states=batch["prompt_embeds"],
            return_dict=False,
        )[0]
        return F.mse_loss(velocity.float(), velocity_target(clean, noise))

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the transformer, in bfloat16, as diffusers does."""
        model = PixelDanceTransformer3DModel.from_config(self.model.config)
        model.load_state_dict(state)
        model.to(torch.bfloat16).save_pretrained(folder)


def _initialize(model: PixelDanceTransformer3DModel) -> None:
    """DiT's initialisation: every block starts as the identity and the output as zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.condition_embedder.time_embedder.linear_1.weight, std=0.02)
    nn.init.normal_(model.condition_embedder.time_embedder.linear_2.weight, std=0.02)
    nn.init.zeros_(model.condition_embedder.time_proj.weight)
    nn.init.zeros_(model.scale_shift_table)
    blocks: Any = model.blocks
    for block in blocks:
        nn.init.zeros_(block.scale_shift_table)
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)


class RefinerPart:
    """Reconstruction of pixels from latents that were disturbed, with zero to two references."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec) -> None:
        self.config = config
        bare = codec
        codec = LinearVideoCodec.from_config(bare.config, refiner_channels=config.refiner.channels)
        codec.patch_mean.data.copy_(bare.patch_mean)
        codec.components.data.copy_(bare.components)
        self.codec = codec
        self.transformer: nn.Module | None = None
        if config.refiner.transformer is not None:
            loaded = PixelDanceTransformer3DModel.from_pretrained(
                config.refiner.transformer, dtype=torch.bfloat16
            )
            self.transformer = loaded.eval().requires_grad_(False)
        self.perceptual = load_perceptual_distance() if config.refiner.perceptual_weight else None
        if config.initial is not None:
            initial = LinearVideoCodec.from_pretrained(config.initial)
            assert initial.refiner is not None, "config.initial must have a refiner"
            codec.refiner.load_state_dict(initial.refiner.state_dict())  # type: ignore[union-attr]
        assert codec.refiner is not None
        self.model: nn.Module = codec.refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Absolute error of colours and of their gradients, plus that of the warped references."""
        weights = self.config.refiner
        video = batch["video"].float() / 127.5 - 1
        rng = sample_generator(int(batch["sample_ids"][0]), "refiner")
        clips, _, frames = video.shape[:3]
        with torch.no_grad():
            pictures, positions, present = self._references(video, rng)
            latents = encode_pictures(self.codec, video)
            if self.transformer is not None and self._draw(rng) < weights.estimated_share:
                latents = self._estimated(latents, pictures, batch["prompt_embeds"], rng)
                present = torch.ones_like(present)
            else:
                latents = self._disturbed(latents, rng)
            groups = self.codec.unproject(denormalized(self.codec, latents))
            _, coarse_pictures = self.codec.prepare_references(
                References(pictures, positions, present)
            )
        count = self.config.refiner.groups_per_clip
        slots = torch.stack(
            [torch.randperm((frames - 1) // GROUP + 1, generator=rng)[:count] for _ in range(clips)]
        ).to(video.device)
        rows = torch.arange(clips, device=video.device)[:, None]
        target = grouped(video)[rows, slots]
        refined, aligned = model(
            rearrange(groups[rows, slots], "b t q c h w -> (b t) q c h w"),
            repeat(pictures, "b r c h w -> (b t) r c h w", t=count),
            repeat(coarse_pictures, "b r c h w -> (b t) r c h w", t=count),
            rearrange(positions[:, None] - GROUP * slots[..., None], "b t r -> (b t) r"),
            repeat(present, "b r -> (b t) r", t=count),
        )
        target = rearrange(target, "b t q c h w -> (b t) q c h w")
        loss = (refined - target).abs().mean()
        loss = loss + weights.gradient_weight * (_gradients(refined - target)).mean()
        shown = repeat(present, "b r -> (b t) r 1 1 1 1", t=count)
        warped = ((aligned.pictures - target[:, None]).abs() * shown).mean()
        loss = loss + weights.aligned_weight * warped
        if self.perceptual is not None:
            chosen = torch.randint(GROUP, (len(refined),), generator=rng)
            each = torch.arange(len(refined))
            made, true = (
                self.perceptual.activations(group[each, chosen]) for group in (refined, target)
            )
            distance = self.perceptual.distances(made, true)
            loss = loss + weights.perceptual_weight * distance.mean()
        return loss

    @staticmethod
    def _draw(rng: torch.Generator) -> float:
        return float(torch.rand((), generator=rng))

    def _disturbed(self, latents: Tensor, rng: torch.Generator) -> Tensor:
        """Latents with a random amount of noise, different for each clip."""
        level = torch.rand(len(latents), generator=rng) ** 2 * self.config.refiner.max_latent_noise
        noise = torch.randn(latents.shape, generator=rng)
        # noise that is smooth in time and space is more like a transformer's errors than white
        smooth = F.avg_pool3d(noise, 3, stride=1, padding=1) * 3.0
        is_white = torch.rand(len(latents), generator=rng)[:, None, None, None, None] < 0.5
        mixed = torch.where(is_white, noise, smooth)
        return latents + (level[:, None, None, None, None] * mixed).to(latents.device)

    def _estimated(
        self, latents: Tensor, pictures: Tensor, prompt_embeds: Tensor, rng: torch.Generator
    ) -> Tensor:
        """What the transformer makes of the first and last pictures in a few steps."""
        assert self.transformer is not None
        flat = rearrange(pictures, "b r c h w -> (b r) c 1 h w")
        given = rearrange(encode_pictures(self.codec, flat), "(b r) c 1 h w -> b r c h w", r=2)
        conditions = place_keyframes(
            [{0: first, -1: last} for first, last in given.unbind(0)],
            num_frames=GROUP * (latents.shape[2] - 1) + 1,
            channels=latents.shape[1],
            latent_height=latents.shape[3],
            latent_width=latents.shape[4],
        ).stacked()

        def velocity(noisy: Tensor, sigma: Tensor, step: int) -> Tensor:  # noqa: ARG001
            made: Tensor = self.transformer(  # type: ignore[misc]
                hidden_states=torch.cat([noisy, conditions.to(noisy.device)], dim=1),
                timestep=timesteps_of(sigma).expand(len(noisy)),
                encoder_hidden_states=prompt_embeds,
                return_dict=False,
            )[0]
            return made.float()

        num_steps = int(torch.randint(2, 7, (), generator=rng))
        noise = torch.randn(latents.shape, generator=rng).to(latents.device)
        return sample_euler(velocity, noise, shifted_sigmas(num_steps, shift=SAMPLING_SHIFT))

    def _references(self, video: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """First and last pictures, their frames, and which of them are given."""
        pictures = torch.stack([video[:, :, 0], video[:, :, -1]], dim=1)
        clips, frames = len(video), video.shape[2]
        positions = torch.tensor([[0, frames - 1]], device=video.device).expand(clips, -1)
        draw = torch.rand(clips, generator=rng)
        first, last = draw < 0.9, (draw < 0.7) | ((draw >= 0.9) & (draw < 0.95))
        return pictures, positions, torch.stack([first, last], dim=1).to(video.device)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the whole codec, in float32."""
        codec = LinearVideoCodec.from_config(self.codec.config)
        codec.load_state_dict(self.codec.state_dict())
        assert codec.refiner is not None
        codec.refiner.load_state_dict(state)
        codec.save_pretrained(folder)


def _gradients(difference: Tensor) -> Tensor:
    across = (difference[..., 1:, :] - difference[..., :-1, :]).abs()
    along = (difference[..., 1:] - difference[..., :-1]).abs()
    return torch.stack([across.mean(), along.mean()])


def make_part(config: TrainConfig, codec: LinearVideoCodec) -> Part:
    """The part that a config names."""
    return (
        TransformerPart(config, codec)
        if config.part == "transformer"
        else RefinerPart(config, codec)
    )
