"""How things move between the first and the last picture, as the pictures and the text tell.

For every part of each picture: where it goes until the other end of the clip, how its path departs
from uniform motion, and whether it lies in front. Where both pictures are given, the few motions
that explain most of what is alike in them (``matching.py``) are candidates. Two more are what the
text says (``reading.py``) of the camera and of the subject, corrected by a transformer over cells
of 16 x 16 pixels; these also hold where only one picture is given. A network at 1/4 of the
resolution chooses between the candidates per place, corrects, and says what lies in front. What
turns or grows goes the way of a constant pace, and what the text surely says goes its way: a jump
rises and falls. ``carrying.py`` brings the pictures to any time.

References:
    Wang and Adelson 1994, Representing moving images with layers, https://doi.org/10.1109/83.334981
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixeldance.models.carrying import FINE, NUM_DETOURS, Motion, detour_of
from pixeldance.models.layers import ResidualBlock, as_input, warp, zeroed
from pixeldance.models.matching import (
    CELL,
    PATCH_VALUES,
    Similarity,
    best_match,
    described,
    matches_of,
    places,
    positions,
    similarities,
)
from pixeldance.models.reading import (
    NUM_MOMENTS,
    NUM_SUBJECTS,
    PARAMETERS,
    Said,
    TextReader,
    decoder_layer,
)

FLOW_UNIT = 32.0  # pixels that count as 1 in channels that hold displacements
_NUM_MOTIONS = 4  # candidates that hold for a part of the picture
NUM_CANDIDATES = _NUM_MOTIONS + 1  # single matches are one more
# choice (candidates, camera, cells), correction of the flow, front, bend, whether as told for cells
_OUTPUTS = (NUM_CANDIDATES + 2, 2, 1, 1, 1)
_TOKEN = 16  # side of the cells that the transformer sees
_LAYERS = 3
_IN_FRONT = 0.5  # how likely something must be in front to move with it, not with the camera
_SURER = 3  # power of the odds
_WHO = 24  # length of what tells whether a subject is at a place
_FIRST = 4.0  # how much likelier the subject named first is before anything is learned
_LONG = 0.15  # halves of a side from which a path is stretched to where it must end
_MOST_STRETCH = 2.0


class Candidates(NamedTuple):
    """Displacements that may hold, on the grid of :class:`Motion`; zero without two pictures.

    Attributes:
        flow: ``(n, 2, m, 2, h, w)``, from each picture into the other one, in pixels.
        likeness: ``(n, 2, m, h, w)`` in [-1, 1], of the descriptors there.
        difference: ``(n, 2, m, h, w)``, of the colours there.
        detour: ``(n, 2, m, 3, 2, h, w)``, from uniform motion, as :class:`Motion` has it: what
            turns or grows at a constant pace does not go straight.
    """

    flow: Tensor
    likeness: Tensor
    difference: Tensor
    detour: Tensor


class Told(NamedTuple):
    """What the transformer makes of pictures and text: paths, on the grid of :class:`Motion`.

    Attributes:
        camera: ``(n, 2, 4, 2, h, w)``, displacements of what stands still, after 1/4, 2/4, 3/4 and
            all of the way, in pixels.
        cells: The same of what lies in front.
        who: ``(n, 2, 3, h, w)``, log-likelihood of each subject being what is in front there.
        said: What the text alone says.
    """

    camera: Tensor
    cells: Tensor
    who: Tensor
    said: Said


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
        self.tell_who = nn.Linear(token, _WHO)
        self.ask_who = nn.Linear(token, _WHO)
        nn.init.zeros_(self.ask_who.weight)
        nn.init.zeros_(self.ask_who.bias)
        self.who_bias = nn.Parameter(torch.tensor([_FIRST, 0.0, 0.0]))
        self.mismatch_weight = nn.Parameter(torch.tensor(8.0))
        nn.init.zeros_(self.tell_camera.weight)
        nn.init.zeros_(self.tell_camera.bias)
        self.from_tokens = nn.ConvTranspose2d(token, coarse, 2, stride=2)
        self.bottom = ResidualBlock(coarse)
        self.from_coarse = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.up_fine = nn.Sequential(ResidualBlock(fine), ResidualBlock(fine))
        self.leave = nn.Sequential(
            nn.GroupNorm(8, fine),
            nn.SiLU(),
            zeroed(nn.Conv2d(fine, sum(_OUTPUTS), 3, padding=1)),
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
        found = no_candidates(pictures)
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
        ways = [(motion, motion.inverse()) for motion in motions]
        paths = [torch.stack([_path(m, grid) for m in way], dim=1) for way in ways]
        flow = torch.stack([*(path[:, :, -1] for path in paths), single], dim=2)
        bends = [detour_of(path) for path in paths]
        detour = torch.stack([*bends, torch.zeros_like(bends[0])], dim=2)
        # a descriptor lies a pixel and a half after the centre of its place, of which there are 4
        own = F.pad(descriptors, (1, 0, 1, 0), mode="replicate")[:, :, :-1:2, :-1:2]
        colours = F.avg_pool2d(flat, FINE)
        likeness, difference = [], []
        for candidate in flow.unbind(2):
            shift = rearrange(candidate, "n r d h w -> (n r) d h w") / FINE
            likeness.append((own * warp(_other(own), shift)).sum(1))
            difference.append((colours - warp(_other(colours), shift)).abs().mean(1))
        return Candidates(
            flow, _paired(torch.stack(likeness, 1)), _paired(torch.stack(difference, 1)), detour
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
        cells, thought = self._thought(self.to_tokens(coarse), said)
        coarse = coarse + self.from_tokens(as_input(cells, self.from_tokens))
        fine = fine + self.from_coarse(self.bottom(coarse))
        made = _paired(self.leave(self.up_fine(fine)).float())
        choice, correction, front, bend, as_told = made.split(_OUTPUTS, dim=2)
        front, bend = front.sigmoid(), bend.sigmoid()
        told = self._told(cells, thought, said, front)

        is_pair = present.all(1)[:, None, None, None, None]
        matched, from_text = choice.split([NUM_CANDIDATES, 2], dim=2)
        matched = matched + self.likeness_weight * candidates.likeness
        logits = torch.cat([torch.where(is_pair, matched, -1.0e4), from_text], dim=2)
        if is_mixed:
            share = logits.softmax(dim=2)
        else:  # half of one displacement and half of another one tears things to pieces
            front = torch.where(is_pair, front, _surer(front))
            share = torch.zeros_like(logits).scatter(2, logits.argmax(2, keepdim=True), 1.0)
        is_front = front > _IN_FRONT
        flows = torch.cat([candidates.flow, told.camera[:, :, -1:], told.cells[:, :, -1:]], dim=2)
        flow = (share[:, :, :, None] * flows).sum(2) + FINE * correction
        alone = torch.where(is_front, told.cells[:, :, -1], told.camera[:, :, -1])
        flow = torch.where(is_pair, flow, alone)

        of_camera, of_cells = detour_of(told.camera), detour_of(told.cells)
        detours = torch.cat([candidates.detour, of_camera[:, :, None], of_cells[:, :, None]], dim=2)
        detour = (share[:, :, :, None, None] * detours).sum(2)
        # between two pictures, text counts only where it is sure that a path bends
        of_subject = self._stretched(said, told.who, flow.detach(), of_cells, as_told)
        as_said = torch.where(is_front[:, :, None], of_subject, of_camera)
        alone = torch.where(is_front[:, :, None], of_cells, of_camera)
        detour = torch.lerp(detour, as_said, bend[:, :, None])
        return Motion(flow, front, torch.where(is_pair[:, :, None], detour, alone)), told

    def _thought(self, cells: Tensor, said: Said) -> tuple[Tensor, Tensor]:
        """Cells ``(n 2) c h w`` after the transformer, and the tokens ``n 8 c`` of the text."""
        height, width = cells.shape[-2:]
        tokens = rearrange(cells, "(n r) c h w -> n (r h w) c", r=2)
        first = said.tokens.shape[1]
        tokens = torch.cat([said.tokens.to(tokens.dtype), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, said.text, memory_key_padding_mask=said.padding)
        tokens = self.norm(tokens)
        cells = rearrange(tokens[:, first:], "n (r h w) c -> (n r) c h w", r=2, h=height, w=width)
        return cells, tokens[:, :first]

    def _told(self, cells: Tensor, thought: Tensor, said: Said, front: Tensor) -> Told:
        """What the text said, corrected by what the pictures show."""
        height, width = (FINE * side for side in front.shape[-2:])
        half = torch.tensor([width / 2, height / 2], device=cells.device)
        camera = self.tell_camera(thought[:, :2]).float()
        camera = rearrange(camera, "n r (k p) -> n r k p", k=NUM_MOMENTS) + said.camera
        grid = places(height // FINE, width // FINE, FINE, cells.device) - torch.complex(*half)
        told = self.tell_cells(as_input(cells, self.tell_cells)).float()
        finer = F.interpolate(told, scale_factor=_TOKEN // FINE, mode="bilinear")
        finer = rearrange(finer, "(n r) (k d) h w -> n r k d h w", r=2, d=2)
        who = self._who(cells, thought, said)
        share = (who + self.who_bias[:, None, None]).softmax(2)
        seen = share * front.detach() + 1e-6
        centre = (seen * grid).sum((3, 4)) / seen.sum((3, 4))  # n r s
        around = grid - centre[:, :, :, None, None, None]
        subject = torch.zeros_like(finer)
        for number in range(NUM_SUBJECTS):
            moved = _moved(said.subjects[:, number], around[:, :, number], half)
            subject = subject + share[:, :, None, None, number] * moved
        subject = subject + finer * half[:, None, None]
        return Told(_moved(camera, grid, half), subject, who, said)

    def _who(self, cells: Tensor, thought: Tensor, said: Said) -> Tensor:
        """Log-likelihoods ``(n, 2, 3, h, w)`` on the grid of the motion."""
        subjects = rearrange(thought[:, 2:], "n (s r) c -> n s r c", r=2)
        here = self.tell_who(rearrange(cells, "(n r) c h w -> n r h w c", r=2))
        alike = torch.einsum("nrhwd,nsrd->nrshw", here.float(), self.ask_who(subjects).float())
        alike = rearrange(alike, "n r s h w -> (n r) s h w")
        finer = F.interpolate(alike, scale_factor=_TOKEN // FINE, mode="bilinear")
        return _paired(finer) + F.logsigmoid(said.named)[:, None, :, None, None]

    def _stretched(
        self, said: Said, who: Tensor, flow: Tensor, of_cells: Tensor, as_told: Tensor
    ) -> Tensor:
        """Detours ``(n, 2, 3, 2, h, w)`` of what is in front, stretched to where paths end.

        It goes the way of the subject whose path ends there, or as told for the cells.
        """
        height, width = (FINE * side for side in flow.shape[-2:])
        half = torch.tensor([width / 2, height / 2], device=flow.device)[:, None, None]
        path = rearrange(said.subjects[..., :2], "n s r k d -> n r s k d 1 1")
        wanted, end = (flow / half)[:, :, None], path[:, :, :, -1]
        ratio = wanted / torch.where(end.abs() > _LONG, end, 1.0)
        stretch = torch.where(end.abs() > _LONG, ratio.clamp(0, _MOST_STRETCH), 1.0)
        detours = detour_of(path) * half * stretch[:, :, :, None]
        mismatch = (wanted - end).norm(dim=3)
        logits = torch.cat([who - self.mismatch_weight * mismatch, as_told], dim=2)
        detours = torch.cat([detours, of_cells[:, :, None]], dim=2)
        return (logits.softmax(2)[:, :, :, None, None] * detours).sum(2)


def _path(motion: Similarity, grid: Tensor) -> Tensor:
    """Displacements ``(n, 4, 2, h, w)`` of the complex places ``(h, w)`` at a constant pace."""
    parts = [motion.part(moment / NUM_MOMENTS) for moment in range(1, NUM_MOMENTS)]
    return torch.stack([part.flow(grid) for part in (*parts, motion)], dim=1)


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
    position = positions(rows, columns, present.device)
    end = torch.tensor([-1.0, 1.0], device=present.device).expand(len(present), 2)
    facts = torch.stack([end, present.float(), present.flip(1).float()], dim=2)
    return torch.cat(
        [
            position.expand(2 * len(present), -1, -1, -1),
            rearrange(facts, "n r f -> (n r) f 1 1").expand(-1, -1, rows, columns),
        ],
        dim=1,
    )


def no_candidates(pictures: Tensor) -> Candidates:
    """Those of clips that lack a picture.

    Args:
        pictures: ``(n, 2, 3, height, width)``.

    Returns:
        Zeros, float32, on their device.
    """
    rows, columns = (side // FINE for side in pictures.shape[-2:])
    inner = ((2,), (), (), (NUM_DETOURS, 2))
    shape, device = (len(pictures), 2, NUM_CANDIDATES), pictures.device
    return Candidates(*(torch.zeros(*shape, *v, rows, columns, device=device) for v in inner))


def _other(values: Tensor) -> Tensor:
    """Rows ``(n 2)`` with the two of each pair exchanged."""
    return rearrange(rearrange(values, "(n r) ... -> n r ...", r=2).flip(1), "n r ... -> (n r) ...")


def _paired(values: Tensor) -> Tensor:
    return rearrange(values, "(n r) ... -> n r ...", r=2)
