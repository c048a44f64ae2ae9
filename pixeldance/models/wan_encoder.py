"""Encoder of Wan's autoencoder: computes every distinct frame once, see ``wan_timeline``."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pixeldance.models.wan_layers import (
    causal_conv,
    conv_over_time,
    conv_pictures,
    mid_block,
    output_head,
    pointwise,
    residual_block,
)
from pixeldance.models.wan_timeline import Timeline, distinct_windows, select_frames

__all__ = ["encode_chunk", "split_patches"]


def split_patches(frames: Tensor, side: int) -> Tensor:
    """Move patches of pixels to the channels, in the order of the Wan 2.2 autoencoder.

    Args:
        frames: ``batch frames height width channels``, sides multiples of ``side``.
        side: Side of a patch in pixels; 1 changes nothing.

    Returns:
        ``batch frames height/side width/side channels*side*side``.
    """
    return rearrange(frames, "b t (h y) (w x) c -> b t h w (c x y)", y=side, x=side)


def encode_chunk(vae: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """Encode the frames of one chunk.

    Args:
        vae: An ``AutoencoderKLWan``.
        frames: Its distinct frames, patches on the channels.
        timeline: Of the clip, with the chunk's slots.

    Returns:
        Mean of the latents, ``batch latent_frames latent_height latent_width channels``.
    """
    encoder = vae.encoder
    hidden = causal_conv(encoder.conv_in, frames, timeline)
    for block in encoder.down_blocks:
        hidden = _down_layer(block, hidden, timeline)
    hidden = mid_block(encoder.mid_block, hidden, timeline)
    hidden = output_head(encoder, hidden, timeline)
    means = pointwise(vae.quant_conv, hidden, rows=vae.config.z_dim)
    return select_frames(means, timeline.slots)


def _down_layer(block: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """Any entry of ``down_blocks``: the plain network lists single layers, the residual blocks."""
    if hasattr(block, "avg_shortcut"):
        return _residual_down_block(block, frames, timeline)
    if hasattr(block, "resample"):
        return _downsample(block, frames, timeline)
    return residual_block(block, frames, timeline)


def _residual_down_block(block: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    shortcut, slots = _average(block.avg_shortcut, frames, timeline)
    for resnet in block.resnets:
        frames = residual_block(resnet, frames, timeline)
    if block.downsampler is not None:
        frames = _downsample(block.downsampler, frames, timeline)
    return frames.add_(timeline.aligned(shortcut, slots, frames.shape[1]))


def _downsample(resample: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """Halve height and width, and with a ``time_conv`` the frames after the first."""
    # Zeros on the right and at the bottom only.
    frames = conv_pictures(resample.resample[1], F.pad(frames, (0, 0, 0, 1, 0, 1)), stride=2)
    if resample.mode != "downsample3d":
        return frames
    first = frames[:, timeline.slots[0], None] if timeline.is_first else None
    past = timeline.halving_input(resample.time_conv, frames)
    if first is not None and past.shape[1] == 0:
        return first
    halved = conv_over_time(resample.time_conv, past, stride=2)
    return halved if first is None else torch.cat([first, halved], dim=1)


def _average(shortcut: Any, frames: Tensor, timeline: Timeline) -> tuple[Tensor, Sequence[int]]:
    """An ``AvgDown3D``: groups of channels and neighbours are averaged.

    Returns:
        The averages and, for every output frame, its slot in them.
    """
    slots: Sequence[int] = timeline.slots
    if shortcut.factor_t == 2:
        if timeline.is_first:  # the first frame is averaged with zeros
            frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))
            slots = [0, *(slot + 1 for slot in slots)]
        plan = distinct_windows(slots, 2, 2)
        frames, slots = select_frames(frames, plan.sequence), plan.slots
    groups = rearrange(
        frames,
        "b (t dt) (h dy) (w dx) c -> b t h w (c dt dy dx)",
        dt=shortcut.factor_t,
        dy=shortcut.factor_s,
        dx=shortcut.factor_s,
    )
    return groups.unflatten(-1, (-1, shortcut.group_size)).mean(-1), slots
