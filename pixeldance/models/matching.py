"""Where parts of one picture are in another one, and which few motions explain it.

Whitened patches are compared at every second pixel, as far as the picture reaches; then one
similarity (shift, turn and scale) after the other is found that explains most of what is left: that
of the background as the camera sees it, then those of what moves by itself.

References:
    Hariharan et al. 2012, Discriminative decorrelation, https://doi.org/10.1007/978-3-642-33765-9_33
    (whitened patches).
    Fischler and Bolles 1981, RANSAC, https://doi.org/10.1145/358669.358692
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

CELL = 8  # pixels between the patches that are looked for
WINDOW = 8  # side of a patch, at half the resolution
PATCH_VALUES = 3 * WINDOW**2
_BEFORE = 2  # of those, before the cell itself
_FLAT = 0.3  # length of a descriptor below which a patch counts as flat
_TRIALS = 192  # similarities that are tried for each motion
_INLIER = 4.0  # pixels
_MOST_SCALE = 2.5  # by which things may grow or shrink
_ROUNDS = 6  # of least squares
_TURNS = 1e-3  # how far a factor is from 1 that is taken for more than a shift


class Matches(NamedTuple):
    """Pairs of places that look alike, as complex numbers ``x + iy`` in pixels.

    Attributes:
        here: ``(n, k)``, places in the first picture.
        there: ``(n, k)``, the same places in the second picture.
        weight: ``(n, k)``, how much to trust each.
    """

    here: Tensor
    there: Tensor
    weight: Tensor


class Similarity(NamedTuple):
    """``z -> factor * z + shift`` on places ``z = x + iy`` in pixels.

    Attributes:
        factor: ``(n,)`` complex: scale and turn.
        shift: ``(n,)`` complex.
    """

    factor: Tensor
    shift: Tensor

    def inverse(self) -> "Similarity":
        """The way back."""
        return Similarity(1 / self.factor, -self.shift / self.factor)

    def flow(self, places: Tensor) -> Tensor:
        """Displacements ``(n, 2, h, w)`` of places ``(h, w)``."""
        moved = self.factor[:, None, None] * places + self.shift[:, None, None] - places
        return torch.stack([moved.real, moved.imag], dim=1)

    def part(self, share: float) -> "Similarity":
        """A share of the way at a constant pace: half of it, done twice, is all of it."""
        factor = torch.exp(share * torch.log(self.factor))
        beyond = self.factor - 1
        turns = beyond.abs() > _TURNS
        ratio = torch.where(turns, (factor - 1) / torch.where(turns, beyond, 1.0), share)
        return Similarity(factor, ratio * self.shift)


def patches(pictures: Tensor) -> Tensor:
    """Patches around every second pixel, without their mean colour.

    Args:
        pictures: ``(n, 3, height, width)``.

    Returns:
        ``(n, PATCH_VALUES, height / 2, width / 2)``.
    """
    small = F.avg_pool2d(pictures.float(), 2)
    after = WINDOW - 1 - _BEFORE
    padded = F.pad(small, (_BEFORE, after, _BEFORE, after), mode="replicate")
    values = rearrange(F.unfold(padded, WINDOW), "n (c k) l -> n c k l", c=3)
    values = values - values.mean(2, keepdim=True)
    return rearrange(values, "n c k (h w) -> n (c k) h w", h=small.shape[-2])


def whitening(samples: Tensor, channels: int, *, power: float = 0.4) -> Tensor:
    """Filters that make the strongest components of patches about equally strong.

    Args:
        samples: ``(k, PATCH_VALUES)``, patches.
        channels: Components to keep.
        power: Component i is divided by ``variance_i ** power``; 0.5 would make all equal.

    Returns:
        ``(channels, PATCH_VALUES)``, float32.
    """
    covariance = (samples.T @ samples / len(samples)).double()
    variances, vectors = torch.linalg.eigh(covariance)
    variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
    scale = (variances.clamp(min=1e-8) / variances[0]) ** -power
    return (vectors * scale).T.float().contiguous()


def described(pictures: Tensor, filters: Tensor) -> Tensor:
    """Descriptors ``(n, channels, height / 2, width / 2)`` of length 1, less where flat."""
    values = torch.einsum("dc,nchw->ndhw", filters.float(), patches(pictures))
    return values / (values.norm(dim=1, keepdim=True) + _FLAT)


def best_match(descriptors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar place of another picture for every cell of 8 x 8 pixels.

    Args:
        descriptors: ``(n, channels, h, w)``, of :func:`described`.
        others: Same shape, of the other pictures.

    Returns:
        Displacements in pixels ``(n, 2, h / 4, w / 4)``, x then y, and the similarities found.
    """
    step, columns = CELL // 2, others.shape[-1]
    asked = descriptors[:, :, ::step, ::step]
    similarity = torch.einsum("ncq,nck->nqk", asked.flatten(2), others.flatten(2))
    best, index = similarity.max(dim=-1)
    found = torch.stack([index % columns, index // columns], dim=1)
    rows, cells = asked.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=best.device),
        torch.arange(cells, device=best.device),
        indexing="ij",
    )
    own = step * torch.stack([x, y]).flatten(1)
    flow = rearrange(2.0 * (found - own), "n d (h w) -> n d h w", h=rows)
    return flow, rearrange(best, "n (h w) -> n 1 h w", h=rows)


