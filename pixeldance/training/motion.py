"""Training of the motion in a clip, and of what texts say of it, from the world's geometry."""

import copy
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixeldance.models.carrying import FINE, path_of
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.matching import CELL, patches, whitening
from pixeldance.models.motion import PictureMotion
from pixeldance.models.reading import Said
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.training.config import TrainConfig
from pixeldance.training.part import PartLoss
from pixeldance.worlds.stickers import StickerWorld

_FRONT_WEIGHT = 3.0  # how much more places count that show what lies in front
_OUTSIDE_WEIGHT = 0.3  # of places that leave the picture by more than 8 pixels: hard to know
_WHITENING_SCENES = 60
_WHITENING_STRIDE = 11
_LAST_ONLY, _FIRST_ONLY = 0.1, 0.35  # shares of the samples that give one picture
_SWAPPED, _FADED = 0.3, 0.3  # shares of the samples with exchanged, and with weaker colours
_GAIN, _SHIFT = 0.25, 0.15  # by which each colour is stretched and shifted at most
_DETOUR_SHARE, _TOLD_SHARE = 1.0, 4.0  # weights of the losses beside that of the flow
_CAMERA_WEIGHT = 8.0  # cameras move less than what they look at
_SUBJECT_WEIGHTS = (1.0, 1.0, 1.0, 0.02)  # texts do not say which way round something spins
_BEHIND = 0.1  # opacity up to which a place counts as background
_UNIT = 8.0  # pixels of displacement that count as much as 1 in the other losses


class _PartOfMotion(ABC):
    """A network that belongs to the motion; it is exported with the whole codec."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec) -> None:
        self.config = config
        self.codec = codec_with_refiner(config, codec)
        if config.initial is None:
            filters = _motion_of(self.codec).filters
            filters.data.copy_(_world_filters(StickerWorld("train"), len(filters)))
        self.model = self._trained_in(self.codec)

    @abstractmethod
    def _trained_in(self, codec: LinearVideoCodec) -> nn.Module:
        """The network of a codec that this part trains."""

    def to(self, device: torch.device) -> None:  # noqa: B027 - no part has more
        """The loss needs the model only."""

    def fingerprint(self) -> dict[str, Any]:
        """The U-Net's widths: the codec is exported as a whole."""
        return {"refiner.channels": list(self.config.refiner.channels)}

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the whole codec, in float32."""
        codec = copy.deepcopy(self.codec)
        self._trained_in(codec).load_state_dict(state)
        codec.save_pretrained(folder)


class MotionPart(_PartOfMotion):
    """Displacements and what lies in front, both known exactly from the world's geometry."""

    def _trained_in(self, codec: LinearVideoCodec) -> nn.Module:
        motion = _motion_of(codec)
        # a part of its own: with so few texts a step it would forget what it has read
        motion.reader.requires_grad_(False)
        trained: nn.Module = motion.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return trained

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
        """Weighted absolute error of the paths, and entropy of what lies in front."""
        pictures = recoloured(batch["pictures"].float() / 127.5 - 1, batch["sample_ids"])
        given = _given(batch["sample_ids"]).to(pictures.device)
        motion, told = model(pictures, given, batch["prompt_embeds"], is_mixed=True)
        truth, front = batch["flow"], batch["front"]
        there = given[:, :, None, None, None]
        weights = _place_weights(truth, front) * there
        path = path_of(truth, batch["detour"])
        losses = _error(motion.flow[:, :, None], truth[:, :, None], weights)
        losses = losses + _DETOUR_SHARE * _error(motion.detour, batch["detour"], weights)
        losses = losses + _TOLD_SHARE * (
            _squared_error(told.camera, path, there * (front < _BEHIND))
            + _squared_error(told.cells, path, there * (front > 1 - _BEHIND))
        )
        seen = motion.front.clamp(1e-4, 1 - 1e-4)
        entropy = F.binary_cross_entropy(seen, front, reduction="none") * there
        return PartLoss(losses + entropy.flatten(1).mean(1), None)


