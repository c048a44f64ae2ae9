"""How things move between the first and the last given picture.

The displacement of every part of each picture into the other one, and what lies in front. A few
motions that explain most of what is alike in the two pictures (``matching.py``) are the candidates;
a network at 1/4 of the resolution chooses between them per place, corrects, and says what lies in
front. Uniform motion carries both pictures to any time in between by forward splatting, in which
what lies in front hides what lies behind.

References:
    Wang and Adelson 1994, Representing moving images with layers, https://doi.org/10.1109/83.334981
    Niklaus and Liu 2020, Softmax Splatting, https://arxiv.org/abs/2003.05534 (equation 9).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pixeldance.models.layers import ResidualBlock, as_input, warp, zeroed
from pixeldance.models.matching import (
    CELL,
    PATCH_VALUES,
    best_match,
    described,
    matches_of,
    places,
    similarities,
)

FINE = 4  # motion is given at 1/4 of the resolution
FLOW_UNIT = 32.0  # pixels that count as 1 in channels that hold displacements
_NUM_MOTIONS = 4  # candidates that hold for a part of the picture
NUM_CANDIDATES = _NUM_MOTIONS + 1  # single matches are one more
_FRONT = 8.0  # how much more what lies in front weighs, as a power of e
_FILL = ((3, 1e-6), (9, 1e-9), (33, 1e-12))  # what fills holes: size of the surroundings, weight


class Motion(NamedTuple):
    """Motion between two pictures, on a grid of 1/4 of their resolution.

    Attributes:
        flow: ``(n, 2, 2, height / 4, width / 4)``, from each picture into the other one, x then y,
            in pixels.
        front: ``(n, 2, 1, height / 4, width / 4)`` in [0, 1], how likely a place shows something
            that lies in front of the background.
    """

    flow: Tensor
    front: Tensor


class Candidates(NamedTuple):
    """Displacements that may hold, on the grid of :class:`Motion`.

    Attributes:
        flow: ``(n, 2, m, 2, h, w)``, from each picture into the other one, in pixels.
        likeness: ``(n, 2, m, h, w)`` in [-1, 1], of the descriptors there.
        difference: ``(n, 2, m, h, w)``, of the colours there.
    """

    flow: Tensor
    likeness: Tensor
    difference: Tensor


class PictureMotion(nn.Module):
    """Estimates the motion between two pictures.

    Args:
        descriptor_channels: Length of the descriptors of patches.
        channels: Widths of the network at 1/4 and at 1/8 of the resolution.
    """

    def __init__(self, descriptor_channels: int = 64, channels: tuple[int, int] = (64, 96)) -> None:
        super().__init__()
        fine, coarse = channels
        self.filters = nn.Parameter(
            torch.zeros(descriptor_channels, PATCH_VALUES), requires_grad=False
        )
        self.likeness_weight = nn.Parameter(torch.tensor(16.0))
        self.enter = nn.Conv2d(3 * FINE**2 + 4 * NUM_CANDIDATES, fine, 1)
        self.down_fine = ResidualBlock(fine)
        self.to_coarse = nn.Conv2d(fine, coarse, 2, stride=2)
        self.bottom = nn.Sequential(ResidualBlock(coarse), ResidualBlock(coarse))
        self.from_coarse = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.up_fine = nn.Sequential(ResidualBlock(fine), ResidualBlock(fine))
        self.leave = nn.Sequential(
            nn.GroupNorm(8, fine),
            nn.SiLU(),
            zeroed(nn.Conv2d(fine, NUM_CANDIDATES + 3, 3, padding=1)),  # choice, correction, front
        )

    def forward(self, pictures: Tensor) -> Motion:
        """Estimate.

        Args:
            pictures: ``(n, 2, 3, height, width)`` in [-1, 1], sides multiples of 16.

        Returns:
            The motion, float32.
        """
        return self.chosen(pictures, self.candidates(pictures))

    @torch.no_grad()
    def candidates(self, pictures: Tensor) -> Candidates:
        """Displacements that may hold.

        Args:
            pictures: ``(n, 2, 3, height, width)`` in [-1, 1], sides multiples of 16.

        Returns:
            Those of the motions that explain most, the strongest first, and those of single
            matches.
        """
        pictures = pictures.float()
        flat = rearrange(pictures, "n r c h w -> (n r) c h w")
        descriptors = described(flat, self.filters)
        matched, trust = best_match(descriptors, _other(descriptors))
        motions = similarities(matches_of(_paired(matched), _paired(trust)), _NUM_MOTIONS)
        height, width = (side // FINE for side in pictures.shape[-2:])
        grid = places(height, width, FINE, pictures.device)
        single = _paired(F.interpolate(matched, scale_factor=CELL // FINE))
        flow = torch.stack(
            [
                *(torch.stack([m.flow(grid), m.inverse().flow(grid)], dim=1) for m in motions),
                single,
            ],
            dim=2,
        )
        # a descriptor lies a pixel and a half after the centre of its place, of which there are 4
        own = F.pad(descriptors, (1, 0, 1, 0), mode="replicate")[:, :, :-1:2, :-1:2]
        colours = F.avg_pool2d(flat, FINE)
        likeness, difference = [], []
        for candidate in flow.unbind(2):
            shift = rearrange(candidate, "n r d h w -> (n r) d h w") / FINE
            likeness.append((own * warp(_other(own), shift)).sum(1))
            difference.append((colours - warp(_other(colours), shift)).abs().mean(1))
        return Candidates(
            flow, _paired(torch.stack(likeness, 1)), _paired(torch.stack(difference, 1))
        )

    def chosen(self, pictures: Tensor, candidates: Candidates) -> Motion:
        """Choose per place, and correct.

        Args:
            pictures: As for ``forward``.
            candidates: Of these pictures.

        Returns:
            The motion, float32.
        """
        count = candidates.flow.shape[2]
        inputs = torch.cat(
            [
                F.pixel_unshuffle(rearrange(pictures, "n r c h w -> (n r) c h w"), FINE),
                rearrange(candidates.flow, "n r m d h w -> (n r) (m d) h w") / FLOW_UNIT,
                rearrange(candidates.likeness, "n r m h w -> (n r) m h w"),
                rearrange(candidates.difference, "n r m h w -> (n r) m h w"),
            ],
            dim=1,
        )
        fine = self.down_fine(self.enter(as_input(inputs, self.enter)))
        fine = fine + self.from_coarse(self.bottom(self.to_coarse(fine)))
        made = _paired(self.leave(self.up_fine(fine)).float())
        logits = made[:, :, :count] + self.likeness_weight * candidates.likeness
        share = logits.softmax(dim=2)[:, :, :, None]
        flow = (share * candidates.flow).sum(2) + FINE * made[:, :, count : count + 2]
        return Motion(flow, made[:, :, count + 2 :].sigmoid())


def still(pictures: Tensor) -> Motion:
    """No motion and nothing in front, for where there are no two pictures to compare.

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
    )


