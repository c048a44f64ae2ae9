"""Decoder of Wan's autoencoder: as many latent frames at once as one likes, same result."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pixeldance.models.wan_layers import (
    causal_conv,
    mid_block,
    output_head,
    pointwise,
    residual_block,
)
from pixeldance.models.wan_timeline import Timeline
from pixeldance.ops import convolve_frames

__all__ = ["decode_chunk", "join_patches"]


def join_patches(frames: Tensor, side: int) -> Tensor:
    """Move patches of pixels from the channels to where they belong (Wan 2.2).

    Args:
        frames: ``batch frames height width channels*side*side``.
        side: Side of a patch in pixels; 1 changes nothing.

    Returns:
        ``batch frames height*side width*side channels``.
    """
    return rearrange(frames, "b t h w (c x y) -> b t (h y) (w x) c", y=side, x=side)


def decode_chunk(vae: Any, latents: Tensor, timeline: Timeline) -> Tensor:
    """Decode the next latent frames of a clip.

    Args:
        vae: An ``AutoencoderKLWan``.
        latents: ``batch latent_frames latent_height latent_width channels``, the vae's own.
        timeline: Of the clip, with the chunk's frames.

    Returns:
        ``batch frames height width channels``, patches on the channels, not clamped. The first
        latent frame of a clip is one frame, every other one as many as the vae compresses.
    """
    decoder = vae.decoder
    hidden = causal_conv(decoder.conv_in, pointwise(vae.post_quant_conv, latents), timeline)
    hidden = mid_block(decoder.mid_block, hidden, timeline)
    for block in decoder.up_blocks:
        hidden = _up_block(block, hidden, timeline)
    return output_head(decoder, hidden, timeline)


def _up_block(block: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """A ``WanUpBlock``, or a ``WanResidualUpBlock`` with a shortcut around everything."""
    shortcut = getattr(block, "avg_shortcut", None)
    entry = None if shortcut is None else frames
    for resnet in block.resnets:
        frames = residual_block(resnet, frames, timeline)
    resample = block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0]
    if resample is not None:
        frames = _upsample(resample, frames, timeline)
    if entry is not None:
        _add_duplicated(shortcut, entry, frames, is_first=timeline.is_first)
    return frames


def _upsample(resample: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """Double height and width, and with a ``time_conv`` the frames after the first."""
    if resample.mode == "upsample3d":
        frames = _double_frames(resample.time_conv, frames, timeline)
    kernel = timeline.kernel_of(resample.resample[1], frames, is_doubled=True)
    return convolve_frames(frames, kernel)


def _double_frames(layer: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    # The first frame of a clip is not doubled, nor is it seen by those after it.
    alone = 1 if timeline.is_first else 0
    first, rest = frames[:, :alone], frames[:, alone:]
    timeline.slots = list(range(rest.shape[1]))
    if rest.shape[1]:
        rest = causal_conv(layer, rest, timeline)
        rest = rearrange(rest, "b t h w (two c) -> b (t two) h w c", two=2)
    frames = torch.cat([first, rest], dim=1) if alone else rest
    timeline.slots = list(range(frames.shape[1]))
    return frames


def _add_duplicated(shortcut: Any, entry: Tensor, frames: Tensor, *, is_first: bool) -> None:
    """Add a ``DupUp3D`` of ``entry`` to ``frames``: channels repeated over the new neighbours."""
    times, side = shortcut.factor_t, shortcut.factor_s
    values = torch.arange(shortcut.out_channels * shortcut.factor, device=entry.device)
    # Channel of the entry for every (time, row, column, channel) of the result.
    sources = rearrange(
        values // shortcut.repeats, "(c dt dy dx) -> dt dy dx c", dt=times, dy=side, dx=side
    )
    skipped = times - 1 if is_first else 0  # of the first frame only the last copy exists
    for dt in range(times):
        later = int(dt < skipped)
        start = later * times + dt - skipped
        for dy in range(side):
            for dx in range(side):
                part = frames[:, start::times, dy::side, dx::side]
                part += entry[:, later:].index_select(-1, sources[dt, dy, dx])
