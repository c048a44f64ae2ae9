"""The one description of what to generate, shared by Python, command line and clip metadata.

Every default of the product and every limit on what a person may ask for is in
:class:`GenerationRequest`; help texts and documentation are made from its field descriptions.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from pixeldance._fields import (
    SIZE_MULTIPLE,
    Description,
    frame_keys,
    integer,
    number,
    picture_source,
    point,
    shown,
    size_multiple,
    text,
)
from pixeldance.errors import InputError
from pixeldance.geometry import (
    ASPECT_RATIOS,
    AUTO_ASPECT_RATIO,
    TEMPORAL_FACTOR,
    check_aspect_ratio,
    check_num_frames,
    frames_for_duration,
    latent_slot,
    resolve_frame_index,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixeldance.pictures import PictureInput as PictureSource

__all__ = [
    "DEFAULT_NUM_FRAMES",
    "DEFAULT_PIXEL_BUDGET",
    "MAX_NUM_FRAMES",
    "MAX_SIDE",
    "RECIPE_SCHEMA_VERSION",
    "SIZE_MULTIPLE",
    "GenerationRequest",
]

DEFAULT_NUM_FRAMES = 25
"""Frames of a clip when neither ``num_frames`` nor ``duration`` is given."""

MAX_NUM_FRAMES = 257
"""Most frames of one clip."""

DEFAULT_PIXEL_BUDGET = 36864
"""Pixels per frame when no size is given and the model names no budget: 256 x 144."""

MAX_SIDE = 4096
"""Most pixels along a side of the clip."""

RECIPE_SCHEMA_VERSION = 1
"""Version of what :meth:`GenerationRequest.to_recipe` writes."""


_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+")

if not TYPE_CHECKING:
    PictureSource = Annotated[Any, BeforeValidator(picture_source)]
_Text = Annotated[str, AfterValidator(text)]
_Integer = BeforeValidator(integer)
_Number = BeforeValidator(number)
_Side = Annotated[
    int, Field(ge=SIZE_MULTIPLE, le=MAX_SIDE), _Integer, AfterValidator(size_multiple)
]
_NumFrames = Annotated[
    int, Field(ge=1, le=MAX_NUM_FRAMES), _Integer, AfterValidator(check_num_frames)
]


class GenerationRequest(Description):
    """What to generate: the instructions, the shape of the clip and how to sample it.

    Immutable and checked as a whole when it is made; whatever is wrong is raised as one
    :class:`~pixeldance.errors.InputError` of one line. Nothing given is ever ignored: an option
    that could have no effect is an error too. Pictures are kept as given and read later.
    """

    prompt: _Text = Field(default="", description="What happens in the clip, in words.")
    negative_prompt: _Text = Field(
        default="",
        description="What the clip should not show; needs a guidance_scale above 1.",
    )
    first_frame: PictureSource | None = Field(
        default=None, description="Picture that the clip starts with."
    )
    last_frame: PictureSource | None = Field(
        default=None, description="Picture that the clip is steered towards."
    )
    keyframes: Annotated[dict[int, PictureSource], BeforeValidator(frame_keys)] = Field(
        default_factory=dict,
        description="Pictures at given frames: frame number from 0 (-1 is the last) to picture.",
    )
    last_frame_strength: Annotated[float, Field(ge=0.0, le=1.0), _Number] = Field(
        default=1.0,
        description="Part of the steps during which the last frame steers, 0 to 1.",
    )
    aspect_ratio: Annotated[str, AfterValidator(check_aspect_ratio)] = Field(
        default=AUTO_ASPECT_RATIO,
        description="Width to height of the clip; auto takes it from the first frame, or 16:9.",
        json_schema_extra={"enum": [AUTO_ASPECT_RATIO, *ASPECT_RATIOS]},
    )
    height: _Side | None = Field(
        default=None,
        description=f"Height in pixels, a multiple of {SIZE_MULTIPLE}; needs width, excludes "
        "aspect_ratio.",
    )
    width: _Side | None = Field(
        default=None,
        description=f"Width in pixels, a multiple of {SIZE_MULTIPLE}; needs height, excludes "
        "aspect_ratio.",
    )
    fit: Literal["cover", "contain"] = Field(
        default="cover",
        description="How pictures of another shape are fitted: cover crops, contain adds borders.",
    )
    focus: Annotated[tuple[float, float], BeforeValidator(point)] = Field(
        default=(0.5, 0.5),
        description="Point x,y that cover keeps, from 0,0 (left, top) to 1,1 (right, bottom).",
    )
    duration: Annotated[float, Field(gt=0.0), _Number] | None = Field(
        default=None,
        description="Length in seconds, in place of num_frames; the nearest possible number of "
        "frames, at least 5, is used.",
    )
    num_frames: _NumFrames | None = Field(
        default=None,
        description=f"Number of frames, one more than a multiple of 4, 1 to {MAX_NUM_FRAMES}; "
        f"{DEFAULT_NUM_FRAMES} if no duration is given either.",
    )
    fps: Annotated[int, Field(ge=1, le=60), _Integer] = Field(
        default=12, description="Frames per second, 1 to 60."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=200), _Integer] = Field(
        default=8, description="Sampling steps, 1 to 200: more is slower and finer."
    )
    guidance_scale: Annotated[float, Field(ge=1.0, le=100.0), _Number] = Field(
        default=1.0,
        description="How strongly the prompt is followed, 1 (off) to 100; above 1 is half as fast.",
    )
    guidance_scale_2: Annotated[float, Field(ge=1.0, le=100.0), _Number] | None = Field(
        default=None,
        description="Guidance of the second expert, 1 (off) to 100, for models with two experts; "
        "guidance_scale if not given.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), _Integer] | None = Field(
        default=None,
        description="Seed of the first clip, 0 to 2**63 - 1; drawn at random if not given.",
    )
    num_videos: Annotated[int, Field(ge=1, le=16), _Integer] = Field(
        default=1, description="Number of clips with different seeds, 1 to 16."
    )
    model: Annotated[str, Field(min_length=1), AfterValidator(text)] = Field(
        default="pixeldance-mini",
        description="Name of the model, or a local folder with one.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._conflicts(), *self._options_without_effect()]
        if not problems:
            problems = [*self._frame_problems()]
        if problems:
            raise InputError(" ".join(problems))
        return self

    def _conflicts(self) -> Iterator[str]:
        if self.duration is not None and self.num_frames is not None:
            yield (
                f"duration ({self.duration:g}) and num_frames ({self.num_frames}) are both given. "
                "Leave one out."
            )
        if (self.height is None) != (self.width is None):
            given, missing = ("width", "height") if self.height is None else ("height", "width")
            yield f"{given} is given without {missing}. Give both, or use aspect_ratio."
        elif self.height is not None and self.aspect_ratio != AUTO_ASPECT_RATIO:
            yield (
                f"height and width ({self.width}x{self.height}) and aspect_ratio "
                f"({self.aspect_ratio}) are both given. Leave one out."
            )

    def _options_without_effect(self) -> Iterator[str]:
        if self.last_frame_strength < 1.0 and self.last_frame is None:
            yield (
                f"last_frame_strength is {self.last_frame_strength:g}, which has no effect without "
                "a last_frame. Give a last_frame or leave it out."
            )
        if self.negative_prompt and not self.is_guided:
            yield (
                "negative_prompt has no effect with guidance_scale 1 (guidance is off). Raise "
                "guidance_scale or leave negative_prompt out."
            )
        if self.fit == "contain" and self.focus != (0.5, 0.5):
            yield (
                f"focus ({self.focus[0]:g},{self.focus[1]:g}) has no effect with fit contain, "
                "which crops nothing. Use fit cover or leave focus out."
            )

    def _frame_problems(self) -> Iterator[str]:
        num_frames = self.resolved_num_frames
        if num_frames > MAX_NUM_FRAMES:
            yield (
                f"duration {self.duration:g} s at {self.fps} frames per second is {num_frames} "
                f"frames; at most {MAX_NUM_FRAMES} are allowed. Use at most "
                f"{math.floor(MAX_NUM_FRAMES / self.fps * 100) / 100:g} s, or fewer fps."
            )
            return
        placed: dict[int, tuple[str, int]] = {}
        for role, frame in self._frames_of_roles().items():
            try:
                frame = resolve_frame_index(frame, num_frames)
            except InputError as error:
                yield f"{role}: {error}"
                continue
            slot, _ = latent_slot(frame)
            if slot in placed:
                yield _collision(placed[slot], (role, frame))
            else:
                placed[slot] = (role, frame)

    def _frames_of_roles(self) -> dict[str, int]:
        frames = {"first_frame": 0, "last_frame": -1}
        frames.update({_keyframe_role(frame): frame for frame in self.keyframes})
        return {role: frames[role] for role in self.pictures}

    @property
    def pictures(self) -> dict[str, "PictureSource"]:
        """Pictures by role: "first_frame", "last_frame", "keyframe:12"; only those given."""
        sources = {"first_frame": self.first_frame, "last_frame": self.last_frame}
        sources.update(
            {_keyframe_role(frame): picture for frame, picture in self.keyframes.items()}
        )
        return {role: source for role, source in sources.items() if source is not None}

    @property
    def is_guided(self) -> bool:
        """Whether any step needs the negative prompt, and so a second pass."""
        return max(self.guidance_scale, self.guidance_scale_2 or 1.0) > 1.0

    @property
    def resolved_num_frames(self) -> int:
        """Frames of the clip, whether given as a number, as a duration or not at all."""
        if self.num_frames is not None:
            return self.num_frames
        if self.duration is not None:
            return frames_for_duration(self.duration, self.fps)
        return DEFAULT_NUM_FRAMES

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> Self:
        """Make a request from a mapping, such as a line of JSON or the options of a command.

        Args:
            mapping: Values by field name.

        Returns:
            The checked request.

        Raises:
            InputError: If anything is wrong: one line with all problems and their remedies.
        """
        if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
            raise InputError(
                f"A request must map field names to values, got {shown(mapping)}. "
                'Write it like {"prompt": "a fox jumps"}.'
            )
        return cls(**mapping)

    def to_recipe(self, pictures: "Mapping[str, Image] | None" = None) -> dict[str, Any]:
        """Describe the request for the clip's metadata, so that the clip can be made again.

        The result can be written as JSON and tells nothing about the machine: a picture becomes
        its file name without folders and the fingerprint of its pixels, a model folder its name.
        All defaults are spelt out but the guidance of a second expert, which few models have, and
        the duration is given as ``num_frames``. Pictures are read where they lie, so a file that
        has gone meanwhile is an ``InputError``.

        Args:
            pictures: Pictures by role as ``load_picture`` returned them, to spare reading them
                again; those left out are read here.

        Returns:
            A mapping of JSON values with "schema_version".
        """
        from pixeldance.pictures import load_picture, picture_sha256

        loaded = pictures or {}
        described = {
            role: {
                "name": _file_name(source),
                "sha256": picture_sha256(loaded[role] if role in loaded else load_picture(source)),
            }
            for role, source in self.pictures.items()
        }
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        if self.guidance_scale_2 is None:
            del fields["guidance_scale_2"]
        return {
            "schema_version": RECIPE_SCHEMA_VERSION,
            **fields,
            "first_frame": described.get("first_frame"),
            "last_frame": described.get("last_frame"),
            "keyframes": {str(frame): described[_keyframe_role(frame)] for frame in self.keyframes},
            "focus": list(self.focus),
            "duration": None,
            "num_frames": self.resolved_num_frames,
            "model": _model_name(self.model),
        }

    @classmethod
    def from_recipe(
        cls, recipe: Mapping[str, Any], pictures: "Mapping[str, PictureSource] | None" = None
    ) -> Self:
        """Rebuild a request from its recipe and the pictures that it was made with.

        A recipe comes out of a file and is not trusted: it cannot name a file to read.

        Args:
            recipe: What :meth:`to_recipe` returned.
            pictures: The pictures by role: "first_frame", "last_frame", "keyframe:12".

        Returns:
            The checked request.

        Raises:
            InputError: If the recipe is of another version or damaged, or a picture is missing,
                not asked for, or not the one that was used.
        """
        version = recipe.get("schema_version")
        if version != RECIPE_SCHEMA_VERSION or isinstance(version, bool):
            raise InputError(
                f"The recipe has schema_version {shown(version)}; {RECIPE_SCHEMA_VERSION} is "
                "read. Use the version of pixeldance that wrote it."
            )
        fields = {key: value for key, value in recipe.items() if key != "schema_version"}
        _check_model_name(fields.get("model"))
        sources = _matching_pictures(_recorded_pictures(fields), pictures or {})
        fields.update(
            first_frame=sources.pop("first_frame", None),
            last_frame=sources.pop("last_frame", None),
            keyframes={
                role.removeprefix("keyframe:"): picture for role, picture in sources.items()
            },
        )
        return cls.parse(fields)


def _recorded_pictures(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints in a recipe by role."""
    keyframes = fields.get("keyframes") or {}
    if not isinstance(keyframes, Mapping):
        raise InputError("The recipe is damaged: keyframes is not a mapping.")
    records = {role: fields.get(role) for role in ("first_frame", "last_frame")}
    records.update({f"keyframe:{frame}": record for frame, record in keyframes.items()})
    recorded = {}
    for role, record in records.items():
        if record is None:
            continue
        if not isinstance(record, Mapping) or not isinstance(record.get("sha256"), str):
            raise InputError(
                f"The recipe is damaged: {shown(role)} has no sha256. Make a new request instead."
            )
        recorded[role] = record["sha256"]
    return recorded


