"""Pictures that a clip is known to contain, and which of them help which latent frames."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixeldance.errors import InputError
from pixeldance.models.alignment import GROUP
from pixeldance.models.carrying import Motion


class References(NamedTuple):
    """Pictures that a clip is known to contain, handed to the decoder.

    Attributes:
        pictures: ``(batch, r, 3, height, width)`` in [-1, 1]. Where there are more than two, every
            latent frame is helped by the two around it.
        frames: ``(batch, r)`` int64, the pixel frame at which each stands, increasing.
        present: ``(batch, r)`` bool; of False entries only the frame counts: of two, it is the end
            of the clip at which no picture is given.
        text: Token states of the prompt ``(batch, tokens, text_dim)``, zeros after the real ones:
            it tells how things move between the first and the last frame. None is no text.
        is_lent: ``(batch, r)`` bool, whose pixels may be taken; the others only tell where things
            go. None is all that are present.
    """

    pictures: Tensor
    frames: Tensor
    present: Tensor
    text: Tensor | None = None
    is_lent: Tensor | None = None

    @property
    def lent(self) -> Tensor:
        """Which are present and lend their pixels, ``(batch, r)`` bool."""
        return self.present if self.is_lent is None else self.present & self.is_lent

    def select(self, rows: Sequence[int]) -> "References":
        """Those of some clips of the batch."""
        index = list(rows)
        return References(
            self.pictures[index],
            self.frames[index],
            self.present[index],
            None if self.text is None else self.text[index],
            None if self.is_lent is None else self.is_lent[index],
        )


class PreparedReferences(NamedTuple):
    """Two references and what is found out about them once for all frames of a clip.

    Attributes:
        given: The references; added ones are absent, and so are those that lend no pixels.
        coarse: ``(batch, 2, 3, height, width)``, what the projection keeps of them.
        motion: Between them; None if nothing is given.
    """

    given: References
    coarse: Tensor
    motion: Motion | None

    def select(self, rows: Sequence[int]) -> "PreparedReferences":
        """Those of some clips of the batch."""
        motion = None if self.motion is None else self.motion.select(rows)
        return PreparedReferences(self.given.select(rows), self.coarse[list(rows)], motion)


class Shot(NamedTuple):
    """Latent frames that the same references help, and what is known of them beforehand.

    Attributes:
        groups: Which latent frames of the clip.
        references: Up to two, prepared.
        drafted: ``(batch, len(groups), 4, 3, height, width)``, float32, what the references make
            by themselves; None if nothing is given.
    """

    groups: range
    references: PreparedReferences
    drafted: Tensor | None


def gaps(references: References, num_groups: int) -> list[tuple[range, References]]:
    """Latent frames, and the references that help them: at most two.

    Args:
        references: Of the whole clip.
        num_groups: Latent frames of the clip.

    Returns:
        All latent frames in order, each range with its references.

    Raises:
        InputError: If there are more than two, but not at the same, increasing frames in all clips.
    """
    count = references.frames.shape[1]
    if count <= 2:
        return [(range(num_groups), references)]
    frames = references.frames[0].tolist()
    if (references.frames != references.frames[:1]).any() or sorted(set(frames)) != frames:
        raise InputError(
            "more than two references must stand at the same, increasing frames in all clips, got "
            f"{references.frames.tolist()}. Decode the clips one by one, and sort their references."
        )
    pairs = {group: _around(frames, GROUP * group) for group in range(num_groups)}
    stretches: list[tuple[range, tuple[int, int]]] = []
    for group, pair in pairs.items():
        if stretches and stretches[-1][1] == pair:
            stretches[-1] = (range(stretches[-1][0].start, group + 1), pair)
        else:
            stretches.append((range(group, group + 1), pair))
    # the text is about the whole clip, not about a small part of it
    half = (frames[-1] - frames[0]) / 2
    return [
        (
            groups,
            References(
                references.pictures[:, list(pair)],
                references.frames[:, list(pair)],
                references.present[:, list(pair)],
                references.text if frames[pair[1]] - frames[pair[0]] > half else None,
                references.lent[:, list(pair)],
            ),
        )
        for groups, pair in stretches
    ]


def shots(
    references: References, num_groups: int, cut_at: Tensor
) -> list[tuple[range, References]]:
    """Latent frames, and what helps them where there may be a cut between two pictures.

    The first half of a clip with a cut is helped by the first picture and the text before the cut
    only, the second one by the last picture and the text after it. Without both pictures' pixels
    there is but one shot.

    Args:
        references: Two, of the whole clip.
        num_groups: Latent frames of the clip.
        cut_at: ``(batch,)`` int64, which token of the text asks for one, or -1; it counts where
            both pictures are given.

    Returns:
        All latent frames in order, each range with its references.
    """
    asked, lent = cut_at >= 0, references.lent
    references = references._replace(
        present=torch.where(asked[:, None], lent, references.present), is_lent=lent
    )
    is_cut = (asked & lent.all(1))[:, None]
    if references.text is None or not is_cut.any():
        return gaps(references, num_groups)
    middle = float(references.frames[0].float().mean())
    split = sum(GROUP * group <= middle for group in range(num_groups))
    last = GROUP * math.floor(middle / GROUP)  # frame before the cut
    before, after = _texts_around(references.text, cut_at)
    is_last = torch.tensor([False, True], device=is_cut.device)
    halves = [
        (range(split), is_cut & is_last, last, before),
        (range(split, num_groups), is_cut & ~is_last, last + 1, after),
    ]
    return [
        (
            groups,
            references._replace(
                frames=torch.where(is_hidden, end, references.frames),
                present=references.present & ~is_hidden,
                text=torch.where(is_cut[:, :, None], text, references.text),
            ),
        )
        for groups, is_hidden, end, text in halves
        if len(groups)
    ]


def _texts_around(text: Tensor, cut_at: Tensor) -> tuple[Tensor, Tensor]:
    """Token states before one of them, and after it; both begin with the first one of all."""
    place = torch.arange(text.shape[1], device=text.device)
    before = text * (place < cut_at[:, None])[:, :, None]
    source = torch.where(place == 0, 0, place + cut_at[:, None].clamp(min=0))
    is_there = source < text.shape[1]
    index = source.clamp(max=text.shape[1] - 1)[:, :, None].expand_as(text)
    return before, text.gather(1, index) * is_there[:, :, None]


def _around(frames: Sequence[int], last_frame: int) -> tuple[int, int]:
    """Which two references stand around a latent frame; outside all, the outermost ones."""
    for index in range(len(frames) - 1):
        after = last_frame > frames[index] or (index == 0 and last_frame == frames[0])
        if after and last_frame <= frames[index + 1]:
            return index, index + 1
    return 0, len(frames) - 1
