"""Layers that encoder and decoder of Wan's autoencoder share, on frames with channels last.

Functions over the layers of a loaded ``AutoencoderKLWan``: the weights stay where they are. Frames
are ``batch frames height width channels``, in which normalisation and convolutions run at their
best; a convolution sees them as channels-first with the memory order ``channels_last_3d``.

References:
    diffusers, models/autoencoders/autoencoder_kl_wan.py (the network, key for key).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldance import ops
from pixeldance.models.wan_timeline import PAST, Timeline
from pixeldance.ops import convolve_frames, rms_norm_silu

NORM_EPS = 1.0e-12
"""Smallest norm that is divided by, that of ``torch.nn.functional.normalize``."""
CACHE_VALUES = 2**18
"""Values normalised at a time on a CPU, so that the passes over them stay in its cache."""


def conv_over_time(layer: nn.Conv3d, frames: Tensor, *, stride: int = 1) -> Tensor:
    """Convolve over frames only, without padding.

    Args:
        layer: The convolution; its own padding is ignored.
        frames: Input with the past it looks back at. A past of zeros may be left out if there is
            a single frame: then only the part of the kernel that sees that frame is used.
        stride: Step over time.

    Returns:
        The result, channels last.
    """
    video = frames.permute(0, 4, 1, 2, 3)
    weight = layer.weight[:, :, -1:] if video.shape[2] == 1 else layer.weight
    video = F.conv3d(video, weight, layer.bias, stride=(stride, 1, 1))
    return video.permute(0, 2, 3, 4, 1).contiguous()


def conv_pictures(layer: nn.Conv2d, frames: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolve every frame over height and width.

    Args:
        layer: The convolution; stride and padding are those given here.
        frames: Its input.
        stride: Step over height and width.
        padding: Zeros on every side.

    Returns:
        The result, channels last.
    """
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)
    pictures = F.conv2d(pictures, layer.weight, layer.bias, stride=stride, padding=padding)
    return pictures.permute(0, 2, 3, 1).contiguous().unflatten(0, frames.shape[:2])


def pointwise(layer: nn.Conv2d | nn.Conv3d, values: Tensor, *, rows: int | None = None) -> Tensor:
    """A convolution of one cell: a linear map of the channels.

    Args:
        layer: The convolution, with a kernel of one cell.
        values: ``... channels``.
        rows: Number of output channels to compute, from the first; None for all.

    Returns:
        ``... channels``.
    """
    weight = layer.weight.flatten(1)[:rows]
    bias = None if layer.bias is None else layer.bias[:rows]
    return F.linear(values, weight, bias)


def rms_norm(norm: nn.Module, values: Tensor) -> Tensor:
    """Wan's norm: unit length over the channels, times sqrt(channels) and a learned scale.

    Args:
        norm: A ``WanRMS_norm``.
        values: ``... channels``.

    Returns:
        ``... channels``, computed in float32 or better and rounded once.
    """
    precise = torch.promote_types(values.dtype, torch.float32)
    unit = F.normalize(values.to(precise), dim=-1, eps=NORM_EPS)
    scale = cast("Tensor", norm.gamma).flatten().to(precise) * values.shape[-1] ** 0.5
    return (unit * scale).to(values.dtype)


def causal_conv(layer: nn.Conv3d, frames: Tensor, timeline: Timeline) -> Tensor:
    """A convolution over three frames, this one and the two before."""
    room = timeline.room_for(layer, frames)
    room[:, PAST:] = frames
    window = timeline.causal_input(layer, room)
    if layer.kernel_size[1] == 1:
        return conv_over_time(layer, window)
    return convolve_frames(window, timeline.kernel_of(layer, window))


def norm_silu_window(
    norm: nn.Module, layer: nn.Conv3d, frames: Tensor, timeline: Timeline
) -> Tensor:
    """Norm and SiLU, as input of a convolution over three frames: with its past before it."""
    room = timeline.room_for(layer, frames)
    weight = cast("Tensor", norm.gamma).flatten()
    for clip, target in zip(frames, room[:, PAST:], strict=True):
        cells, places = clip.flatten(0, 2), target.flatten(0, 2)
        portion = max(CACHE_VALUES // cells.shape[1], 1) if cells.is_cpu else len(cells)
        for some, place in zip(cells.split(portion), places.split(portion), strict=True):
            rms_norm_silu(some, weight, NORM_EPS, out=place)
    return timeline.causal_input(layer, room)


def residual_block(block: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """A ``WanResidualBlock``. What is not needed any more is let go of at once: it is large."""
    is_same = isinstance(block.conv_shortcut, nn.Identity)
    passed, slots = frames if is_same else pointwise(block.conv_shortcut, frames), timeline.slots
    window = norm_silu_window(block.norm1, block.conv1, frames, timeline)
    del frames
    hidden = convolve_frames(window, timeline.kernel_of(block.conv1, window))
    del window
    window = norm_silu_window(block.norm2, block.conv2, hidden, timeline)
    del hidden
    passed = timeline.aligned(passed, slots, max(window.shape[1] - PAST, 1))
    return convolve_frames(window, timeline.kernel_of(block.conv2, window), passed)


def attention_block(block: Any, frames: Tensor) -> Tensor:
    """A ``WanAttentionBlock``: every cell of a frame attends to all cells of that frame."""
    batch, num_frames, height, width, channels = frames.shape
    cells = rms_norm(block.norm, frames).view(batch * num_frames, 1, height * width, channels)
    query, key, value = pointwise(block.to_qkv, cells).chunk(3, dim=-1)
    attended = ops.attention(*(part.transpose(1, 2) for part in (query, key, value)))
    return frames + pointwise(block.proj, attended).view_as(frames)


def mid_block(block: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """A ``WanMidBlock``."""
    frames = residual_block(block.resnets[0], frames, timeline)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        frames = residual_block(resnet, attention_block(attention, frames), timeline)
    return frames


def output_head(network: Any, frames: Tensor, timeline: Timeline) -> Tensor:
    """Norm, SiLU and the last convolution of an encoder or decoder."""
    window = norm_silu_window(network.norm_out, network.conv_out, frames, timeline)
    return convolve_frames(window, timeline.kernel_of(network.conv_out, window))
