"""Checks of single values of a request, and the sentences that say what is wrong with one."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pixeldance.errors import InputError
from pixeldance.geometry import check_focus

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "Description",
    "UnfitValueError",
    "frame_keys",
    "integer",
    "number",
    "picture_source",
    "point",
    "problem",
    "shown",
    "size_multiple",
    "text",
]

SIZE_MULTIPLE = 16
"""Height and width are multiples of this many pixels, whatever the model."""


class UnfitValueError(ValueError):
    """Why a value does not fit its field, as a sentence that lacks the field's name."""


def integer(value: object) -> int:
    """Accept whole numbers only; neither True nor 8.0 is one."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise UnfitValueError(f"must be a whole number, got {shown(value)}.")


def number(value: object) -> float:
    """Accept finite numbers only; True is not a number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if math.isfinite(result):
            return result
    raise UnfitValueError(f"must be a finite number, got {shown(value)}.")


def text(value: str) -> str:
    """Accept text that can be written to a file; broken bytes on a command line cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnfitValueError("holds bytes that are not valid UTF-8. Type it again.") from None
    return value


def point(value: object) -> tuple[float, float]:
    """Accept (0.5, 0.3) and, as the command line gives it, "0.5,0.3"."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, (tuple, list)) and len(parts) == 2:
        try:
            x, y = (float(part) if isinstance(part, str) else number(part) for part in parts)
        except ValueError:
            pass
        else:
            return check_focus((x, y))
    raise UnfitValueError(f"must be two numbers from 0 to 1 like 0.5,0.3, got {shown(value)}.")


def frame_keys(value: object) -> object:
    """Accept frame numbers as decimal text, which is all that JSON has for keys."""
    if not isinstance(value, Mapping):
        raise UnfitValueError(f"must map frame numbers to pictures, got {shown(value)}.")
    keyframes: dict[int, object] = {}
    for key, picture in value.items():
        is_decimal = isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,9}", key)
        try:
            frame = integer(int(key) if is_decimal else key)
        except UnfitValueError:
            raise UnfitValueError(f"must have frame numbers as keys, got {shown(key)}.") from None
        if frame in keyframes:
            raise UnfitValueError(f"has frame {frame} twice. Leave one out.")
        keyframes[frame] = picture
    return keyframes


def picture_source(value: object) -> object:
    """Check the type only: files are read later."""
    if isinstance(value, (str, Path, bytes)):
        if not value or value == Path():
            raise UnfitValueError("is empty. Give a picture or leave it out.")
        return value
    import numpy as np
    from PIL import Image

    if isinstance(value, (Image.Image, np.ndarray)):
        return value
    raise UnfitValueError(
        "must be a picture (a path, the bytes of a picture file, a PIL picture or a uint8 array "
        f"of shape (height, width, 3)), got {shown(value)}."
    )


def size_multiple(value: int) -> int:
    """Accept multiples of the stride that all models share."""
    if value % SIZE_MULTIPLE == 0:
        return value
    lower = value - value % SIZE_MULTIPLE
    raise UnfitValueError(
        f"must be a multiple of {SIZE_MULTIPLE} pixels, got {value}. "
        f"Use {lower} or {lower + SIZE_MULTIPLE}."
    )


class Description(BaseModel):
    """What a person describes: immutable, unknown names are errors, all errors in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # type checkers read the fields instead

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                known = list(type(self).model_fields)
                details = error.errors(include_url=False)
                raise InputError(" ".join(problem(item, known) for item in details)) from None


def problem(details: "ErrorDetails", known_fields: Sequence[str]) -> str:
    """Turn one pydantic error into a sentence: what was given, what is allowed, what to do."""
    label = str(details["loc"][0]) if details["loc"] else "The request"
    if len(details["loc"]) > 1:
        label = f"{label.removesuffix('s')}:{details['loc'][1]}"  # keyframe:12
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return _unknown_field(label, known_fields)
    if kind == "value_error":
        error = context["error"]
        return f"{label} {error}" if isinstance(error, UnfitValueError) else str(error)
    if kind == "greater_than_equal":
        limit = context["ge"]
        return f"{label} must be at least {limit}, got {shown(value)}. Use {limit} or more."
    if kind == "less_than_equal":
        limit = context["le"]
        return f"{label} must be at most {limit}, got {shown(value)}. Use {limit} or less."
    if kind == "greater_than":
        return f"{label} must be above {context['gt']}, got {shown(value)}."
    if kind == "literal_error":
        return f"{label} must be {context['expected']}, got {shown(value)}."
    if kind == "string_type":
        return f"{label} must be text, got {shown(value)}."
    if kind == "string_too_short":
        return f"{label} is empty. Give a value or leave it out."
    return f"{label} is not allowed: {details['msg']}, got {shown(value)}."


def _unknown_field(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    if close:
        return f"Unknown field {shown(name)}. Did you mean {close[0]!r}?"
    return f"Unknown field {shown(name)}. Known fields: {', '.join(known)}."


def shown(value: object) -> str:
    """Show a value in a message: one line, and not the pixels of a picture."""
    if isinstance(value, (str, int, float, type(None))):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a value of type {type(value).__name__}"
