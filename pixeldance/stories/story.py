"""What a film is made of: shots, in words and pictures. Typed, checked, written as YAML or Python.

Shot by shot, ``transition`` says how it begins:

* ``cut``: anew, from its first frame, or from words alone.
* ``continue``: where the shot before it ends, with its motion and its colours.
* ``morph``: likewise, and it arrives at a given last frame, whose colours it takes over.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from pixeldance._fields import (
    Description,
    UnfitValueError,
    integer,
    number,
    picture_source,
    point,
    shown,
    text,
)
from pixeldance.errors import InputError
from pixeldance.geometry import TEMPORAL_FACTOR, resolve_frame_index
from pixeldance.request import DEFAULT_NUM_FRAMES, GenerationRequest

if TYPE_CHECKING:
    from pixeldance.pictures import PictureInput as PictureSource

__all__ = ["MAX_SHOTS", "MAX_SHOT_FRAMES", "Shot", "Story", "Transition"]

Transition = Literal["cut", "continue", "morph"]

MAX_SHOTS = 500
MAX_SHOT_FRAMES = 7200
"""Most frames of one shot: five minutes at 24 frames per second."""

_MOMENT = re.compile(r"(-?[0-9]{1,9})|([0-9]{1,9}(?:\.[0-9]{1,9})?)s")
_DEFAULTS = {name: field.default for name, field in GenerationRequest.model_fields.items()}
_OF_CLIPS = (
    *("model", "negative_prompt", "aspect_ratio", "height", "width", "fit", "focus", "fps"),
    *("num_inference_steps", "guidance_scale", "guidance_scale_2"),
)
"""Fields of the story that each of its clips gets unchanged."""


def _moments(value: object) -> object:
    """Accept frame numbers (12, -1) and seconds ("1.5s") as keys."""
    if not isinstance(value, Mapping):
        raise UnfitValueError(f"must map frames or seconds to pictures, got {shown(value)}.")
    pictures: dict[str, object] = {}
    for key, picture in value.items():
        is_number = isinstance(key, int) and not isinstance(key, bool)
        moment = str(key) if is_number else key
        if not isinstance(moment, str) or not _MOMENT.fullmatch(moment):
            raise UnfitValueError(
                f"must have frame numbers (12, -1) or seconds (1.5s) as keys, got {shown(key)}."
            )
        if moment in pictures:
            raise UnfitValueError(f"has {moment} twice. Leave one out.")
        pictures[moment] = picture_source(picture)
    return pictures


if not TYPE_CHECKING:
    PictureSource = Annotated[Any, BeforeValidator(picture_source)]
_Text = Annotated[str, AfterValidator(text)]
_Integer = Annotated[int, BeforeValidator(integer)]
_Number = Annotated[float, BeforeValidator(number)]
_Point = Annotated[tuple[float, float], BeforeValidator(point)]


class Shot(Description):
    """One shot of a story.

    Its frames are numbered from 0. Where it goes on from another shot, frame 0 is the first new
    one: no frame is shown twice.
    """

    name: Annotated[str, Field(min_length=1), AfterValidator(text)] | None = Field(
        default=None, description="What the shot is called; shot-1, shot-2, ... if not given."
    )
    prompt: _Text = Field(default="", description="What happens in the shot, in words.")
    transition: Transition = Field(
        default="continue",
        description="How it begins: cut, continue or morph; the first shot of a story is a cut.",
    )
    first_frame: PictureSource | None = Field(
        default=None, description="Picture that the shot starts with; only after a cut."
    )
    last_frame: PictureSource | None = Field(
        default=None, description="Picture that the end of the shot is steered towards."
    )
    keyframes: Annotated[dict[str, PictureSource], BeforeValidator(_moments)] = Field(
        default_factory=dict,
        description="Pictures at frames of the shot (12, -1) or seconds in it (1.5s, the nearest "
        "frame).",
    )
    last_frame_strength: Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(number)] = Field(
        default=1.0, description="Part of the steps during which the last frame steers, 0 to 1."
    )
    duration: Annotated[float, Field(gt=0.0), BeforeValidator(number)] | None = Field(
        default=None,
        description="Length in seconds; the nearest possible number of frames is used.",
    )
    num_frames: Annotated[int, Field(ge=4, le=MAX_SHOT_FRAMES), BeforeValidator(integer)] | None = (
        Field(
            default=None,
            description="Frames that the shot adds to the film, in place of duration: one more "
            "than a multiple of 4 after a cut, else a multiple of 4.",
        )
    )
    seed: Annotated[int, Field(ge=0, le=2**62), BeforeValidator(integer)] | None = Field(
        default=None, description="Seed of its first clip; that of the story if not given."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._problems()]
        if problems:
            raise InputError(" ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if self.duration is not None and self.num_frames is not None:
            yield "duration and num_frames are both given. Leave one out."
        if self.last_frame_strength < 1.0 and self.last_frame is None:
            yield (
                f"last_frame_strength is {self.last_frame_strength:g}, which has no effect without "
                "a last_frame. Give a last_frame or leave it out."
            )

    @property
    def pictures(self) -> "dict[str, PictureSource]":
        """Pictures by role: "first_frame", "last_frame", "keyframe:12", "keyframe:1.5s"."""
        sources = {
            "first_frame": self.first_frame,
            **{f"keyframe:{moment}": picture for moment, picture in self.keyframes.items()},
            "last_frame": self.last_frame,
        }
        return {role: source for role, source in sources.items() if source is not None}

    def resolved_num_frames(self, fps: int) -> int:
        """Frames that the shot adds to the film.

        Args:
            fps: Frames per second of the story.

        Returns:
            ``4k + 1`` after a cut, ``4k`` else; at least 5 or 4.
        """
        extra = 1 if self.transition == "cut" else 0
        if self.num_frames is not None:
            return self.num_frames
        if self.duration is None:
            return DEFAULT_NUM_FRAMES - 1 + extra
        groups = round((self.duration * fps - extra) / TEMPORAL_FACTOR)
        return max(groups, 1) * TEMPORAL_FACTOR + extra

    def keyframe_numbers(self, fps: int) -> dict[int, str]:
        """Where the key frames are.

        Args:
            fps: Frames per second of the story.

        Returns:
            Role of the key frame by number of the frame in the shot, in order.

        Raises:
            InputError: If one is outside the shot, or two are at one frame.
        """
        num_frames = self.resolved_num_frames(fps)
        found: dict[int, str] = {}
        for moment in self.keyframes:
            match = _MOMENT.fullmatch(moment)
            assert match is not None, "checked when the shot was made"
            in_frames, in_seconds = match.groups()
            frame = round(float(in_seconds) * fps) if in_frames is None else int(in_frames)
            try:
                frame = resolve_frame_index(frame, num_frames)
            except InputError as error:
                raise InputError(f"keyframe:{moment}: {error}") from None
            if frame in found:
                raise InputError(
                    f"{found[frame]} and keyframe:{moment} are both at frame {frame}. "
                    "Leave one out."
                )
            found[frame] = f"keyframe:{moment}"
        return dict(sorted(found.items()))


def _shots(value: object) -> object:
    """Parse the shots one by one, so that an error names the shot; the first one is a cut."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        raise UnfitValueError(f"must be a list of at least one shot, got {shown(value)}.")
    shots = []
    for place, item in enumerate(value, 1):
        try:
            shot = _shot(item)
            if place == 1 and "transition" not in shot.model_fields_set:
                shot = Shot(**{**_given(shot), "transition": "cut"})
        except InputError as error:
            raise InputError(f"Shot {place}: {error}") from None
        shots.append(shot if shot.name else shot.model_copy(update={"name": f"shot-{place}"}))
    return tuple(shots)


