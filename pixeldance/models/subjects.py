"""Who is where in both pictures, and so where everybody goes.

Each place of a picture can tell only so much: a part of a character that turns, or that is about to
leave, finds something else that is alike. But what lies in front consists of few parts, a text
names few subjects, and each subject goes from one part to another one, or comes in, or leaves. Of
all ways to say who is who, :func:`follow_subjects` takes the one that agrees best with what the
text says and with how things look, and lets every part move as a whole.

References:
    Kuhn 1955, The Hungarian method, https://doi.org/10.1002/nav.3800020109 (the assignment problem;
    with so few parts all ways can be tried).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.models.carrying import FINE, Motion, detour_of
from pixeldance.models.matching import Matches, positions, similarities
from pixeldance.models.reading import Said

_IN_FRONT = 0.35
_SMALLEST = 1 / 400  # of the picture; what is smaller is nobody
_MOST_PARTS = 5  # in each picture, the largest
# what speaks against somebody being here and there, per half of the picture's sides, unit of the
# logarithm of the scale, and unit of colour
_FARTHER, _LARGER, _OTHER_COLOUR = 1.0, 0.5, 1.0
_IN_ONE, _NOT_OUTSIDE, _IN_NONE = 0.6, 1.5, 1.5  # being in one picture only, in it still, in none
_NOBODY = 1.0  # a part that is nobody, per side of a square as large, in halves of the picture
_OUTSIDE = 1.1  # halves of the sides from the centre
_LANDS = 0.5  # share of a part that must land on the other one for its own motion to be believed
_APART = 4.0  # pixels from where a place would go with the others of its part
_SAME_COLOUR = 0.35
_SMOOTHED = 5  # places
_SOMEBODY_ELSE = 0.2  # least share of a part that may be another one
_LONG = 0.15  # halves of a side from which paths are stretched to where they must end
_ASTRAY = 0.15  # how far beside its ends a path may lead, of its length, to be stretched
_MOST_STRETCH, _MOST_FARTHER = 2.0, 3.0


class Part(NamedTuple):
    """A connected part of what lies in front in one picture.

    Attributes:
        mask: ``(h, w)`` bool, on the grid of the motion.
        centre: ``(2,)``, x and y in halves of the picture's sides, from its centre.
        reach: ``(2,)``, half of its width and height, in the same unit.
        side: Side of a square as large, in the same unit.
        colour: ``(3,)`` in [-1, 1].
        is_cut_off: Whether it touches the picture's edge.
    """

    mask: Tensor
    centre: Tensor
    reach: Tensor
    side: float
    colour: Tensor
    is_cut_off: bool


Pair = tuple[Part | None, Part | None]


def follow_subjects(motion: Motion, said: Said, pictures: Tensor, present: Tensor) -> Motion:
    """Motion in which what lies in front goes where the subjects of the text go.

    Args:
        motion: As the network has found it.
        said: What the text says.
        pictures: ``(n, 2, 3, height, width)`` in [-1, 1].
        present: ``(n, 2)`` bool; only clips of which both pictures are given change.

    Returns:
        The motion, with other ``flow`` and ``detour`` of the parts that are somebody.
    """
    flow, detour = motion.flow.clone(), motion.detour.clone()
    for clip in present.all(1).nonzero().flatten().tolist():
        scene = _Scene(pictures[clip], motion.front[clip, :, 0] > _IN_FRONT, flow[clip])
        subjects = said.subjects[clip, said.named[clip] > 0]
        parts = [scene.parts(end, at_least=len(subjects)) for end in (0, 1)]
        for subject, pair in zip(subjects, who_is_who(subjects, *parts), strict=True):
            for end in (0, 1):
                here, there = pair[end], pair[1 - end]
                if here is None:
                    continue
                if there is None:
                    went = scene.left(here, subject[end, -1])
                else:
                    went = scene.arrived(end, here, there)
                bent = _stretched(subject[end, :, :2], went.mean(1))
                flow[clip, end][:, here.mask] = scene.half * went
                detour[clip, end][:, :, here.mask] = scene.half * bent[:, :, None]
    return motion._replace(flow=flow, detour=detour)


def who_is_who(subjects: Tensor, first: Sequence[Part], last: Sequence[Part]) -> list[Pair]:
    """The part that each subject is in each picture, no two the same; None where it is not seen.

    Args:
        subjects: ``(s, 2, 4, 4)``, as :class:`~pixeldance.models.reading.Said` has them.
        first: Parts of the first picture.
        last: Parts of the last picture.

    Returns:
        For each subject its parts in the first and in the last picture.
    """
    if not len(subjects):
        return []
    pairs = [(here, there) for here in (*first, None) for there in (*last, None)]
    costs = subjects.new_tensor([[_cost(subject, *pair) for pair in pairs] for subject in subjects])
    clashes = subjects.new_tensor([[_clash(one, other) for other in pairs] for one in pairs])
    numbers = torch.arange(len(pairs), device=subjects.device)
    ways = torch.cartesian_prod(*[numbers] * len(subjects)).view(-1, len(subjects)).mT
    total = sum(cost[way] for cost, way in zip(costs, ways, strict=True))
    for one, other in itertools.combinations(ways, 2):
        total = total + clashes[one, other]
    return [pairs[number] for number in ways[:, total.argmin()].tolist()]


def _clash(one: Pair, other: Pair) -> float:
    """Infinite if two subjects would be the same part."""
    same = any(a is b and a is not None for a, b in zip(one, other, strict=True))
    return torch.inf if same else 0.0


def _cost(subject: Tensor, here: Part | None, there: Part | None) -> float:
    """What speaks against a subject being this part of the first and that of the last picture."""
    onwards, back = subject[:, -1, :2]
    used = _NOBODY * sum(part.side for part in (here, there) if part is not None)
    if here is not None and there is not None:
        way = there.centre - here.centre
        cost = _FARTHER * min((way - onwards).norm().item(), (way + back).norm().item())
        cost += _OTHER_COLOUR * (here.colour - there.colour).abs().mean().item()
        if not (here.is_cut_off or there.is_cut_off):
            grown = math.log(there.side / here.side)
            cost += _LARGER * abs(grown - subject[0, -1, 2].item())
    elif here is not None:
        cost = _cost_of_leaving(here.centre + onwards)
    elif there is not None:
        cost = _cost_of_leaving(there.centre + back)
    else:
        cost = _IN_NONE
    return cost - used


def _cost_of_leaving(to: Tensor) -> float:
    return _IN_ONE + _NOT_OUTSIDE * max(_OUTSIDE - to.abs().max().item(), 0.0)


def _stretched(path: Tensor, end: Tensor) -> Tensor:
    """Detours ``(3, 2)`` of a path ``(4, 2)`` of the text that must end elsewhere, ``(2,)``.

    What goes straight, but not at a constant pace, does so over the whole way. What bends aside, as
    a jump does, does so by as much as ever.
    """
    told = path[-1]
    is_long = told.abs() > _LONG
    share = path[:-1] / torch.where(is_long, told, 1.0)
    is_straight = ((share > -_ASTRAY) & (share < 1 + _ASTRAY)).all(0)
    stretch = (end / torch.where(is_long, told, 1.0)).clamp(0, _MOST_STRETCH)
    bent = detour_of(path[:, :, None, None])[:, :, 0, 0]
    return bent * torch.where(is_long & is_straight, stretch, 1.0)


class _Scene:
    """The two pictures of a clip; all lengths are in halves of the picture's sides.

    Args:
        pictures: ``(2, 3, height, width)`` in [-1, 1].
        front: ``(2, h, w)`` bool, what lies in front in them.
        flow: ``(2, 2, h, w)``, where it goes, in pixels.
    """

    def __init__(self, pictures: Tensor, front: Tensor, flow: Tensor) -> None:
        rows, columns = front.shape[1:]
        self.half = flow.new_tensor([columns, rows])[:, None] * FINE / 2
        self.grid = positions(rows, columns, front.device)
        self.front = front
        self.colours = F.avg_pool2d(pictures.float(), FINE)
        self.flow = flow / self.half[:, :, None]

    def parts(self, end: int, *, at_least: int) -> list[Part]:
        """What lies in front at one end, the largest first.

        Args:
            end: 0 for the first picture, 1 for the last one.
            at_least: How many there should be; if there are fewer, parts are divided by what they
                are found as in the other picture.
        """
        masks = self._large(connected(self.front[end]))
        if len(masks) < at_least:
            others = self._large(connected(self.front[1 - end]))
            found = [self._found(end, other) for other in others]
            masks = [piece for mask in masks for piece in self._divided(mask, found)]
        masks.sort(key=lambda mask: -int(mask.sum()))
        return [self._part(end, mask) for mask in masks[:_MOST_PARTS]]

    def arrived(self, end: int, here: Part, there: Part) -> Tensor:
        """Displacements ``(2, k)`` of the places of one part that becomes another one.

        They keep their own as far as these agree on one similarity, or else follow it; if too few
        land there at all, the centre goes to the centre.
        """
        own = self.half * self.flow[end][:, here.mask]
        lands = self._lands(end, there.mask)[here.mask]
        if lands.float().mean() > _LANDS:
            places = torch.complex(*(self.half * self.grid[:, here.mask]))
            moved = places + torch.complex(*own)
            matches = Matches(places[None], moved[None], lands[None] + 1e-6)
            as_one = similarities(matches, 1)[0].flow(places[None])[0, :, 0]
            is_astray = (as_one - own).norm(dim=0) > _APART
            return torch.where(is_astray | ~lands, as_one, own) / self.half
        is_whole = not (here.is_cut_off or there.is_cut_off)
        return self._moved(
            here, there.centre - here.centre, there.side / here.side if is_whole else 1
        )

    def left(self, here: Part, told: Tensor) -> Tensor:
        """Displacements ``(2, k)`` of a part that leaves as told, ``(4,)``, all of it."""
        way = told[:2]
        axis = int(way.abs().argmax())
        to_edge = 1 + here.reach[axis] - here.centre[axis] * way[axis].sign()
        longer = (to_edge / way[axis].abs().clamp(min=_LONG)).clamp(1, _MOST_FARTHER)
        return self._moved(here, longer * way, told[2].exp().item())

    def _moved(self, part: Part, way: Tensor, scale: float) -> Tensor:
        around = self.grid[:, part.mask] - part.centre[:, None]
        return way[:, None] + (scale - 1) * around

    def _lands(self, end: int, mask: Tensor) -> Tensor:
        """Places ``(h, w)`` of one picture that go to, or beside, a mask of the other one."""
        wide = F.max_pool2d(mask[None].float(), 3, stride=1, padding=1)[0] > 0
        return self._fetched(end, wide) & ((self.grid + self.flow[end]).abs() < 1).all(0)

    def _fetched(self, end: int, values: Tensor) -> Tensor:
        """Values ``(..., h, w)`` of the other picture where the places of this one go."""
        rows, columns = values.shape[-2:]
        x, y = (self.grid + self.flow[end] + 1) / 2
        row = (y * rows).floor().long().clamp(0, rows - 1)
        column = (x * columns).floor().long().clamp(0, columns - 1)
        return values[..., row, column]

    def _found(self, end: int, front: Tensor) -> Tensor:
        """Places ``(h, w)`` that go to something in front of the same colour."""
        other = self._fetched(end, self.colours[1 - end])
        is_alike = (self.colours[end] - other).abs().mean(0) < _SAME_COLOUR
        return self._lands(end, front) & is_alike

    def _divided(self, mask: Tensor, found: list[Tensor]) -> list[Tensor]:
        """The pieces of a part by what they are found as, or the part if all but one are small."""
        lost = ~torch.stack([*found, torch.zeros_like(mask)]).any(0)
        votes = torch.stack([mask & each for each in (*found, lost)]).float()
        votes = F.avg_pool2d(votes[None], _SMOOTHED, stride=1, padding=_SMOOTHED // 2)[0]
        winner = votes.argmax(0)
        pieces = [
            piece
            for number in range(len(votes))
            for piece in self._large(connected(mask & (winner == number)))
            if piece.sum() >= _SOMEBODY_ELSE * mask.sum()
        ]
        return pieces if len(pieces) > 1 else [mask]

    def _large(self, masks: list[Tensor]) -> list[Tensor]:
        return [mask for mask in masks if mask.sum() >= _SMALLEST * mask.numel()]

    def _part(self, end: int, mask: Tensor) -> Part:
        places = self.grid[:, mask]
        step = 2 / places.new_tensor(mask.shape[::-1])
        low, high = places.amin(1) - step / 2, places.amax(1) + step / 2
        return Part(
            mask,
            centre=places.mean(1),
            reach=(high - low) / 2,
            side=2 * float(mask.float().mean()) ** 0.5,
            colour=self.colours[end][:, mask].mean(1),
            is_cut_off=bool((low < step / 2 - 1).any() or (high > 1 - step / 2).any()),
        )


def connected(mask: Tensor) -> list[Tensor]:
    """The connected parts of a mask ``(h, w)``, also over corners, as masks."""
    numbers = (torch.arange(mask.numel(), device=mask.device) + 1.0).view(mask.shape) * mask
    while True:  # the largest number of a part spreads over it
        spread = F.max_pool2d(numbers[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, numbers):
            break
        numbers = spread
    return [numbers == number for number in numbers[mask].unique()]
