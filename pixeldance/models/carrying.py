"""What is known to go where is carried there: forward splatting to any time of a clip.

What lies in front hides what lies behind. Holes take what is around them.

References:
    Niklaus and Liu 2020, Softmax Splatting, https://arxiv.org/abs/2003.05534 (equation 9).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from pixeldance.models.matching import places

FINE = 4  # motion is given at 1/4 of the resolution
NUM_DETOURS = 3  # inner moments, equally far apart, at which a path is told
_FRONT = 8.0  # how much more what lies in front weighs, as a power of e
_KNOWN = 1e-7  # weight from which something has landed at a place
_FILL = ((3, 1e-7), (9, 1e-10), (33, 1e-13))  # what fills holes: size of the surroundings, weight


class Motion(NamedTuple):
    """Motion between the two ends of a clip, on a grid of 1/4 of the resolution.

    Attributes:
        flow: ``(n, 2, 2, height / 4, width / 4)``, of each picture until the other end, x then y,
            in pixels.
        front: ``(n, 2, 1, height / 4, width / 4)`` in [0, 1], how likely a place shows something
            that lies in front of the background.
        detour: ``(n, 2, 3, 2, height / 4, width / 4)``, how far a place is from where uniform
            motion would have brought it after 1/4, 2/4 and 3/4 of the way, in pixels.
        behind: ``(n, 2, 3, height, width)``, the pictures with what is around it in place of what
            is in front, for where no other picture shows it; None where nobody asked yet.
    """

    flow: Tensor
    front: Tensor
    detour: Tensor
    behind: Tensor | None = None

    def select(self, rows: Sequence[int]) -> "Motion":
        """That of some clips of the batch."""
        index = list(rows)
        behind = None if self.behind is None else self.behind[index]
        return Motion(self.flow[index], self.front[index], self.detour[index], behind)


def still(pictures: Tensor) -> Motion:
    """No motion and nothing in front, for where nothing is known.

    Args:
        pictures: ``(n, 2, 3, height, width)``.

    Returns:
        The motion, on their device.
    """
    count, (height, width) = len(pictures), pictures.shape[-2:]
    shape = (height // FINE, width // FINE)
    return Motion(
        torch.zeros(count, 2, 2, *shape, device=pictures.device),
        torch.zeros(count, 2, 1, *shape, device=pictures.device),
        torch.zeros(count, 2, NUM_DETOURS, 2, *shape, device=pictures.device),
    )


def detour_of(path: Tensor) -> Tensor:
    """How far paths are from uniform motion.

    Args:
        path: ``(..., 4, 2, h, w)``, displacements after 1/4, 2/4, 3/4 and all of the way.

    Returns:
        ``(..., 3, 2, h, w)``, the ``detour`` of :class:`Motion`.
    """
    elapsed = _moments(path.device)[:, None, None, None]
    return path[..., :-1, :, :, :] - elapsed * path[..., -1:, :, :, :]


def path_of(flow: Tensor, detour: Tensor) -> Tensor:
    """Whole paths, of which :func:`detour_of` gives the detours.

    Args:
        flow: ``(..., 2, h, w)``, as :class:`Motion` has it.
        detour: ``(..., 3, 2, h, w)``, as well.

    Returns:
        ``(..., 4, 2, h, w)``, displacements after 1/4, 2/4, 3/4 and all of the way.
    """
    end = flow[..., None, :, :, :]
    inner = detour + _moments(flow.device)[:, None, None, None] * end
    return torch.cat([inner, end], dim=-4)


def carried(motion: Motion, time: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Displacements from frames in between into both pictures.

    Each place of the pictures is splatted to where it is at that time, with weights that grow with
    ``front``; the nearer picture counts for more. Holes take what is around them.

    Args:
        motion: Motion between the pictures.
        time: ``(n, q)`` in [0, 1], 0 at the first picture.
        present: ``(n, 2)`` bool, which pictures there are; those into absent ones mean nothing.

    Returns:
        Displacements ``(n, 2, q, 2, h, w)`` into each picture in pixels, and ``front`` at those
        times, ``(n, q, 1, h, w)``; on the motion's grid.
    """
    sums = []
    for number in (0, 1):
        flow, front = motion.flow[:, number, None], motion.front[:, number, None]
        elapsed = time if number == 0 else 1 - time
        gone = _gone(motion, number, elapsed)
        into = [-gone, flow - gone] if number == 0 else [flow - gone, -gone]
        shape = (-1, time.shape[1], -1, -1, -1)
        values = torch.cat([*into, front.expand(shape), torch.ones_like(gone[:, :, :1])], dim=2)
        near = torch.where(present.all(1)[:, None], (1 - elapsed).clamp(min=0.02), 1.0)
        near = near * present[:, number, None]
        weights = torch.exp(_FRONT * (front - 1)) * near[:, :, None, None, None]
        sums.append(_splatted(values * weights, gone / FINE))
    flat = rearrange(sums[0] + sums[1], "n q c h w -> (n q) c h w")
    # what appears from behind something moves as what is behind it does
    known = flat / flat[:, 5:].clamp(min=_KNOWN)
    behind = known * torch.exp(-_FRONT * known[:, 4:5]) * (flat[:, 5:] > _KNOWN)
    filled = filled_up(flat, behind, _FILL)
    filled = rearrange(filled, "(n q) c h w -> n q c h w", n=len(time))
    flows = rearrange(filled[:, :, :4], "n q (r d) h w -> n r q d h w", r=2)
    return flows, filled[:, :, 4:]


