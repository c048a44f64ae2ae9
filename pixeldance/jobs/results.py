"""How a job ends: its files, or what went wrong in plain words."""

import errno
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pixeldance.errors import PixelDanceError
from pixeldance.jobs.folders import ClipFiles
from pixeldance.jobs.pictures import save_thumbnail
from pixeldance.video.files import new_files

if TYPE_CHECKING:
    from pixeldance.api import Clip

__all__ = ["error_in_words", "save_clip"]


def save_clip(clip: "Clip", files: ClipFiles, pictures: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the files of a clip, each complete or not at all.

    Args:
        clip: The clip.
        files: Where they go.
        pictures: Records of the pictures of its request by role, for the names in the recipe.
    """
    files.clip.parent.mkdir(mode=0o700, exist_ok=True)
    with new_files(files.thumbnail, files.last_frame, overwrite=True) as (thumbnail, last_frame):
        save_thumbnail(clip.first_frame, thumbnail)
        clip.last_frame.save(last_frame, format="PNG")
    named = replace(clip, recipe=_with_names(clip.recipe, pictures))
    named.save(files.clip, overwrite=True)


def _with_names(
    recipe: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A recipe in which pictures are called as they were before they came into the store."""
    request = dict(recipe["request"])
    request["keyframes"] = dict(request["keyframes"])
    for role, record in pictures.items():
        _, is_keyframe, frame = role.partition(":")
        place, key = (request["keyframes"], frame) if is_keyframe else (request, role)
        place[key] = {**place[key], "name": record["name"]}
    return {**recipe, "request": request}


def error_in_words(error: Exception) -> str:
    """What went wrong, for a person who knows nothing of the program's inside.

    Args:
        error: What was raised.

    Returns:
        One line: what happened, what can be done.
    """
    text = " ".join(str(error).split())
    is_memory = isinstance(error, MemoryError) or "out of memory" in text.lower()
    if is_memory or "can't allocate memory" in text.lower():
        return (
            "There was not enough memory for this clip. Use a smaller size or fewer frames, or "
            "close other programs."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Remove old clips or other files, then requeue the job."
    if isinstance(error, PixelDanceError):
        return text
    return (
        f"Something went wrong that was not foreseen ({type(error).__name__}: {text[:200]}). "
        "Requeue the job to try again; its details tell where it happened."
    )