def _other(values: Tensor) -> Tensor:
    """Rows ``(n 2)`` with the two of each pair exchanged."""
    return rearrange(rearrange(values, "(n r) ... -> n r ...", r=2).flip(1), "n r ... -> (n r) ...")


def _paired(values: Tensor) -> Tensor:
    return rearrange(values, "(n r) ... -> n r ...", r=2)


def carried(motion: Motion, time: Tensor) -> tuple[Tensor, Tensor]:
    """Displacements from frames in between into both pictures, if motion is uniform.

    Each place of the pictures is splatted to where it is at that time, with weights that grow with
    ``front``; the nearer picture counts for more. Holes take what is around them.

    Args:
        motion: Motion between the pictures.
        time: ``(n, q)`` in [0, 1], 0 at the first picture.

    Returns:
        Displacements ``(n, 2, q, 2, h, w)`` into each picture in pixels, and ``front`` at those
        times, ``(n, q, 1, h, w)``; on the motion's grid.
    """
    sums = []
    for number in (0, 1):
        flow, front = motion.flow[:, number, None], motion.front[:, number, None]
        elapsed = (time if number == 0 else 1 - time)[:, :, None, None, None]
        here, beyond = -elapsed * flow, (1 - elapsed) * flow
        into = [here, beyond] if number == 0 else [beyond, here]
        shape = (-1, time.shape[1], -1, -1, -1)
        values = torch.cat([*into, front.expand(shape), torch.ones_like(here[:, :, :1])], dim=2)
        weights = torch.exp(_FRONT * (front - 1)) * (1 - elapsed).clamp(min=0.02)
        sums.append(_splatted(values * weights, elapsed * flow / FINE))
    flat = rearrange(sums[0] + sums[1], "n q c h w -> (n q) c h w")
    filled = flat
    for size, weight in _FILL:
        filled = filled + weight * _surroundings(flat, size)
    filled = filled[:, :5] / filled[:, 5:].clamp(min=1e-30)
    filled = rearrange(filled, "(n q) c h w -> n q c h w", n=len(time))
    flows = rearrange(filled[:, :, :4], "n q (r d) h w -> n r q d h w", r=2)
    return flows, filled[:, :, 4:]


def _surroundings(values: Tensor, size: int) -> Tensor:
    """Mean of ``size x size`` places around each, as far as there are any."""
    for kernel in ((size, 1), (1, size)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        values = F.avg_pool2d(values, kernel, stride=1, padding=padding, count_include_pad=False)
    return values


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
