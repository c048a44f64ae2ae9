"""The form: its values and pictures, and the request that they mean."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pixeldance.backbones.facts import ModelFacts
from pixeldance.errors import InputError
from pixeldance.geometry import AUTO_ASPECT_RATIO, Size, duration_of, resolve_size
from pixeldance.request import DEFAULT_PIXEL_BUDGET, SIZE_MULTIPLE, GenerationRequest
from pixeldance.server.studio.drafts import DraftPicture, DraftPictures

__all__ = [
    "CENTRE",
    "FIELDS",
    "WIDGETS",
    "FormPictures",
    "Role",
    "clip_size",
    "pictures_of",
    "request_of",
    "summary_of",
    "values_of",
]

Role = Literal["first_frame", "last_frame"]

WIDGETS = (
    "prompt",
    "duration",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "seed",
    "is_seed_locked",
    "last_frame_strength",
    "is_loop",
    "aspect_ratio",
    "fit",
    "negative_prompt",
    "width",
    "height",
    "fps",
    "num_videos",
    "model",
)
"""Widgets whose values make up a draft, in order."""

FIELDS = tuple(name for name in WIDGETS if name in GenerationRequest.model_fields)
"""Fields of the request among them; ``is_seed_locked`` and ``is_loop`` are the form's own."""

CENTRE = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class FormPictures:
    """The pictures of a form.

    Attributes:
        first_frame: Picture that the clip starts with.
        last_frame: Picture that it ends with.
        keyframes: Pictures in between, with their frame numbers.
        focus: Point (x, y) that cropping keeps, each from 0 to 1.
    """

    first_frame: DraftPicture | None = None
    last_frame: DraftPicture | None = None
    keyframes: tuple[tuple[int, DraftPicture], ...] = ()
    focus: tuple[float, float] = CENTRE

    @classmethod
    def from_json(cls, value: object, drafts: DraftPictures) -> "FormPictures":
        """The pictures that a browser remembers, as far as they are still there.

        Args:
            value: What ``to_json`` gave, or anything else: it comes from a browser.
            drafts: Where they are looked for.

        Returns:
            The pictures.
        """
        given = value if isinstance(value, Mapping) else {}
        keyframes = given.get("keyframes")
        found = []
        for record in keyframes[:64] if isinstance(keyframes, list) else []:
            picture = drafts.find(record.get("picture")) if isinstance(record, Mapping) else None
            if picture is not None and isinstance(record.get("frame"), int):
                found.append((record["frame"], picture))
        return cls(
            first_frame=drafts.find(given.get("first_frame")),
            last_frame=drafts.find(given.get("last_frame")),
            keyframes=tuple(found),
            focus=_point(given.get("focus")),
        )

    def to_json(self) -> dict[str, Any]:
        """What the browser keeps of them."""
        return {
            "first_frame": self.first_frame and self.first_frame.to_json(),
            "last_frame": self.last_frame and self.last_frame.to_json(),
            "keyframes": [
                {"frame": frame, "picture": picture.to_json()} for frame, picture in self.keyframes
            ],
            "focus": list(self.focus),
        }

    def with_picture(self, role: Role, picture: DraftPicture | None) -> "FormPictures":
        """The same with another first or last picture; a new first one moves the focus back.

        Args:
            role: Which of the two.
            picture: The picture; None for none.

        Returns:
            New pictures.
        """
        if role == "first_frame":
            return replace(self, first_frame=picture, focus=CENTRE)
        return replace(self, last_frame=picture)

    def last_of(self, *, is_loop: bool) -> DraftPicture | None:
        """The picture that the clip ends with.

        Args:
            is_loop: Whether it ends as it starts.

        Returns:
            The picture, if there is one.
        """
        return self.first_frame if is_loop else self.last_frame