def _matching_pictures(
    recorded: Mapping[str, str], pictures: "Mapping[str, PictureSource]"
) -> "dict[str, PictureSource]":
    from pixeldance.pictures import load_picture, picture_sha256

    missing = [role for role in recorded if role not in pictures]
    if missing:
        raise InputError(
            f"The recipe needs pictures that are not given: {', '.join(missing)}. Give them."
        )
    unknown = [role for role in pictures if role not in recorded]
    if unknown:
        raise InputError(
            f"The recipe uses no picture for {', '.join(map(shown, unknown))}. Leave it out."
        )
    for role, sha256 in recorded.items():
        if picture_sha256(load_picture(pictures[role])) != sha256:
            raise InputError(
                f"The picture given for {role} is not the one the recipe was made with (other "
                "pixels). Give the original picture, or make a new request."
            )
    return dict(pictures)


def _check_model_name(model: object) -> None:
    if isinstance(model, str) and not _HUB_ID.fullmatch(model) and model != _model_name(model):
        raise InputError(
            f"The recipe names a folder as its model ({shown(model)}), which is not followed. "
            "Name the model yourself."
        )


def _model_name(model: str) -> str:
    if _HUB_ID.fullmatch(model) and not Path(model).exists():
        return model
    name = PureWindowsPath(model).name
    return name if name.strip(".") else "local"


def _file_name(source: object) -> str | None:
    # Windows' rules know both kinds of slash, so no folder slips through on either system.
    return PureWindowsPath(source).name or None if isinstance(source, (str, Path)) else None


def _keyframe_role(frame: int) -> str:
    return f"keyframe:{frame}"


def _collision(one: tuple[str, int], other: tuple[str, int]) -> str:
    (role, frame), (other_role, other_frame) = sorted([one, other], key=lambda placed: placed[1])
    if frame == other_frame:
        return f"{role} and {other_role} are both at frame {frame}. Leave one out."
    start = frame - (frame - 1) % TEMPORAL_FACTOR
    return (
        f"{role} and {other_role} are at frames {frame} and {other_frame}, and only one of frames "
        f"{start} to {start + TEMPORAL_FACTOR - 1} can be given. Leave one out or move it."
    )
