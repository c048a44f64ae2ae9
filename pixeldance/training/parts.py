"""What is trained: what a step computes, and how the result is exported. See also motion.py."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixeldance.diffusion.flow import add_noise, timesteps_of, velocity_target
from pixeldance.diffusion.sampler import sample_euler
from pixeldance.diffusion.schedule import (
    SAMPLING_SHIFT,
    SAMPLING_START,
    shift_sigmas,
    shifted_sigmas,
)
from pixeldance.instructions import place_keyframes
from pixeldance.models.alignment import GROUP
from pixeldance.models.codec import (
    LinearVideoCodec,
    denormalized,
    encode_pictures,
    grouped,
)
from pixeldance.models.perceptual import load_perceptual_distance
from pixeldance.models.references import PreparedReferences, References
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training.config import TrainConfig
from pixeldance.training.data import sample_generator
from pixeldance.training.flops import transformer_config
from pixeldance.training.motion import MotionPart, ReaderPart, codec_with_refiner
from pixeldance.training.part import Part, PartLoss


class TransformerPart:
    """Flow matching on latents with the instructions as extra channels."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        if config.initial is not None:
            self.model = PixelDanceTransformer3DModel.from_pretrained(config.initial)
            return
        self.model = PixelDanceTransformer3DModel(**transformer_config(config))
        _initialize(self.model)

    def to(self, device: torch.device) -> None:
        """The loss needs the model only."""

    def fingerprint(self) -> dict[str, Any]:
        """The network's configuration."""
        config = dict(self.model.config)
        return {f"model.{key}": value for key, value in config.items() if key[0] != "_"}

    def sigmas(self, sample_ids: Tensor) -> Tensor:
        """Noise level of each sample: a shifted logit-normal."""
        normal = torch.stack(
            [torch.randn((), generator=sample_generator(int(i), "sigma")) for i in sample_ids]
        )
        level = (self.config.logit_mean + self.config.logit_std * normal).sigmoid()
        return shift_sigmas(level, self.config.shift)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
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
        error = velocity.float() - velocity_target(clean, noise)
        return PartLoss(error.square().flatten(1).mean(1), sigma)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the transformer, in bfloat16, as diffusers does."""
        model = PixelDanceTransformer3DModel.from_config(self.model.config)
        halved = {name: value.to(torch.bfloat16) for name, value in state.items()}
        model.load_state_dict(halved, assign=True)
        model.save_pretrained(folder)


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


class _Draw(NamedTuple):
    """All that is random about one clip of the refiner's.

    Attributes:
        present: Whether the first and the last picture are given.
        dissolve: How far the latents are faded towards the crossfade of their ends, 0 to 1.
        disturbance: Added to the latents.
        groups: Latent frames that are refined.
        frames: Frame of each of those groups that is compared by LPIPS.
        num_steps: Steps of the transformer that makes the latents; 0 if they are the disturbed
            true ones.
        noise: What it starts from, or None.
    """

    present: Tensor
    dissolve: float
    disturbance: Tensor
    groups: Tensor
    frames: Tensor
    num_steps: int
    noise: Tensor | None


class RefinerPart:
    """Reconstruction of pixels from latents that were disturbed, with zero to two references."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec) -> None:
        self.config = config
        self.codec = codec_with_refiner(config, codec)
        self.transformer: nn.Module | None = None
        if config.refiner.transformer is not None:
            loaded = PixelDanceTransformer3DModel.from_pretrained(
                config.refiner.transformer,
                dtype=torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32,
            )
            self.transformer = loaded.eval().requires_grad_(False)
        self.perceptual = load_perceptual_distance() if config.refiner.perceptual_weight else None
        refiner = cast("ReferenceRefiner", self.codec.refiner)
        refiner.aligner.motion.requires_grad_(False)  # a part of its own
        self.model: nn.Module = refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to(self, device: torch.device) -> None:
        """Move the projection and the transformer; LPIPS follows its input."""
        self.codec.to(device)
        if self.transformer is not None:
            self.transformer.to(device)

    def fingerprint(self) -> dict[str, Any]:
        """The U-Net's widths."""
        return {"refiner.channels": list(self.config.refiner.channels)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
        """Absolute error of colours and of their gradients, plus that of the warped references."""
        weights = self.config.refiner
        video = batch["video"].float() / 127.5 - 1
        clips, _, frames = video.shape[:3]
        with torch.no_grad():
            latents = encode_pictures(self.codec, video)
            draws = [self._draw(int(i), latents.shape[1:]) for i in batch["sample_ids"]]
            pictures = torch.stack([video[:, :, 0], video[:, :, -1]], dim=1)
            positions = torch.tensor([[0, frames - 1]], device=video.device).expand(clips, -1)
            present = torch.stack([draw.present for draw in draws]).to(video.device)
            dissolve = torch.tensor([draw.dissolve for draw in draws]).view(-1, 1, 1, 1, 1)
            latents = torch.lerp(latents, _crossfade(latents), dissolve.to(video.device))
            latents = latents + torch.stack([draw.disturbance for draw in draws]).to(video.device)
            text = batch["prompt_embeds"]
            prepared = self.codec.prepare_references(References(pictures, positions, present, text))
            latents = self._with_estimates(latents, prepared, draws)
            groups = self.codec.unproject(denormalized(self.codec, latents))
            slots = torch.stack([draw.groups for draw in draws]).to(video.device)
            draft = self.codec.draft_groups(prepared, slots)
        rows = torch.arange(clips, device=video.device)[:, None]
        refined, aligned = model(
            groups[rows, slots],
            pictures,
            prepared.coarse,
            positions[:, None] - GROUP * slots[..., None],
            present,
            prepared.motion,
            draft,
        )
        target = grouped(video)[rows, slots]
        difference = rearrange(refined - target, "b t q c h w -> b (t q) c h w")
        losses = difference.abs().flatten(1).mean(1)
        losses = losses + weights.gradient_weight * _gradients(difference)
        shown = present[:, :, None, None, None, None]
        frames_of_target = rearrange(target, "b t q c h w -> b 1 (t q) c h w")
        for warped in (aligned.rough, aligned.pictures):
            error = (warped - frames_of_target).abs() * shown
            losses = losses + weights.aligned_weight * error.flatten(1).mean(1)
        if self.perceptual is not None:
            chosen = torch.stack([draw.frames for draw in draws]).to(video.device)
            each = torch.arange(slots.shape[1], device=video.device)
            made, true = (
                self.perceptual.activations(group[rows, each, chosen].flatten(0, 1))
                for group in (refined, target)
            )
            distances = rearrange(self.perceptual.distances(made, true), "(b t) -> b t", b=clips)
            losses = losses + weights.perceptual_weight * distances.mean(1)
        return PartLoss(losses, None)

    def _draw(self, sample_id: int, shape: torch.Size) -> _Draw:
        """All that is random about a clip whose latents have this shape."""
        weights = self.config.refiner
        rng = sample_generator(sample_id, "refiner")
        which = float(torch.rand((), generator=rng))
        present = [which < 0.9, which < 0.65 or 0.9 <= which < 0.95]
        # half of the clips dissolve on the way, as those of an unfinished transformer do
        dissolve = max(0.0, 2 * float(torch.rand((), generator=rng)) - 1)
        level = float(torch.rand((), generator=rng)) ** 2 * weights.max_latent_noise
        disturbance = torch.randn(shape, generator=rng)
        if torch.rand((), generator=rng) >= 0.5:
            # noise that is smooth in time and space is more like a transformer's errors than white
            disturbance = F.avg_pool3d(disturbance, 3, stride=1, padding=1) * 3.0
        groups = torch.randperm(shape[1], generator=rng)[: weights.groups_per_clip]
        frames = torch.randint(GROUP, (len(groups),), generator=rng)
        num_steps, noise = 0, None
        if self.transformer is not None and torch.rand((), generator=rng) < weights.estimated_share:
            num_steps = int(torch.randint(2, 5, (), generator=rng))
            noise = torch.randn(shape, generator=rng)
        return _Draw(
            torch.tensor(present), dissolve, level * disturbance, groups, frames, num_steps, noise
        )

    def _with_estimates(
        self, latents: Tensor, references: PreparedReferences, draws: list[_Draw]
    ) -> Tensor:
        """Latents with those clips replaced that are to be the transformer's own estimates."""
        kinds = [(draw.num_steps, bool(draw.present.any())) for draw in draws]
        for num_steps, has_draft in sorted(set(kinds)):
            if num_steps == 0:
                continue
            rows = [row for row, kind in enumerate(kinds) if kind == (num_steps, has_draft)]
            noise = torch.stack([cast("Tensor", draws[row].noise) for row in rows])
            estimates = self._estimated(
                noise.to(latents.device), references.select(rows), num_steps, has_draft
            )
            latents = latents.index_copy(0, torch.tensor(rows, device=latents.device), estimates)
        return latents

    def _estimated(
        self, noise: Tensor, references: PreparedReferences, num_steps: int, has_draft: bool
    ) -> Tensor:
        """What the transformer makes in a few steps, from the draft where there are pictures."""
        assert self.transformer is not None
        pictures, _, present, prompt_embeds, _ = references.given
        num_frames = GROUP * (noise.shape[2] - 1) + 1
        start, sigma = noise, 1.0
        if has_draft:
            video = self.codec.draft_shot(references, torch.arange(num_frames))
            start, sigma = encode_pictures(self.codec, video), SAMPLING_START
            start = add_noise(start, noise, sigma)
        flat = rearrange(pictures, "b r c h w -> (b r) c 1 h w")
        encoded = rearrange(encode_pictures(self.codec, flat), "(b r) c 1 h w -> b r c h w", r=2)
        conditions = (
            place_keyframes(
                [
                    {frame: both[end] for end, frame in enumerate((0, -1)) if flags[end]}
                    for both, flags in zip(encoded, present.tolist(), strict=True)
                ],
                num_frames=num_frames,
                channels=noise.shape[1],
                latent_height=noise.shape[3],
                latent_width=noise.shape[4],
            )
            .stacked()
            .to(noise.device)
        )

        def velocity(noisy: Tensor, sigma: Tensor, step: int) -> Tensor:  # noqa: ARG001
            made: Tensor = self.transformer(  # type: ignore[misc]
                hidden_states=torch.cat([noisy, conditions], dim=1),
                timestep=timesteps_of(sigma).expand(len(noisy)).to(noisy.device),
                encoder_hidden_states=prompt_embeds,
                return_dict=False,
            )[0]
            return made.float()

        sigmas = shifted_sigmas(num_steps, shift=SAMPLING_SHIFT, start=sigma)
        return sample_euler(velocity, start, sigmas)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the whole codec, in float32."""
        codec = copy.deepcopy(self.codec)
        cast("ReferenceRefiner", codec.refiner).load_state_dict(state)
        codec.save_pretrained(folder)


def _crossfade(latents: Tensor) -> Tensor:
    """Latents ``(b, c, t, h, w)`` that go straight from the first latent frame to the last."""
    way = torch.linspace(0, 1, latents.shape[2], device=latents.device)[:, None, None]
    return torch.lerp(latents[:, :, :1], latents[:, :, -1:], way)


def _gradients(difference: Tensor) -> Tensor:
    """Mean absolute slope of pictures ``(n, ...)`` along both axes, ``(n,)``."""
    across = (difference[..., 1:, :] - difference[..., :-1, :]).abs()
    along = (difference[..., 1:] - difference[..., :-1]).abs()
    return (across.flatten(1).mean(1) + along.flatten(1).mean(1)) / 2


def codec_fingerprint(codec: LinearVideoCodec) -> str:
    """What latents mean: a hash of the projection and of the scale of its components."""
    digest = hashlib.sha256()
    for weights in (codec.patch_mean, codec.components):
        digest.update(weights.detach().float().cpu().numpy().tobytes())
    digest.update(json.dumps([codec.config.latents_mean, codec.config.latents_std]).encode())
    return digest.hexdigest()


def make_part(config: TrainConfig, codec: LinearVideoCodec) -> Part:
    """The part that a config names."""
    match config.part:
        case "transformer":
            return TransformerPart(config)
        case "refiner":
            return RefinerPart(config, codec)
        case "motion":
            return MotionPart(config, codec)
        case "reader":
            return ReaderPart(config, codec)