def _shot(item: object) -> Shot:
    if isinstance(item, Shot):
        return item
    if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
        raise InputError(f"a shot must map field names to values, got {shown(item)}.")
    return Shot(**item)


def _given(shot: Shot) -> dict[str, Any]:
    return {name: getattr(shot, name) for name in shot.model_fields_set}


class Story(Description):
    """A film: its shots, and what they share.

    Immutable and checked as a whole when it is made; whatever is wrong is raised as one
    :class:`~pixeldance.errors.InputError` of one line that names the shot.
    """

    shots: Annotated[Sequence[Shot], Field(max_length=MAX_SHOTS), BeforeValidator(_shots)] = Field(
        description="The shots in their order, at least one."
    )
    loop: bool = Field(
        default=False,
        description="Whether the film ends where it began: the last_frame of the last shot is the "
        "first_frame of the first one, and the frame that would be shown twice is left out.",
    )
    seed: Annotated[int, Field(ge=0, le=2**62), BeforeValidator(integer)] = Field(
        default=0, description="Seed of the shots that have none."
    )
    window: Annotated[int, Field(ge=1, le=4), BeforeValidator(integer)] = Field(
        default=3,
        description="Frames of the film so far, four apart, that a clip which goes on without "
        "pictures of its own is given, 1 to 4.",
    )
    colour_anchor: Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(number)] = Field(
        default=1.0,
        description="How strongly colours are held to those after the last cut, 0 (off) to 1.",
    )
    clip_frames: Annotated[int, Field(ge=5, le=257), BeforeValidator(integer)] = Field(
        default=DEFAULT_NUM_FRAMES,
        description="Most frames that the model makes at once, one more than a multiple of 4.",
    )
    model: _Text = Field(default=_DEFAULTS["model"], description="Name or folder of the model.")
    negative_prompt: _Text = Field(
        default="", description="What the film should not show; needs a guidance_scale above 1."
    )
    aspect_ratio: _Text = Field(
        default=_DEFAULTS["aspect_ratio"],
        description="Width to height; auto takes it from the earliest picture of the film.",
    )
    height: _Integer | None = Field(default=None, description="Height in pixels; needs width.")
    width: _Integer | None = Field(default=None, description="Width in pixels; needs height.")
    fit: Literal["cover", "contain"] = Field(
        default=_DEFAULTS["fit"], description="How pictures of another shape are fitted."
    )
    focus: _Point = Field(default=_DEFAULTS["focus"], description="Point x,y that cover keeps.")
    fps: _Integer = Field(default=_DEFAULTS["fps"], description="Frames per second, 1 to 60.")
    num_inference_steps: _Integer = Field(
        default=_DEFAULTS["num_inference_steps"], description="Sampling steps, 1 to 200."
    )
    guidance_scale: _Number = Field(
        default=_DEFAULTS["guidance_scale"], description="How strongly prompts are followed."
    )
    guidance_scale_2: _Number | None = Field(
        default=None, description="That of the second expert, for models with two."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.request()  # its own limits and rules
        problems = [*self._problems()]
        if problems:
            raise InputError(" ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if (self.clip_frames - 1) % TEMPORAL_FACTOR:
            yield f"clip_frames must be one more than a multiple of 4, got {self.clip_frames}."
        elif self.clip_frames < TEMPORAL_FACTOR * self.window + 1:
            yield (
                f"clip_frames ({self.clip_frames}) leaves nothing to make after a window of "
                f"{self.window} frames. Use {TEMPORAL_FACTOR * self.window + 1} or more."
            )
        names: dict[str, int] = {}
        for place, shot in enumerate(self.shots, 1):
            assert shot.name is not None, "_shots gives every shot a name"
            for line in self._problems_of(place, shot):
                yield f"Shot {place}: {line}"
            if shot.name in names:
                yield f"Shots {names[shot.name]} and {place} are both called {shown(shot.name)}."
            names.setdefault(shot.name, place)
        if self.loop and None in (self.shots[0].first_frame, self.shots[-1].last_frame):
            yield (
                "loop needs a picture as first_frame of the first shot and the same as last_frame "
                "of the last one. Give both."
            )

    def _problems_of(self, place: int, shot: Shot) -> Iterator[str]:
        if place == 1 and shot.transition != "cut":
            yield f"the first shot has nothing to {shot.transition}. Use cut."
        if shot.transition != "cut" and shot.first_frame is not None:
            yield (
                f"first_frame is given with transition {shot.transition}, which starts where the "
                "shot before ends. Use cut, or leave it out."
            )
        if shot.transition == "morph" and shot.last_frame is None:
            yield "transition morph needs a last_frame. Give one, or use continue."
        extra = 1 if shot.transition == "cut" else 0
        if shot.num_frames is not None and shot.num_frames % TEMPORAL_FACTOR != extra:
            lower = (shot.num_frames - extra) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + extra
            rule = "one more than a multiple of 4 after a cut" if extra else "a multiple of 4"
            yield (
                f"num_frames must be {rule}, got {shot.num_frames}. "
                f"Use {max(lower, 4 + extra)} or {lower + TEMPORAL_FACTOR}."
            )
            return
        if shot.resolved_num_frames(self.fps) > MAX_SHOT_FRAMES:
            yield f"it has more than {MAX_SHOT_FRAMES} frames. Split it."
        try:
            shot.keyframe_numbers(self.fps)
        except InputError as error:
            yield str(error)

    def request(self, **fields: Any) -> GenerationRequest:
        """A request for one of the film's clips: what the clips share, and the fields given.

        Args:
            **fields: Fields of ``GenerationRequest``.

        Returns:
            The checked request.

        Raises:
            InputError: If a value is not allowed.
        """
        shared = {name: getattr(self, name) for name in _OF_CLIPS}
        return GenerationRequest.parse({**shared, **fields})

    def number_of(self, name: str) -> int:
        """Place of a shot.

        Args:
            name: Name of the shot.

        Returns:
            Its place in ``shots``, from 0.

        Raises:
            InputError: If there is no such shot.
        """
        names = [shot.name for shot in self.shots]
        if name not in names:
            raise InputError(
                f"There is no shot {shown(name)}. The shots are {', '.join(map(str, names))}."
            )
        return names.index(name)

    def with_shot(self, shot_name: str, /, **changes: Any) -> "Story":
        """The same story with one shot changed.

        Args:
            shot_name: Name of the shot.
            **changes: Its new fields.

        Returns:
            The checked story.

        Raises:
            InputError: If there is no such shot, or the result is no story.
        """
        number = self.number_of(shot_name)
        shots: list[Shot | dict[str, Any]] = list(self.shots)
        shots[number] = {**_given(self.shots[number]), "name": shot_name, **changes}
        fields = {key: getattr(self, key) for key in self.model_fields_set}
        return type(self).parse({**fields, "shots": shots})

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> Self:
        """Make a story from a mapping, such as a YAML file holds.

        Args:
            mapping: Values by field name; ``shots`` is a list of such mappings.

        Returns:
            The checked story.

        Raises:
            InputError: If anything is wrong: one line with the problems and their remedies.
        """
        if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
            raise InputError(
                f"A story must map field names to values, got {shown(mapping)}. "
                'Write it like {"shots": [{"prompt": "a fox jumps"}]}.'
            )
        return cls(**mapping)