def places(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """Centres of cells of ``side`` pixels as complex numbers, ``(height, width)`` of them."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.complex((x + 0.5) * side, (y + 0.5) * side)


def positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """Centres of cells in halves of the sides from the middle, ``(2, rows, columns)``, x then y."""
    y = (torch.arange(rows, device=device) + 0.5) * 2 / rows - 1
    x = (torch.arange(columns, device=device) + 0.5) * 2 / columns - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def matches_of(flow: Tensor, trust: Tensor) -> Matches:
    """Matches from both directions.

    Args:
        flow: ``(n, 2, 2, h, w)``, displacement of the cells of each picture into the other one.
        trust: ``(n, 2, 1, h, w)``, their similarity.

    Returns:
        All of them, from the first picture to the second.
    """
    height, width = flow.shape[-2:]
    own = places(height, width, CELL, flow.device).flatten()
    moved = own + rearrange(torch.complex(flow[:, :, 0], flow[:, :, 1]), "n r h w -> n r (h w)")
    own = own.expand_as(moved[:, 0])
    return Matches(
        torch.cat([own, moved[:, 1]], dim=1),
        torch.cat([moved[:, 0], own], dim=1),
        rearrange(trust.clamp(min=0) ** 4, "n r 1 h w -> n (r h w)") + 1e-6,
    )


def similarities(matches: Matches, count: int) -> list[Similarity]:
    """The motions that explain most of the matches, the next one most of what is left.

    Args:
        matches: The matches.
        count: How many motions.

    Returns:
        Motions from the first picture to the second. The same matches give the same motions.
    """
    here, there, weight = matches
    found = []
    for number in range(count):
        motion = _refined(_most_supported(matches, seed=number), matches._replace(weight=weight))
        found.append(motion)
        explained = torch.exp(-((_distance(motion, here, there) / _INLIER) ** 2))
        weight = weight * (1 - explained) + 1e-6
        matches = Matches(here, there, weight)
    return found


def _distance(motion: Similarity, here: Tensor, there: Tensor) -> Tensor:
    return (motion.factor[:, None] * here + motion.shift[:, None] - there).abs()


def _most_supported(matches: Matches, seed: int) -> Similarity:
    """Of shifts by one match and similarities through two, the one that most others agree with."""
    here, there, weight = matches
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(2 * _TRIALS, generator=generator).to(weight.device)
    total = weight.cumsum(dim=1)
    drawn = torch.searchsorted(total, numbers * total[:, -1:]).clamp(max=weight.shape[1] - 1)
    first, second = drawn.chunk(2, dim=1)
    from_here = here.gather(1, second) - here.gather(1, first)
    factor = (there.gather(1, second) - there.gather(1, first)) / (from_here + 1e-6)
    size = factor.abs()
    usable = (from_here.abs() > 2 * CELL) & (size > 1 / _MOST_SCALE) & (size < _MOST_SCALE)
    usable[:, : _TRIALS // 2] = False  # these are tried as shifts
    factor = torch.where(usable, factor, torch.ones_like(factor))
    shift = there.gather(1, first) - factor * here.gather(1, first)
    moved = factor[:, :, None] * here[:, None] + shift[:, :, None]
    agrees = (moved - there[:, None]).abs() < _INLIER
    best = (agrees * weight[:, None]).sum(-1).argmax(dim=1, keepdim=True)
    return Similarity(factor.gather(1, best)[:, 0], shift.gather(1, best)[:, 0])


def _refined(motion: Similarity, matches: Matches) -> Similarity:
    """Iteratively reweighted least squares around a first guess."""
    here, there, weight = matches
    for _ in range(_ROUNDS):
        near = weight / (1 + (_distance(motion, here, there) / (_INLIER / 2)) ** 2) ** 2
        share = near / near.sum(dim=1, keepdim=True)
        mean_here, mean_there = (share * here).sum(1), (share * there).sum(1)
        around, beyond = here - mean_here[:, None], there - mean_there[:, None]
        spread = (share * around.abs() ** 2).sum(1)
        factor = (share * around.conj() * beyond).sum(1) + motion.factor  # one pixel² of doubt
        factor = factor / (spread + 1)
        factor = factor * (factor.abs().clamp(1 / _MOST_SCALE, _MOST_SCALE) / factor.abs())
        motion = Similarity(factor, mean_there - factor * mean_here)
    return motion
