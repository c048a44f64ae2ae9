"""Convolutional networks whose rows are shared out, as Wan's autoencoder is.

Every process computes a band of rows. A convolution that looks at the rows above and below asks the
neighbours for theirs: the work is that of one process, divided, and no row is computed twice. What
attends to a whole picture, at the lowest resolution only (0.4 % of the work), is gathered and
computed by everybody.

In numbers, for Wan 2.1's decoder at 480p (60 x 104 latent cells, 13.5 TFLOP per latent frame):
27 MB go to each neighbour per latent frame, in 33 exchanges. Bands that overlap by what a result
depends on, 14.25 latent rows on each side, would need none, but 8 processes would do 4.1 times the
work of one (1.8 times, if trimmed after every resolution). Passing chunks of frames through groups
of layers repeats no work either, but the last two resolutions have 39 % of it each.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pixeldance.parallel.processes import Parallelism

__all__ = ["share_rows"]

ROWS = -2
"""The axis of the rows, in pictures and videos with channels first."""


def share_rows(
    parallel: Parallelism,
    network: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    scale: int,
) -> Tensor:
    """Compute ``network(latents)``, each process its band of rows.

    The network may use convolutions of 3 x 3 with a border of zeros, or of single cells; attention
    over the cells of a picture where that still has the height of the latents; and whatever looks
    at one cell at a time. All sums are those of one process, but not always rounded alike: PyTorch
    computes the bands, and may choose another kernel for another height, where one process has
    convolutions in native code.

    Args:
        parallel: The processes.
        network: What is to be computed.
        latents: Its input, ``... height width``, the same in every process.
        scale: Rows of the result for each row of the input.

    Returns:
        The whole result, in every process.
    """
    bounds = parallel.bounds(latents.shape[ROWS])
    heights = [stop - start for start, stop in pairwise(bounds)]
    if min(heights) == 0:  # more processes than rows: each computes everything
        return network(latents)
    band = latents.narrow(ROWS, bounds[parallel.rank], heights[parallel.rank])
    with _SharedRows(parallel, heights):
        part = network(band)
    return parallel.concatenate(part, [height * scale for height in heights], dim=ROWS)


class _SharedRows(TorchFunctionMode):
    """While it is active, convolutions and attention know of the other processes' rows.

    ``pixeldance.ops`` then computes both with the functions of PyTorch that are replaced here.

    Args:
        parallel: The processes; the band of each lies below that of the one before.
        heights: Of the bands, in latent rows.
    """

    def __init__(self, parallel: Parallelism, heights: Sequence[int]) -> None:
        super().__init__()
        self.parallel = parallel
        self.heights = heights

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute a function of PyTorch; those that look at several rows otherwise than usual."""
        kwargs = kwargs or {}
        if function in {torch.conv2d, torch.conv3d}:
            return self._convolve(function, *args, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return function(*args, **kwargs)

    def _convolve(
        self,
        function: Callable[..., Tensor],
        video: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
    ) -> Tensor:
        """A convolution of this band, with channels first."""
        axes = weight.ndim - 2
        strides = [stride] * axes if isinstance(stride, int) else list(stride)
        paddings = [padding] * axes if isinstance(padding, int) else list(padding)
        form = weight.shape[ROWS], strides[ROWS], paddings[ROWS]
        if form == (3, 1, 1):
            video, paddings[ROWS] = self._between_neighbours(video), 0
        elif form != (1, 1, 0):
            raise NotImplementedError(f"a convolution with height, stride and padding {form}")
        return function(video, weight, bias, stride=strides, padding=paddings)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Attention over all cells of a picture, ``... cells channels``."""
        if attn_mask is not None:
            raise NotImplementedError("attention with a mask")
        rank = self.parallel.rank
        width = query.shape[ROWS] // self.heights[rank]
        lengths = [height * width for height in self.heights]
        # Asking with one's own cells alone would save little, and round otherwise.
        own = torch.cat([query, key, value], dim=-1)
        query, key, value = self.parallel.concatenate(own, lengths, dim=ROWS).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.narrow(ROWS, sum(lengths[:rank]), lengths[rank])

    def _between_neighbours(self, video: Tensor) -> Tensor:
        """The band and one row on each side of it; zeros beyond the picture."""
        shape = list(video.shape)
        shape[ROWS] += 2
        order = torch.channels_last if video.ndim == 4 else torch.channels_last_3d
        padded = torch.empty(shape, dtype=video.dtype, device=video.device, memory_format=order)
        padded.narrow(ROWS, 1, video.shape[ROWS]).copy_(video)
        for row, values in zip((0, -1), self._rows_around(video), strict=True):
            padded.select(ROWS, row).copy_(values)
        return padded

    def _rows_around(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """The row above this band and the row below it; zeros beyond the picture."""
        rank, last = self.parallel.rank, self.parallel.num_processes - 1
        first_row, last_row = (video.select(ROWS, row).contiguous() for row in (0, -1))
        above, below = torch.zeros_like(first_row), torch.zeros_like(last_row)
        exchange = []
        if rank > 0:
            exchange.append(dist.P2POp(dist.isend, first_row, rank - 1))
            exchange.append(dist.P2POp(dist.irecv, above, rank - 1))
        if rank < last:
            exchange.append(dist.P2POp(dist.irecv, below, rank + 1))
            exchange.append(dist.P2POp(dist.isend, last_row, rank + 1))
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        return above, below
