"""How things move between the first and the last picture, as the pictures and the text tell.

For every part of each picture: where it goes until the other end of the clip, how its path departs
from uniform motion, and whether it lies in front. Where both pictures are given, the few motions
that explain most of what is alike in them (``matching.py``) are candidates. Two more are what the
text says (``reading.py``) of the camera and of the subject, corrected by a transformer over cells
of 16 x 16 pixels; these also hold where only one picture is given. A network at 1/4 of the
resolution chooses between the candidates per place, corrects, and says what lies in front. Forward
splatting, in which what lies in front hides what lies behind, carries the pictures to any time.

References:
    Wang and Adelson 1994, Representing moving images with layers, https://doi.org/10.1109/83.334981
    Niklaus and Liu 2020, Softmax Splatting, https://arxiv.org/abs/2003.05534 (equation 9).
"""

from collections.abc import Sequence
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
from pixeldance.models.reading import (
    NUM_MOMENTS,
    PARAMETERS,
    Said,
    TextReader,
    decoder_layer,
)

FINE = 4  # motion is given at 1/4 of the resolution
FLOW_UNIT = 32.0  # pixels that count as 1 in channels that hold displacements
NUM_DETOURS = NUM_MOMENTS - 1  # inner moments at which a path is told
_NUM_MOTIONS = 4  # candidates that hold for a part of the picture
NUM_CANDIDATES = _NUM_MOTIONS + 1  # single matches are one more
_TOKEN = 16  # side of the cells that the transformer sees
_LAYERS = 3
_IN_FRONT = 0.5  # how likely something must be in front to move with it, not with the camera
_SURER = 3  # power of the odds
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
            motion would have brought it after 1/4, 2/4 and 3/4 of the way, in pixels; zero between
            two pictures.
        behind: ``(n, 2, 3, height, width)``, the pictures with what is around it in place of what
            is in front, for where no other picture shows it; None where every clip has two.
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


class Candidates(NamedTuple):
    """Displacements that may hold, on the grid of :class:`Motion`; zero without two pictures.

    Attributes:
        flow: ``(n, 2, m, 2, h, w)``, from each picture into the other one, in pixels.
        likeness: ``(n, 2, m, h, w)`` in [-1, 1], of the descriptors there.
        difference: ``(n, 2, m, h, w)``, of the colours there.
    """

    flow: Tensor
    likeness: Tensor
    difference: Tensor


class Told(NamedTuple):
    """What the transformer makes of pictures and text: paths, on the grid of :class:`Motion`.

    Attributes:
        camera: ``(n, 2, 4, 2, h, w)``, displacements of what stands still, after 1/4, 2/4, 3/4 and
            all of the way, in pixels.
        cells: The same of what lies in front.
    """

    camera: Tensor
    cells: Tensor


