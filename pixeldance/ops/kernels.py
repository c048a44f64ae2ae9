"""Weights that are prepared once and used in many calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["FrameKernel"]


@dataclass(eq=False)
class FrameKernel:
    """Weights of :func:`pixeldance.ops.convolve_frames`, for as long as they do not change.

    Attributes:
        weight: ``out_channels in_channels frames 3 3``, of one or three frames.
        bias: One number per output channel, or None.
        is_doubled: Whether height and width are doubled first (nearest neighbour).
        is_exact: Whether bfloat16 may be rounded only once, which takes more products.
        packed: The weights as the native operations read them, once they have been used there.
    """

    weight: Tensor
    bias: Tensor | None = None
    is_doubled: bool = False
    is_exact: bool = False
    packed: Tensor | None = field(default=None, init=False, repr=False)
