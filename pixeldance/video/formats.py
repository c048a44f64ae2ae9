"""The forms in which a clip can be written: names, file endings, what they are for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pixeldance.errors import InputError

__all__ = ["FORMATS", "ClipFormat", "choose_format"]


class ClipFormat(NamedTuple):
    """One form of a clip."""

    suffixes: tuple[str, ...]
    """Endings that its files may have; a folder has none."""
    description: str
    """What it is, in a few words."""


FORMATS: Mapping[str, ClipFormat] = {
    "mp4": ClipFormat((".mp4",), "H.264, plays everywhere"),
    "webm": ClipFormat((".webm",), "VP9, for web pages"),
    "av1": ClipFormat((".webm", ".mp4"), "AV1 with 10 bits, the smallest"),
    "prores": ClipFormat((".mov",), "ProRes 422 HQ, for editing programs"),
    "gif": ClipFormat((".gif",), "256 colours, at most 50 frames per second"),
    "webp": ClipFormat((".webp",), "animated WebP, all colours, smaller than GIF"),
    "png": ClipFormat(("",), "a folder of PNG files, without loss"),
    "zip": ClipFormat((".zip",), "the same PNG files in one archive"),
}
"""All forms by name. Where two share an ending, the ending alone means the first."""


def choose_format(path: str | os.PathLike[str], name: str | None = None) -> str:
    """Find out in which form a clip shall be written.

    Args:
        path: Where it goes.
        name: A name in ``FORMATS``; without it the ending of the path says it. A folder of PNG
            files has no ending, so it must be named.

    Returns:
        A name in ``FORMATS``.

    Raises:
        InputError: If there is no such format, or the path ends otherwise.
    """
    suffix = Path(path).suffix.lower()
    if name is None:
        for known, form in FORMATS.items():
            if suffix and suffix in form.suffixes:
                return known
        endings = sorted({s for form in FORMATS.values() for s in form.suffixes if s})
        raise InputError(
            f"A clip cannot be written as '{path}': the ending says in which form, one of "
            f"{', '.join(endings)}; a folder of PNG files needs the format 'png'."
        )
    if name not in FORMATS:
        raise InputError(f"The format must be one of {', '.join(FORMATS)}, got {name!r}.")
    allowed = FORMATS[name].suffixes
    if suffix not in allowed:
        wanted = " or ".join(f"'{s}'" for s in allowed if s) or "no ending, it is a folder"
        raise InputError(f"The format {name!r} takes {wanted}, got '{path}'. Change one of them.")
    return name
