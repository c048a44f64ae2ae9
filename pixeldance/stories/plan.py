"""From a story to the clips that are made for it, before any of them is.

A shot longer than what the model makes at once is made of several clips. A clip that goes on gets
a window of the frames before it as key frames, one for each latent frame of its overlap; the
overlap is generated again and dropped. A clip that is led on by pictures of its own gets the last
frame only: measured with the embedded model, the window then brings nothing.

Every clip has a key: a hash of all that goes into it, and of the key of the clip that it goes on
from. So after a change exactly those clips have new keys that must be made again.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pixeldance.backbones.facts import Abilities, ModelFacts
from pixeldance.errors import InputError
from pixeldance.geometry import TEMPORAL_FACTOR, Size, fit_picture, latent_slot, resolve_size
from pixeldance.pictures import load_picture, picture_sha256
from pixeldance.request import GenerationRequest
from pixeldance.stories.story import Shot, Story

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixeldance.api import Model

__all__ = ["Anchor", "PlannedClip", "PlannedShot", "StoryPlan", "Target", "plan_story"]

KEY_VERSION = 1
"""Changes whenever equal inputs give other frames than before."""


@dataclass(frozen=True)
class Target:
    """What must be known of the model to plan a film for it.

    Attributes:
        name: Name of the model.
        sha256: Fingerprint of its weights.
        pixel_budget: Height times width to aim at where a story gives no size.
        size_multiple: Height and width are multiples of this many pixels.
        abilities: What of a story it can follow.
    """

    name: str
    sha256: str
    pixel_budget: int
    size_multiple: int
    abilities: Abilities = field(default_factory=Abilities)

    @classmethod
    def of(cls, model: "Model") -> "Target":
        """The facts of a loaded model.

        Args:
            model: The model.

        Returns:
            Its facts.
        """
        backbone = model.pipeline.backbone
        return cls(
            model.name,
            model.sha256,
            backbone.pixel_budget,
            backbone.size_multiple,
            backbone.abilities,
        )

    @classmethod
    def find(cls, model: str, *, loras: Sequence[str] = ()) -> "Target":
        """The facts of a model that is not loaded, from its folder.

        Args:
            model: Its name, folder or hub id.
            loras: LoRAs that are added to it, each ``[high:|low:]path[:scale]``.

        Returns:
            Its facts. A missing or damaged model is a ``CheckpointError``.
        """
        return cls.described(ModelFacts.read(model, loras=tuple(loras)))

    @classmethod
    def described(cls, facts: ModelFacts) -> "Target":
        """The facts of a model whose configuration has been read.

        Args:
            facts: What it says.

        Returns:
            What a plan needs of it.
        """
        return cls(
            facts.name, facts.sha256, facts.pixel_budget, facts.size_multiple, facts.abilities
        )


class Anchor(NamedTuple):
    """The frame whose colours are held: of a clip by its key, 0 or -1."""

    key: str
    frame: int


@dataclass(frozen=True, eq=False)
class PlannedClip:
    """One run of the model.

    Attributes:
        key: Hash of all that goes into it.
        request: What is asked for, without the pictures.
        pictures: Given pictures by frame of the clip, fitted to the film.
        last_frame: Picture that the clip is steered towards, fitted.
        history: Keys of the clips before it since the last cut, the latest first.
        window: How many of their frames it is given, four apart; 0 after a cut.
        num_new: Frames that it adds to the film.
        anchor: Whose colours it is held to, if any.
    """

    key: str
    request: GenerationRequest
    pictures: "dict[int, Image]"
    last_frame: "Image | None"
    history: tuple[str, ...]
    window: int
    num_new: int
    anchor: Anchor | None

    @property
    def overlap(self) -> int:
        """Frames at its start that the film already has."""
        return overlap_of(self.window)


@dataclass(frozen=True, eq=False)
class PlannedShot:
    """A shot and its place in the film.

    Attributes:
        shot: The shot.
        number: Its place in the story, from 0.
        start: Frame of the film that it starts at.
        num_frames: Frames that it adds to the film.
        clips: What is made for it.
    """

    shot: Shot
    number: int
    start: int
    num_frames: int
    clips: tuple[PlannedClip, ...]

    @property
    def name(self) -> str:
        """What the shot is called."""
        assert self.shot.name is not None, "the shots of a story have names"
        return self.shot.name


@dataclass(frozen=True, eq=False)
class StoryPlan:
    """All that is made for a film.

    Attributes:
        story: The story.
        target: The model it is planned for.
        size: Of the film.
        shots: In their order.
        pictures: The given pictures by fingerprint, fitted to the film.
        roles: Fingerprint of the picture by shot number and role ("first_frame", "keyframe:12").
    """

    story: Story
    target: Target
    size: Size
    shots: tuple[PlannedShot, ...]
    pictures: "dict[str, Image]"
    roles: dict[tuple[int, str], str]

    @property
    def clips(self) -> tuple[PlannedClip, ...]:
        """The clips of all shots, in their order."""
        return tuple(clip for shot in self.shots for clip in shot.clips)

    @property
    def num_frames(self) -> int:
        """Length of the film; in a loop the last frame, which is the first again, is left out."""
        return sum(shot.num_frames for shot in self.shots) - int(self.story.loop)


def overlap_of(window: int) -> int:
    """Frames that a window covers: 1, 5, 9, ... for 1, 2, 3, ...; 0 without one.

    Args:
        window: Number of given frames, four apart.

    Returns:
        Number of frames from the first to the last of them.
    """
    return 0 if window == 0 else TEMPORAL_FACTOR * (window - 1) + 1


def plan_story(story: Story, target: Target) -> StoryPlan:
    """Say what must be made for a story. Reads its pictures, makes nothing.

    Args:
        story: The story.
        target: The model that will make it.

    Returns:
        The plan.

    Raises:
        InputError: If a picture cannot be read, the pictures of a clip are too near each other, or
            the model cannot do what the story asks for.
    """
    target.abilities.check(has_pictures=False, guidance_scale_2=story.guidance_scale_2)
    size = _size(story, target)
    pictures: dict[str, Image] = {}
    roles: dict[tuple[int, str], str] = {}
    for place, original in _originals(story):
        picture = fit_picture(original, size, fit=story.fit, focus=story.focus)
        roles[place] = picture_sha256(picture)
        pictures.setdefault(roles[place], picture)
    if story.loop and roles[0, "first_frame"] != roles[len(story.shots) - 1, "last_frame"]:
        raise InputError(
            "loop needs the same picture as first_frame of the first shot and last_frame of the "
            "last one, but these differ. Give one of them twice, or leave loop out."
        )
    planner = _Planner(story, target, size, pictures, roles)
    shots = []
    start = 0
    for number, shot in enumerate(story.shots):
        try:
            clips = tuple(planner.clips_of(number, shot))
        except InputError as error:
            raise InputError(f"Shot {number + 1}: {error}") from None
        num_frames = sum(clip.num_new for clip in clips)
        shots.append(PlannedShot(shot, number, start, num_frames, clips))
        start += num_frames
    return StoryPlan(story, target, size, tuple(shots), pictures, roles)


def _originals(story: Story) -> "Iterator[tuple[tuple[int, str], Image]]":
    """The pictures as given, one after another, with their shot numbers and roles."""
    for number, shot in enumerate(story.shots):
        for role, source in shot.pictures.items():
            try:
                yield (number, role), load_picture(source)
            except InputError as error:
                raise InputError(f"Shot {number + 1}, {role}: {error}") from None


def _size(story: Story, target: Target) -> Size:
    if story.height is not None and story.width is not None:
        size = Size(story.height, story.width)
        if any(side % target.size_multiple for side in size):
            raise InputError(
                f"height and width must be multiples of {target.size_multiple} for the model "
                f"{target.name!r}, got {size.width}x{size.height}."
            )
        return size
    _, first = next(_originals(story), (None, None))
    return resolve_size(
        story.aspect_ratio,
        pixel_budget=target.pixel_budget,
        multiple=target.size_multiple,
        first_frame=None if first is None else Size(first.height, first.width),
    )


class _Planner:
    """Walks through the shots and remembers what the next clip goes on from."""

    def __init__(
        self,
        story: Story,
        target: Target,
        size: Size,
        pictures: "dict[str, Image]",
        roles: dict[tuple[int, str], str],
    ) -> None:
        self._story = story
        self._target = target
        self._size = size
        self._pictures = pictures
        self._roles = roles
        self._history: tuple[str, ...] = ()
        self._num_before = 0  # frames since the last cut
        self._anchor: Anchor | None = None

    def clips_of(self, number: int, shot: Shot) -> Iterator[PlannedClip]:
        """The clips of the next shot."""
        fps = self._story.fps
        if shot.transition == "cut":
            self._history, self._num_before, self._anchor = (), 0, None
        num_frames = shot.resolved_num_frames(fps)
        moments = {frame: (number, role) for frame, role in shot.keyframe_numbers(fps).items()}
        if shot.first_frame is not None:
            _place(moments, 0, (number, "first_frame"))
        last = (number, "last_frame")
        if last in self._roles and num_frames - 1 in moments:
            raise InputError(f"last_frame and {moments[num_frames - 1][1]} are both the last one.")
        start = 0
        lengths = self._lengths(
            num_frames, is_cut=shot.transition == "cut", has_last_frame=last in self._roles
        )
        for place, num_new in enumerate(lengths):
            here = {
                frame - start: self._roles[role]
                for frame, role in moments.items()
                if start <= frame < start + num_new
            }
            is_last = place == len(lengths) - 1
            clip = self._clip(
                shot,
                seed=(self._story.seed if shot.seed is None else shot.seed) + place,
                num_new=num_new,
                given=here,
                last_frame=self._roles.get(last) if is_last else None,
            )
            start += num_new
            self._history = (clip.key, *self._history)
            self._num_before += num_new
            if self._anchor is None:
                self._anchor = Anchor(clip.key, 0)
            yield clip
        if shot.transition == "morph":
            self._anchor = Anchor(self._history[0], -1)

    def _lengths(self, num_frames: int, *, is_cut: bool, has_last_frame: bool) -> list[int]:
        """New frames of each clip of a shot: as few clips as possible, about equally long."""
        most = (self._story.clip_frames - 1) // TEMPORAL_FACTOR
        groups = (num_frames - is_cut) // TEMPORAL_FACTOR
        rooms: list[int] = []
        while sum(rooms) < groups:
            rooms = [most - self._story.window + 1] * (len(rooms) + 1)
            # No window at the start of a shot after a cut, nor where a last frame leads on.
            rooms[0] = most if is_cut else rooms[0]
            rooms[-1] = most if has_last_frame else rooms[-1]
        shares = [0] * len(rooms)
        for _ in range(groups):
            free = [i for i, room in enumerate(rooms) if shares[i] < room]
            shares[min(free, key=shares.__getitem__)] += 1
        return [
            share * TEMPORAL_FACTOR + (is_cut and place == 0) for place, share in enumerate(shares)
        ]

    def _clip(
        self,
        shot: Shot,
        *,
        seed: int,
        num_new: int,
        given: dict[int, str],
        last_frame: str | None,
    ) -> PlannedClip:
        window = self._window(is_led=bool(given) or last_frame is not None)
        overlap = overlap_of(window)
        num_frames = overlap + num_new
        placed = {frame + overlap: sha256 for frame, sha256 in given.items()}
        _check_slots(placed, num_frames, overlap=overlap, has_last=last_frame is not None)
        request = self._story.request(
            prompt=shot.prompt,
            num_frames=num_frames,
            seed=seed,
            aspect_ratio="auto",
            height=self._size.height,
            width=self._size.width,
            # The pictures are fitted already.
            fit="cover",
            focus=(0.5, 0.5),
        )
        has_pictures = bool(placed) or last_frame is not None or window > 0
        self._target.abilities.check(has_pictures=has_pictures, guidance_scale_2=None)
        clip = PlannedClip(
            key="",
            request=request,
            pictures={frame: self._pictures[sha256] for frame, sha256 in placed.items()},
            last_frame=None if last_frame is None else self._pictures[last_frame],
            history=self._history[: 1 + overlap // TEMPORAL_FACTOR],
            window=window,
            num_new=num_new,
            anchor=None if shot.transition == "morph" else self._anchor,
        )
        strength = shot.last_frame_strength if last_frame is not None else 1.0
        clip = replace(clip, request=request.model_copy(update={"last_frame_strength": strength}))
        return replace(clip, key=self._key(clip, placed, last_frame))

    def _window(self, *, is_led: bool) -> int:
        """Frames that the next clip is given; one where it is led on by a picture, see above."""
        if not self._num_before:
            return 0
        available = 1 + (self._num_before - 1) // TEMPORAL_FACTOR
        return min(1 if is_led else self._story.window, available)

    def _key(self, clip: PlannedClip, placed: dict[int, str], last_frame: str | None) -> str:
        fields: dict[str, Any] = {
            "version": KEY_VERSION,
            "model": self._target.sha256,
            "request": clip.request.to_recipe() | {"model": None},
            "pictures": placed,
            "last_frame": last_frame,
            "previous": clip.history[0] if clip.history else None,
            "window": clip.window,
            "anchor": clip.anchor,
            "colour_anchor": self._story.colour_anchor if clip.anchor else None,
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _place(moments: dict[int, tuple[int, str]], frame: int, picture: tuple[int, str]) -> None:
    if frame in moments:
        raise InputError(f"{picture[1]} and {moments[frame][1]} are both at frame {frame}.")
    moments[frame] = picture


def _check_slots(placed: dict[int, str], num_frames: int, *, overlap: int, has_last: bool) -> None:
    """Only one picture can be given in each group of four frames."""
    frames = sorted([*placed, *([num_frames - 1] if has_last else [])])
    for one, other in itertools.pairwise(frames):
        if latent_slot(one)[0] == latent_slot(other)[0]:
            raise InputError(
                f"the pictures at frames {one - overlap} and {other - overlap} of one clip are too "
                "near each other: only one in a group of four can be given. Move one."
            )
