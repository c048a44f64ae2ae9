"""What a recipe must look like. Recipes are read from files of unknown origin."""

import json
import re
from collections.abc import Callable
from typing import Any

from pixeldance.errors import DataError

__all__ = [
    "PICTURES_IN_SIDECAR",
    "SCHEMA",
    "SCHEMA_VERSION",
    "check_recipe",
    "parse_recipe",
    "printable",
]

SCHEMA = "pixeldance.recipe"
SCHEMA_VERSION = 1

PICTURES_IN_SIDECAR = "sidecar"
"""Stands where the pictures would be, when they are only in the file beside the clip."""
MAX_PICTURES = 64
MAX_PICTURE_PIXELS = 16_000_000
MAX_FINISHING_STEPS = 16


def check_recipe(recipe: object, *, source: str) -> dict[str, Any]:
    """Check a recipe of unknown origin.

    Args:
        recipe: The value read.
        source: Where it came from, for the error message.

    Returns:
        The same recipe. Its ``request`` is only known to be an object: the request schema has the
        last word on it.

    Raises:
        DataError: If it is not a recipe, is damaged, or is of a newer version of the package.
    """
    if not isinstance(recipe, dict) or recipe.get("schema") != SCHEMA:
        raise DataError(f"{source} holds no pixeldance recipe (a JSON object marked '{SCHEMA}').")
    version = recipe.get("schema_version")
    if not isinstance(version, int) or not _is_count(version):
        raise DataError(
            f"The recipe in {source} is damaged: 'schema_version' is {_shown(version)}."
        )
    if version > SCHEMA_VERSION:
        raise DataError(
            f"The recipe in {source} has schema version {version}; this pixeldance reads up to "
            f"{SCHEMA_VERSION}. Update pixeldance."
        )
    for place, (is_valid, rule) in _RULES.items():
        value: Any = recipe
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not is_valid(value):
            raise DataError(
                f"The recipe in {source} is damaged: '{place}' must be {rule}, got {_shown(value)}."
            )
    return recipe


def parse_recipe(text: str, *, source: str) -> dict[str, Any]:
    """Read a recipe from JSON text of unknown origin.

    Args:
        text: The text.
        source: Where it came from, for the error message.

    Returns:
        The checked recipe.

    Raises:
        DataError: If the text is no JSON or not a recipe.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The recipe in {source} is damaged: it is not valid JSON.") from error
    return check_recipe(value, source=source)


def printable(text: str) -> str:
    """Escape what a terminal would obey: control, format and surrogate characters.

    Args:
        text: Text of unknown origin.

    Returns:
        The text with such characters as backslash escapes. Joiners stay: names and emoji need them.
    """
    return "".join(
        c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _shown(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= 40 else text[:37] + "..."


def _is_count(value: object, minimum: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value < 2**63


def _is_fps(value: object) -> bool:
    # Through a pattern first: Fraction('1e999999999') would take all memory.
    if not isinstance(value, str) or re.fullmatch(r"[0-9]{1,9}(/[0-9]{1,9})?", value) is None:
        return False
    numerator, _, denominator = value.partition("/")
    return int(numerator) > 0 and (not denominator or int(denominator) > 0)


def _is_name(value: object) -> bool:
    # The model of a recipe is looked up by this name, which must not lead to a folder elsewhere.
    return isinstance(value, str) and re.search(r"[/\\:]|^\.*$", value) is None


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_seconds(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(s, int | float) and not isinstance(s, bool) and 0 <= s < 1e9
        for s in value.values()
    )


def _is_pictures(value: object) -> bool:
    if value == PICTURES_IN_SIDECAR:
        return True
    return (
        isinstance(value, dict)
        and len(value) <= MAX_PICTURES
        and all(_is_picture(picture) for picture in value.values())
    )


def _is_picture(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("width"))
        and _is_count(value.get("height"))
        and value["width"] * value["height"] <= MAX_PICTURE_PIXELS
        and isinstance(value.get("png"), str)
    )


def _is_finishing(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_FINISHING_STEPS
        and all(_is_finishing_step(step) for step in value)
    )


def _is_finishing_step(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(frames := value.get("frames"), dict):
        return False
    return (
        all(_is_count(value.get(key)) for key in ("fps_factor", "upscale"))
        and isinstance(value.get("format"), str)
        and _is_texts(value.get("weights"))
        and _is_sha256(value.get("source_sha256"))
        and _is_sha256(frames.get("sha256"))
        and all(_is_count(frames.get(key)) for key in ("num_frames", "height", "width"))
        and _is_fps(frames.get("fps"))
    )


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "request": (lambda value: isinstance(value, dict), "an object"),
    "seed": (lambda value: _is_count(value, minimum=0), "a whole number from 0 to 2**63 - 1"),
    "num_steps_done": (
        lambda value: value is None or _is_count(value),
        "a positive whole number, or absent",
    ),
    "finishing": (
        _is_finishing,
        f"absent or 1 to {MAX_FINISHING_STEPS} steps, each with its factors, format, weights and "
        "frames",
    ),
    "frames.sha256": (_is_sha256, "64 hexadecimal digits"),
    "frames.num_frames": (_is_count, "a positive whole number"),
    "frames.height": (_is_count, "a positive whole number"),
    "frames.width": (_is_count, "a positive whole number"),
    "frames.fps": (_is_fps, "a fraction such as '12' or '24000/1001'"),
    "model.name": (_is_name, "a name without folders"),
    "model.sha256": (_is_sha256, "64 hexadecimal digits"),
    "versions": (_is_texts, "texts by package"),
    "timings": (_is_seconds, "seconds by stage"),
    "pictures": (
        _is_pictures,
        f"'{PICTURES_IN_SIDECAR}' or at most {MAX_PICTURES} pictures of at most "
        f"{MAX_PICTURE_PIXELS} pixels, each with width, height and png",
    ),
}
