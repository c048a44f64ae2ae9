"""Training of the motion between two pictures, from the world's true motion."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.matching import CELL, patches, whitening
from pixeldance.models.motion import FINE, Motion
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.training.config import TrainConfig
from pixeldance.training.part import PartLoss
from pixeldance.worlds.stickers import StickerWorld

_FRONT_WEIGHT = 3.0  # how much more places count that show what lies in front
_OUTSIDE_WEIGHT = 0.05  # of places that leave the picture by more than 8 pixels: hard to know
_WHITENING_SCENES = 60
_WHITENING_STRIDE = 11
_UNIT = 8.0  # pixels of displacement that count as much as 1 in the other losses


class MotionPart:
    """Displacements and what lies in front, both known exactly from the world's geometry."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec) -> None:
        self.config = config
        self.codec = codec_with_refiner(config, codec)
        refiner = cast("ReferenceRefiner", self.codec.refiner)
        if config.initial is None:
            filters = refiner.aligner.motion.filters
            filters.data.copy_(_world_filters(StickerWorld("train"), len(filters)))
        self.model: nn.Module = refiner.aligner.motion.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to(self, device: torch.device) -> None:
        """The loss needs the model only."""

    def fingerprint(self) -> dict[str, Any]:
        """The U-Net's widths: the codec is exported as a whole."""
        return {"refiner.channels": list(self.config.refiner.channels)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
        """Weighted absolute error of the displacements, and entropy of what lies in front."""
        motion: Motion = model(batch["pictures"].float() / 127.5 - 1)
        truth, front = batch["flow"], batch["front"]
        weights = _place_weights(truth, front)
        error = (motion.flow - truth).abs().sum(2, keepdim=True) * weights
        losses = error.flatten(1).sum(1) / weights.flatten(1).sum(1) / _UNIT
        seen = motion.front.clamp(1e-4, 1 - 1e-4)
        entropy = F.binary_cross_entropy(seen, front, reduction="none")
        return PartLoss(losses + entropy.flatten(1).mean(1), None)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the whole codec, in float32."""
        codec = copy.deepcopy(self.codec)
        cast("ReferenceRefiner", codec.refiner).aligner.motion.load_state_dict(state)
        codec.save_pretrained(folder)


def _world_filters(world: StickerWorld, channels: int) -> Tensor:
    """Whitening of the patches of some scenes."""
    samples = []
    for number in range(_WHITENING_SCENES):
        scene = world.sample_scene(number, aspect=1.5)
        ends = world.render(scene, height=96, width=144, num_frames=2) * 2 - 1
        values = rearrange(patches(ends), "n c h w -> (n h w) c")
        samples.append(values[::_WHITENING_STRIDE])
    return whitening(torch.cat(samples), channels)


def codec_with_refiner(config: TrainConfig, bare: LinearVideoCodec) -> LinearVideoCodec:
    """The codec that a run trains a part of.

    Args:
        config: The run; it starts from the weights in its ``initial``, or from none.
        bare: Gives the projection.

    Returns:
        A codec with that projection.
    """
    codec = LinearVideoCodec.from_config(bare.config, refiner_channels=config.refiner.channels)
    codec.patch_mean.data.copy_(bare.patch_mean)
    codec.components.data.copy_(bare.components)
    if config.initial is not None:
        initial = LinearVideoCodec.from_pretrained(config.initial)
        assert initial.refiner is not None, "config.initial must have a refiner"
        cast("ReferenceRefiner", codec.refiner).load_state_dict(initial.refiner.state_dict())
    return cast("LinearVideoCodec", codec)


def _place_weights(truth: Tensor, front: Tensor) -> Tensor:
    """How much each place counts, ``(n, 2, 1, h, w)``."""
    rows, columns = truth.shape[-2:]
    y = torch.arange(rows, device=truth.device)[:, None] + truth[:, :, 1] / FINE
    x = torch.arange(columns, device=truth.device) + truth[:, :, 0] / FINE
    margin = CELL / FINE
    inside = (x > -margin) & (x < columns - 1 + margin) & (y > -margin) & (y < rows - 1 + margin)
    stays = _OUTSIDE_WEIGHT + (1 - _OUTSIDE_WEIGHT) * inside[:, :, None]
    return stays * (1 + _FRONT_WEIGHT * front)