class PictureMotion(nn.Module):
    """Estimates the motion between the two ends of a clip.

    Args:
        descriptor_channels: Length of the descriptors of patches.
        channels: Widths of the network at 1/4, at 1/8 and at 1/16 of the resolution.
        text_dim: Width of the text's token states.
    """

    def __init__(
        self,
        descriptor_channels: int = 64,
        channels: tuple[int, int, int] = (64, 96, 160),
        text_dim: int = 384,
    ) -> None:
        super().__init__()
        fine, coarse, token = channels
        self.filters = nn.Parameter(
            torch.zeros(descriptor_channels, PATCH_VALUES), requires_grad=False
        )
        self.likeness_weight = nn.Parameter(torch.tensor(16.0))
        self.enter = nn.Conv2d(3 * FINE**2 + 4 * NUM_CANDIDATES, fine, 1)
        self.enter_place = nn.Conv2d(5, fine, 1)  # position, which end, which are given
        self.down_fine = ResidualBlock(fine)
        self.to_coarse = nn.Conv2d(fine, coarse, 2, stride=2)
        self.down_coarse = ResidualBlock(coarse)
        self.to_tokens = nn.Conv2d(coarse, token, 2, stride=2)
        self.reader = TextReader(text_dim, token)
        self.layers = nn.ModuleList(decoder_layer(token) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(token)
        self.tell_camera = nn.Linear(token, NUM_MOMENTS * PARAMETERS)
        self.tell_cells = zeroed(nn.Conv2d(token, NUM_MOMENTS * 2, 1))
        nn.init.zeros_(self.tell_camera.weight)
        nn.init.zeros_(self.tell_camera.bias)
        self.from_tokens = nn.ConvTranspose2d(token, coarse, 2, stride=2)
        self.bottom = ResidualBlock(coarse)
        self.from_coarse = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.up_fine = nn.Sequential(ResidualBlock(fine), ResidualBlock(fine))
        self.leave = nn.Sequential(
            nn.GroupNorm(8, fine),
            nn.SiLU(),
            # choice, correction of the flow, front
            zeroed(nn.Conv2d(fine, NUM_CANDIDATES + 2 + 3, 3, padding=1)),
        )

    def forward(
        self, pictures: Tensor, present: Tensor, text: Tensor, *, is_mixed: bool = False
    ) -> tuple[Motion, Told]:
        """Estimate.

        Args:
            pictures: ``(n, 2, 3, height, width)`` in [-1, 1], sides multiples of 16; anything where
                absent.
            present: ``(n, 2)`` bool.
            text: Token states ``(n, tokens, text_dim)``, zeros after the real ones; none at all are
                no text.
            is_mixed: Whether candidates are mixed by how likely they are, for training; else each
                place takes the likeliest.

        Returns:
            The motion, float32, and what the transformer told on the way; those of absent pictures
            are meaningless.
        """
        candidates = self.candidates(pictures, present)
        return self.chosen(pictures, present, candidates, text, is_mixed=is_mixed)

    @torch.no_grad()
    def candidates(self, pictures: Tensor, present: Tensor) -> Candidates:
        """Displacements that may hold where both pictures are given.

        Args:
            pictures: As for ``forward``.
            present: As for ``forward``.

        Returns:
            Those of the motions that explain most, the strongest first, and those of single
            matches.
        """
        rows, columns = (side // FINE for side in pictures.shape[-2:])
        shape = (len(pictures), 2, NUM_CANDIDATES)
        found = Candidates(
            pictures.new_zeros(*shape, 2, rows, columns, dtype=torch.float32),
            pictures.new_zeros(*shape, rows, columns, dtype=torch.float32),
            pictures.new_zeros(*shape, rows, columns, dtype=torch.float32),
        )
        both = present.all(1)
        if both.any():
            for values, made in zip(found, self._matched(pictures[both].float()), strict=True):
                values[both] = made
        return found

    def _matched(self, pictures: Tensor) -> Candidates:
        """Candidates of two pictures ``(n, 2, 3, height, width)``."""
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

    def chosen(
        self,
        pictures: Tensor,
        present: Tensor,
        candidates: Candidates,
        text: Tensor,
        *,
        is_mixed: bool = False,
    ) -> tuple[Motion, Told]:
        """Read the text, choose per place, and correct.

        Args:
            pictures: As for ``forward``.
            present: As for ``forward``.
            candidates: Of these pictures.
            text: As for ``forward``.
            is_mixed: As for ``forward``.

        Returns:
            The motion, float32, and what the transformer told.
        """
        pictures = pictures * present[:, :, None, None, None]
        inputs = torch.cat(
            [
                F.pixel_unshuffle(rearrange(pictures, "n r c h w -> (n r) c h w"), FINE),
                rearrange(candidates.flow, "n r m d h w -> (n r) (m d) h w") / FLOW_UNIT,
                rearrange(candidates.likeness, "n r m h w -> (n r) m h w"),
                rearrange(candidates.difference, "n r m h w -> (n r) m h w"),
            ],
            dim=1,
        )
        where = _where(present, inputs.shape[-2:])
        fine = self.enter(as_input(inputs, self.enter))
        fine = self.down_fine(fine + self.enter_place(as_input(where, self.enter_place)))
        coarse = self.down_coarse(self.to_coarse(fine))
        said = self.reader(text)
        cells, cameras = self._thought(self.to_tokens(coarse), said)
        coarse = coarse + self.from_tokens(as_input(cells, self.from_tokens))
        fine = fine + self.from_coarse(self.bottom(coarse))
        made = _paired(self.leave(self.up_fine(fine)).float())
        front = made[:, :, NUM_CANDIDATES + 4 :].sigmoid()
        told = self._told(cells, cameras, said, front)

        count = NUM_CANDIDATES
        is_pair = present.all(1)[:, None, None, None, None]
        logits = made[:, :, :count] + self.likeness_weight * candidates.likeness
        logits = torch.cat(
            [torch.where(is_pair, logits, -1.0e4), made[:, :, count : count + 2]], dim=2
        )
        if is_mixed:
            share = logits.softmax(dim=2)
        else:  # half of one displacement and half of another one tears things to pieces
            front = torch.where(is_pair, front, _surer(front))
            share = torch.zeros_like(logits).scatter(2, logits.argmax(2, keepdim=True), 1.0)
        flows = torch.cat([candidates.flow, told.camera[:, :, -1:], told.cells[:, :, -1:]], dim=2)
        flow = (share[:, :, :, None] * flows).sum(2) + FINE * made[:, :, count + 2 : count + 4]
        path = torch.where(front[:, :, None] > _IN_FRONT, told.cells, told.camera)
        flow = torch.where(is_pair, flow, path[:, :, -1])
        elapsed = _moments(path.device)
        detour = path[:, :, :-1] - elapsed[:, None, None, None] * path[:, :, -1:]
        # between two pictures, errors of a path show more than that it bends
        return Motion(flow, front, detour * ~is_pair[..., None]), told

    def _thought(self, cells: Tensor, said: Said) -> tuple[Tensor, Tensor]:
        """Cells ``(n 2) c h w`` after the transformer, and the cameras' tokens ``n 2 c``."""
        height, width = cells.shape[-2:]
        tokens = rearrange(cells, "(n r) c h w -> n (r h w) c", r=2)
        first = said.tokens.shape[1]
        tokens = torch.cat([said.tokens.to(tokens.dtype), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, said.text, memory_key_padding_mask=said.padding)
        tokens = self.norm(tokens)
        cells = rearrange(tokens[:, first:], "n (r h w) c -> (n r) c h w", r=2, h=height, w=width)
        return cells, tokens[:, :2]

    def _told(self, cells: Tensor, cameras: Tensor, said: Said, front: Tensor) -> Told:
        """What the text said, corrected by what the pictures show."""
        height, width = (FINE * side for side in front.shape[-2:])
        half = torch.tensor([width / 2, height / 2], device=cells.device)
        camera = self.tell_camera(cameras).float()
        camera = rearrange(camera, "n r (k p) -> n r k p", k=NUM_MOMENTS) + said.camera
        grid = places(height // FINE, width // FINE, FINE, cells.device) - torch.complex(*half)
        told = self.tell_cells(as_input(cells, self.tell_cells)).float()
        finer = F.interpolate(told, scale_factor=_TOKEN // FINE, mode="bilinear")
        finer = rearrange(finer, "(n r) (k d) h w -> n r k d h w", r=2, d=2)
        seen = front[:, :, 0].detach() + 1e-6
        centre = (seen * grid).sum((2, 3)) / seen.sum((2, 3))
        subject = _moved(said.subject, grid - centre[:, :, None, None, None], half)
        return Told(_moved(camera, grid, half), subject + finer * half[:, None, None])


def _surer(likely: Tensor) -> Tensor:
    """Farther from 1/2, for where likelihoods in [0, 1] have been decided by it."""
    yes, no = likely**_SURER, (1 - likely) ** _SURER
    return yes / (yes + no)


def _moved(parameters: Tensor, around: Tensor, half: Tensor) -> Tensor:
    """Displacements ``(n, r, k, 2, h, w)`` by similarities ``(n, r, k, 4)``.

    Args:
        parameters: As :class:`Said` has them.
        around: Complex places in pixels, from the point that growing and turning leave in place.
        half: Half of the picture's width and height.
    """
    across, down, log_scale, turn = parameters[..., None, None].unbind(3)
    shift = torch.complex(half[0] * across, half[1] * down)
    moved = torch.exp(torch.complex(log_scale, turn)) * around + shift - around
    return torch.stack([moved.real, moved.imag], dim=3)


def _where(present: Tensor, size: torch.Size) -> Tensor:
    """Position in [-1, 1], which end, and which are given: ``((n 2), 5, h, w)``."""
    rows, columns = size
    y = (torch.arange(rows, device=present.device) + 0.5) * 2 / rows - 1
    x = (torch.arange(columns, device=present.device) + 0.5) * 2 / columns - 1
    position = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    end = torch.tensor([-1.0, 1.0], device=present.device).expand(len(present), 2)
    facts = torch.stack([end, present.float(), present.flip(1).float()], dim=2)
    return torch.cat(
        [
            position.expand(2 * len(present), -1, -1, -1),
            rearrange(facts, "n r f -> (n r) f 1 1").expand(-1, -1, rows, columns),
        ],
        dim=1,
    )


def _moments(device: torch.device) -> Tensor:
    """The inner moments at which a path is told, as shares of the way."""
    return torch.arange(1, NUM_DETOURS + 1, device=device) / (NUM_DETOURS + 1)


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


def _other(values: Tensor) -> Tensor:
    """Rows ``(n 2)`` with the two of each pair exchanged."""
    return rearrange(rearrange(values, "(n r) ... -> n r ...", r=2).flip(1), "n r ... -> (n r) ...")


def _paired(values: Tensor) -> Tensor:
    return rearrange(values, "(n r) ... -> n r ...", r=2)


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
    """How far each place of a picture has gone after ``(n, q)`` of its way: ``(n, q, 2, h, w)``."""
    moments = _moments(elapsed.device)
    hats = (1 - (elapsed[:, :, None] - moments).abs() * (NUM_DETOURS + 1)).clamp(min=0)
    detour = torch.einsum("nqk,nkdhw->nqdhw", hats, motion.detour[:, number])
    return elapsed[:, :, None, None, None] * motion.flow[:, number, None] + detour


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
