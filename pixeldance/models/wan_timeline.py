"""What a causal convolution over time has to compute, and what it may leave out.

Wan's autoencoder only ever mixes frames in causal windows: three frames, or two that are averaged.
Equal windows give equal results, so a clip is held as its *distinct* frames and, for every frame,
the slot of the one it equals. Two uses:

* A clip of which only a few pictures are given is zero everywhere else, and behind each picture a
  causal layer becomes constant after a few frames. Those constant frames are computed once.
* A long clip is worked on in chunks: two frames are kept per convolution, and nothing else.

References:
    Wan, https://arxiv.org/abs/2503.20314, section 4.1 (causal 3D autoencoder with feature cache).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixeldance.ops import FrameKernel

__all__ = ["PAST", "Timeline", "WindowPlan", "distinct_windows", "select_frames"]

KERNEL = 3
"""Frames that every convolution over time sees."""
PAST = KERNEL - 1
"""Frames of the past among them."""
MAX_PIXEL_CHANNELS = 12
"""Of the output: three, or a patch of 2 x 2 pixels with three each."""


class WindowPlan(NamedTuple):
    """Which windows to compute.

    Attributes:
        sequence: Slots in an order that contains every distinct window.
        slots: For every output frame, the number of its window in the sequence.
    """

    sequence: list[int]
    slots: list[int]


def distinct_windows(slots: Sequence[int], size: int, stride: int) -> WindowPlan:
    """Line up the distinct windows of a clip so that neighbours share frames.

    Args:
        slots: Slot of every frame.
        size: Frames per window.
        stride: Frames from one window to the next, at most ``size``.

    Returns:
        The plan; its window k starts at ``sequence[k * stride]``.
    """
    overlap = size - stride
    sequence: list[int] = []
    numbers: dict[tuple[int, ...], int] = {}
    windows = [tuple(slots[i : i + size]) for i in range(0, len(slots) - size + 1, stride)]
    for window in windows:
        if window in numbers:
            continue
        if sequence and tuple(sequence[len(sequence) - overlap :]) == window[:overlap]:
            sequence.extend(window[overlap:])
        else:
            sequence.extend(window[:1] * (-len(sequence) % stride))
            sequence.extend(window)
        numbers[window] = (len(sequence) - size) // stride
    return WindowPlan(sequence, [numbers[window] for window in windows])


class Timeline:
    """Follows the frames of a clip through the layers, one chunk after another.

    Frames are ``batch slots height width channels``. Layers that look at one frame at a time do
    not need a timeline; those that look back ask it for their input.

    Args:
        latent_width: Width of the clip's latents.

    Attributes:
        slots: For every frame of the chunk, which of the tensor's frames it equals.
        is_first: Whether the chunk starts the clip.
    """

    def __init__(self, latent_width: int) -> None:
        self.slots: list[int] = []
        self.is_first = True
        self._is_started = self._is_last = False
        self._latent_width = latent_width
        self._history: dict[nn.Module, Tensor] = {}
        self._kernels: dict[nn.Module, FrameKernel] = {}

    def start_chunk(self, slots: Sequence[int], *, is_last: bool) -> None:
        """Begin the next chunk.

        Args:
            slots: Slot of every frame of the chunk.
            is_last: Whether nothing has to be kept for another one.
        """
        self.is_first, self._is_started = not self._is_started, True
        self._is_last = is_last
        self.slots = list(slots)

    def kernel_of(
        self, layer: nn.Conv2d | nn.Conv3d, frames: Tensor, *, is_doubled: bool = False
    ) -> FrameKernel:
        """Weights of a convolution of 3 x 3 cells, prepared once per clip.

        Where a faster convolution would round bfloat16 once more, it is not used on frames of the
        size of the latents and for the output: that takes little time and half of the error away.

        Args:
            layer: The convolution.
            frames: Its input.
            is_doubled: Whether height and width are doubled first.

        Returns:
            What :func:`pixeldance.ops.convolve_frames` takes.
        """
        if layer not in self._kernels:
            weight = layer.weight if layer.weight.ndim == 5 else layer.weight.unsqueeze(2)
            is_small = frames.shape[3] == self._latent_width and not is_doubled
            is_exact = is_small or layer.out_channels <= MAX_PIXEL_CHANNELS
            self._kernels[layer] = FrameKernel(weight, layer.bias, is_doubled, is_exact)
        return self._kernels[layer]

    def room_for(self, layer: nn.Module, frames: Tensor) -> Tensor:
        """Memory for the input of a convolution over three frames, its past filled in.

        Args:
            layer: The convolution. Before the clip there are zeros.
            frames: Tensor of the shape of the input without its past, one frame per slot.

        Returns:
            Two frames of the past, then uninitialised room for the input: ``[:, PAST:]``.
        """
        batch, count, *rest = frames.shape
        room = frames.new_empty(batch, PAST + count, *rest)
        room[:, :PAST] = self._history.pop(layer, 0)
        return room

    def causal_input(self, layer: nn.Module, room: Tensor) -> Tensor:
        """Frames on which a convolution over three, without padding, gives the next frames.

        Args:
            layer: The convolution, whose last frames are kept for the next chunk.
            room: From :meth:`room_for`, filled.

        Returns:
            Input of the convolution; the timeline now describes its output. If the clip is a
            single frame so far, it is that frame, without the zeros before it.
        """
        shown = [*range(PAST), *(slot + PAST for slot in self.slots)]
        self._keep(layer, room, shown[-PAST:])
        if self.is_first and len(self.slots) == room.shape[1] - PAST == 1:
            return room[:, PAST:]
        plan = distinct_windows(shown, KERNEL, 1)
        self.slots = plan.slots
        return select_frames(room, plan.sequence)

    def halving_input(self, layer: nn.Module, frames: Tensor) -> Tensor:
        """The same for a convolution with stride 2, which is not used on the first frame.

        Args:
            layer: The convolution, whose last frame is kept for the next chunk.
            frames: Its input, one per slot.

        Returns:
            Input of the convolution. In a clip's first chunk the timeline then describes that
            first frame followed by the convolution's output; it may be the first frame alone,
            and the input shorter than a window.
        """
        shown = self.slots
        if not self.is_first:
            frames = torch.cat([self._history.pop(layer), frames], dim=1)
            shown = [0, *(slot + 1 for slot in shown)]
        self._keep(layer, frames, shown[-1:])
        plan = distinct_windows(shown, KERNEL, 2)
        self.slots = [0, *(slot + 1 for slot in plan.slots)] if self.is_first else plan.slots
        return select_frames(frames, plan.sequence)

    def aligned(self, frames: Tensor, slots: Sequence[int], count: int) -> Tensor:
        """Frames of a shortcut in the order of this timeline's slots.

        Args:
            frames: Frames of the shortcut.
            slots: Slot of every frame in them.
            count: Number of slots wanted; slots that no frame uses get any frame.

        Returns:
            ``count`` frames.
        """
        sources = dict(zip(reversed(self.slots), reversed(slots), strict=True))
        return select_frames(frames, [sources.get(slot, 0) for slot in range(count)])

    def _keep(self, layer: nn.Module, frames: Tensor, last: Sequence[int]) -> None:
        if self._is_last:
            return
        start, stop = last[0], last[-1] + 1
        are_neighbours = list(last) == list(range(start, stop))
        kept = frames[:, start:stop].clone() if are_neighbours else frames[:, list(last)]
        self._history[layer] = kept


def select_frames(frames: Tensor, order: Sequence[int]) -> Tensor:
    """``frames[:, order]``, without a copy if that changes nothing."""
    if list(order) == list(range(frames.shape[1])):
        return frames
    return frames.index_select(1, torch.tensor(order, device=frames.device, dtype=torch.long))