class ReaderPart(_PartOfMotion):
    """What a text says about motion, known from the scene; learned before any picture is seen."""

    def _trained_in(self, codec: LinearVideoCodec) -> nn.Module:
        return _motion_of(codec).reader

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
        """Squared errors of how camera and subjects move; entropy of who is named and of cuts."""
        said: Said = model(batch["prompt_embeds"])
        camera = (said.camera - batch["camera"]).square().flatten(1).mean(1)
        weights = torch.tensor(_SUBJECT_WEIGHTS, device=said.subjects.device)
        subjects = (said.subjects - batch["subjects"]).square() * weights
        named, cut = batch["named"], batch["cut"]
        motion = _CAMERA_WEIGHT * camera + (subjects.flatten(2).mean(2) * named).sum(1)
        motion = motion + _entropy(said.named, named).mean(1)
        return PartLoss(motion * (1 - cut) + _entropy(said.cut, cut), None)


def _entropy(logits: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _motion_of(codec: LinearVideoCodec) -> PictureMotion:
    return cast("ReferenceRefiner", codec.refiner).aligner.motion


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
    codec = LinearVideoCodec.from_config(
        bare.config, refiner_channels=config.refiner.channels, text_dim=config.model.text_dim
    )
    codec.patch_mean.data.copy_(bare.patch_mean)
    codec.components.data.copy_(bare.components)
    if config.initial is not None:
        initial = LinearVideoCodec.from_pretrained(config.initial)
        assert initial.refiner is not None, "config.initial must have a refiner"
        cast("ReferenceRefiner", codec.refiner).load_state_dict(initial.refiner.state_dict())
    return cast("LinearVideoCodec", codec)


def _given(sample_ids: Tensor) -> Tensor:
    """Which of the two pictures each sample gives, ``(n, 2)`` bool."""
    rows = []
    for number in sample_ids.tolist():
        drawn = random.Random(f"given:{number}").random()
        rows.append((drawn >= _LAST_ONLY, not _LAST_ONLY <= drawn < _LAST_ONLY + _FIRST_ONLY))
    return torch.tensor(rows)


def recoloured(pictures: Tensor, sample_ids: Tensor) -> Tensor:
    """Both pictures of each sample in other colours, so that more than colours is learned.

    The world has a few hundred characters, most of them yellow.

    Args:
        pictures: ``(n, 2, 3, height, width)`` in [-1, 1].
        sample_ids: ``(n,)``; the same sample gets the same colours.

    Returns:
        The pictures, in [-1, 1].
    """
    mixes, shifts = [], []
    for number in sample_ids.tolist():
        rng = random.Random(f"colours:{number}")
        order = rng.sample(range(3), 3) if rng.random() < _SWAPPED else [0, 1, 2]
        mix = torch.eye(3)[order]
        if rng.random() < _FADED:
            mix = torch.lerp(mix, torch.full((3, 3), 1 / 3), rng.random())
        gains = torch.tensor([1 + rng.uniform(-_GAIN, _GAIN) for _ in range(3)])
        mixes.append(gains[:, None] * mix)
        shifts.append(torch.tensor([rng.uniform(-_SHIFT, _SHIFT) for _ in range(3)]))
    mix, shift = (torch.stack(values).to(pictures.device) for values in (mixes, shifts))
    mixed = torch.einsum("noc,nrchw->nrohw", mix, pictures) + shift[:, None, :, None, None]
    return mixed.clamp(-1, 1)


def _squared_error(paths: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean weighted square of the error in units of half the picture's sides."""
    half = FINE / 2 * torch.tensor(truth.shape[-2:][::-1], device=truth.device)[:, None, None]
    errors = ((paths - truth) / half).square().sum(3, keepdim=True).mean(2) * weights
    return errors.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1.0)


def _error(paths: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean weighted absolute error of ``(n, 2, k, 2, h, w)``, for each sample."""
    errors = (paths - truth).abs().sum(3, keepdim=True).mean(2) * weights
    return errors.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1.0) / _UNIT


def _place_weights(truth: Tensor, front: Tensor) -> Tensor:
    """How much each place counts, ``(n, 2, 1, h, w)``."""
    rows, columns = truth.shape[-2:]
    y = torch.arange(rows, device=truth.device)[:, None] + truth[:, :, 1] / FINE
    x = torch.arange(columns, device=truth.device) + truth[:, :, 0] / FINE
    margin = CELL / FINE
    inside = (x > -margin) & (x < columns - 1 + margin) & (y > -margin) & (y < rows - 1 + margin)
    stays = _OUTSIDE_WEIGHT + (1 - _OUTSIDE_WEIGHT) * inside[:, :, None]
    return stays * (1 + _FRONT_WEIGHT * front)