def request_of(
    values: Mapping[str, Any],
    pictures: FormPictures,
    drafts: DraftPictures,
    *,
    models: Collection[str],
    facts: ModelFacts | None = None,
) -> GenerationRequest:
    """The request that a form means.

    Args:
        values: Values of the widgets by name, raw: the request checks them.
        pictures: Its pictures.
        drafts: Where they are.
        models: Models that may be asked for; a browser shall not name a folder.
        facts: The model that is chosen, if it is known.

    Returns:
        The request. What is left empty keeps its default; a seed that is not locked stays open.

    Raises:
        InputError: If something is wrong, in one line.
    """
    fields = {name: values[name] for name in FIELDS if values.get(name) not in (None, "")}
    if not values.get("is_seed_locked"):
        fields.pop("seed", None)
    elif "seed" in fields:
        with suppress(ValueError):  # what is no number is for the request to refuse
            fields["seed"] = int(fields["seed"])
    last = pictures.last_of(is_loop=bool(values.get("is_loop")))
    if last is None:  # the widget cannot be used then
        fields.pop("last_frame_strength", None)
    if facts is not None and not facts.abilities.has_two_experts:  # the widget is not shown then
        fields.pop("guidance_scale_2", None)
    if values.get("is_loop") and last is None:
        raise InputError("A loop ends as it starts: give a first picture, or untick Loop.")
    if fields.get("model") not in (None, *models):
        raise InputError(f"Choose one of the models {', '.join(models)}.")
    if pictures.focus != CENTRE and fields.get("fit") != "contain":
        fields["focus"] = pictures.focus
    for role, picture in (("first_frame", pictures.first_frame), ("last_frame", last)):
        if picture is not None:
            fields[role] = drafts.path(picture)
    frames = [frame for frame, _ in pictures.keyframes]
    if len(set(frames)) < len(frames):
        raise InputError("Two key frames have the same frame number. Change one of them.")
    if frames:
        fields["keyframes"] = {frame: drafts.path(one) for frame, one in pictures.keyframes}
    request = GenerationRequest.parse(fields)
    if facts is not None:
        facts.check(request)
    return request


def values_of(request: GenerationRequest, *, seed: int | None = None) -> dict[str, Any]:
    """What the widgets show for a request.

    Args:
        request: The request.
        seed: The seed that was used, where the request left it open.

    Returns:
        Values by name. Its seed is locked if there is one.
    """
    known = request.seed if request.seed is not None else seed
    return {
        **{name: getattr(request, name) for name in FIELDS},
        "duration": round(duration_of(request.resolved_num_frames, request.fps), 2),
        # Text, because a browser rounds numbers above 2**53.
        "seed": "" if known is None else str(known),
        "is_seed_locked": known is not None,
        "is_loop": False,
    }


def pictures_of(
    request: GenerationRequest, add: Callable[[Any, str], DraftPicture], names: Mapping[str, str]
) -> FormPictures:
    """The pictures of a request, kept as drafts.

    Args:
        request: The request.
        add: Keeps a picture under a file name.
        names: File names by role.

    Returns:
        The pictures for the form.
    """
    kept = {
        role: add(source, names.get(role) or "picture.png")
        for role, source in request.pictures.items()
    }
    return FormPictures(
        first_frame=kept.get("first_frame"),
        last_frame=kept.get("last_frame"),
        keyframes=tuple((frame, kept[f"keyframe:{frame}"]) for frame in request.keyframes),
        focus=request.focus,
    )


def clip_size(
    values: Mapping[str, Any], pictures: FormPictures, facts: ModelFacts | None = None
) -> Size:
    """The size that the clip will have.

    Args:
        values: Values of the widgets by name.
        pictures: Pictures of the form; with "auto" the earliest one gives the shape.
        facts: The model that is chosen, if it is known.

    Returns:
        The size; that of the default shape while the values are not usable.
    """
    height, width = values.get("height"), values.get("width")
    if _is_side(height) and _is_side(width):
        return Size(int(height or 0), int(width or 0))
    ordered = [pictures.first_frame, *(one for _, one in sorted(pictures.keyframes, key=_frame))]
    earliest = next((one for one in [*ordered, pictures.last_frame] if one is not None), None)
    return resolve_size(
        str(values.get("aspect_ratio") or AUTO_ASPECT_RATIO),
        pixel_budget=DEFAULT_PIXEL_BUDGET if facts is None else facts.pixel_budget,
        multiple=SIZE_MULTIPLE if facts is None else facts.size_multiple,
        first_frame=None if earliest is None else earliest.size,
    )


def summary_of(request: GenerationRequest, size: Size) -> str:
    """What a request comes to, in one line.

    Args:
        request: The request.
        size: Size of its clips.

    Returns:
        Such as "25 frames at 12 per second = 2.08 s, 256 x 144 pixels, 8 steps".
    """
    count = request.resolved_num_frames
    parts = [
        f"{count} frames at {request.fps} per second = {duration_of(count, request.fps):.2f} s",
        f"{size.width} × {size.height} pixels",  # noqa: RUF001 - the sign for it
        f"{request.num_inference_steps} steps",
    ]
    if request.num_videos > 1:
        parts.append(f"{request.num_videos} clips")
    return " · ".join(parts)


def _frame(keyframe: tuple[int, DraftPicture]) -> float:
    return float("inf") if keyframe[0] == -1 else keyframe[0]


def _is_side(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 10**5


def _point(value: object) -> tuple[float, float]:
    if isinstance(value, list | tuple) and len(value) == 2:
        with suppress(TypeError, ValueError):
            x, y = (float(part) for part in value)
            if 0.0 <= x <= 1.0 and 0.0 <= y <= 1.0:
                return x, y
    return CENTRE