def _gone(motion: Motion, number: int, elapsed: Tensor) -> Tensor:
    """How far each place of a picture has gone after ``(n, q)`` of its way: ``(n, q, 2, h, w)``.

    Between the moments at which a path is told it is a natural cubic spline: without kinks.
    """
    moments = _moments(elapsed.device)
    hats = (1 - (elapsed[:, :, None] - moments).abs() * (NUM_DETOURS + 1)).clamp(min=0)
    shares = hats + (hats**3 - hats) @ _spline_curvatures(elapsed.device)
    detour = torch.einsum("nqk,nkdhw->nqdhw", shares, motion.detour[:, number])
    return elapsed[:, :, None, None, None] * motion.flow[:, number, None] + detour


def _spline_curvatures(device: torch.device) -> Tensor:
    """Curvatures at the inner moments for each unit of detour there; none at both ends."""
    eye, beside = torch.eye(NUM_DETOURS), torch.diag(torch.ones(NUM_DETOURS - 1), 1)
    beside = beside + beside.mT
    return torch.linalg.solve(beside + 4 * eye, beside - 2 * eye).to(device)


def filled_up(values: Tensor, around: Tensor, scales: Sequence[tuple[int, float]]) -> Tensor:
    """Weighted means of places, and of what is around them where they have no weight.

    Args:
        values: ``(n, channels, height, width)``, each place's values times its weight; the last
            channel is the weight.
        around: The same, of what may stand in.
        scales: Sizes of the surroundings, odd numbers of places, and how much each counts.

    Returns:
        The means, without the last channel.
    """
    for size, weight in scales:
        values = values + weight * _surroundings(around, size)
    return values[:, :-1] / values[:, -1:].clamp(min=1e-30)


def _surroundings(values: Tensor, size: int) -> Tensor:
    """Mean of ``size x size`` places around each, as far as there are any."""
    return _near_means(_near_means(values, size, -1), size, -2)


def _near_means(values: Tensor, size: int, dim: int) -> Tensor:
    """Means of ``size`` places along one side, those beyond the ends left out.

    Sums are doubled (of 1, 2, 4, ... places): a large pooling window would read each place
    ``size`` times, and differences of running sums would not be zero where all of the places are.
    """
    length = values.shape[dim]
    beyond = [size // 2, size // 2] if dim == -1 else [0, 0, size // 2, size // 2]
    doubled, total = F.pad(values, beyond), torch.zeros_like(values)
    summed, num_places = 0, 1
    while True:
        if size & num_places:
            total = total + doubled.narrow(dim, summed, length)
            summed += num_places
        if summed == size:
            break
        left = doubled.shape[dim] - num_places
        doubled = doubled.narrow(dim, 0, left) + doubled.narrow(dim, num_places, left)
        num_places *= 2
    place = torch.arange(length, device=values.device)
    count = (place + size // 2).clamp(max=length - 1) - (place - size // 2).clamp(min=0) + 1
    return total / (count if dim == -1 else count[:, None])


def _splatted(values: Tensor, shift: Tensor) -> Tensor:
    """Sum of values ``(n, q, c, h, w)`` moved by shifts ``(n, q, 2, h, w)`` in cells."""
    n, _, _, height, width = values.shape
    cells = torch.view_as_real(places(height, width, 1, values.device)).movedim(-1, 0) - 0.5
    target = rearrange(cells + shift, "n q d h w -> (n q) d h w")
    flat = rearrange(values, "n q c h w -> (n q) c (h w)")
    corner = target.floor()
    result = torch.zeros_like(flat)
    for across in (0, 1):
        for down in (0, 1):
            x, y = corner[:, 0] + across, corner[:, 1] + down
            share = (1 - (target[:, 0] - x).abs()) * (1 - (target[:, 1] - y).abs())
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            place = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
            index = repeat(place.long().flatten(1), "m a -> m c a", c=flat.shape[1])
            result = result.scatter_add(2, index, flat * (share * inside).flatten(1)[:, None])
    return rearrange(result, "(n q) c (h w) -> n q c h w", n=n, h=height)


def _moments(device: torch.device) -> Tensor:
    """The inner moments at which a path is told, as shares of the way."""
    return torch.arange(1, NUM_DETOURS + 1, device=device) / (NUM_DETOURS + 1)
