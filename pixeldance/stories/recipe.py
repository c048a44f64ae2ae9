"""The recipe of a film: the whole story with its seeds and pictures, and what came of it.

It travels beside the film as ``.json`` and, without the pictures, in the film's comment. Like the
recipe of a clip it holds nothing about the machine or the person. Read back, it is untrusted: it
goes through the checks of a story, and nothing in it is ever opened as a path.
"""

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import DataError, InputError
from pixeldance.pictures import load_picture, picture_sha256
from pixeldance.stories.plan import PlannedShot, StoryPlan
from pixeldance.stories.story import Story
from pixeldance.video import installed_versions

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FILM_SCHEMA", "film_comment", "film_recipe", "read_film_recipe", "story_of_recipe"]

FILM_SCHEMA = "pixeldance.story"
FILM_SCHEMA_VERSION = 1

MAX_RECIPE_BYTES = 256 * 1024 * 1024
_PICTURES = ("first_frame", "last_frame")


def film_recipe(plan: StoryPlan, frames: Iterable[npt.NDArray[np.uint8]]) -> dict[str, Any]:
    """Describe a finished film so that it can be made again.

    Args:
        plan: What was made.
        frames: The frames of the film, each ``height width 3``.

    Returns:
        JSON values only.
    """
    shape = f"{plan.num_frames}x{plan.size.height}x{plan.size.width}x3"
    digest = hashlib.sha256(f"pixeldance frames v1 {shape}\n".encode())  # as video.frames_sha256
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return {
        "schema": FILM_SCHEMA,
        "schema_version": FILM_SCHEMA_VERSION,
        "story": _story(plan),
        "film": {
            "sha256": digest.hexdigest(),
            "num_frames": plan.num_frames,
            "height": plan.size.height,
            "width": plan.size.width,
            "fps": plan.story.fps,
        },
        "shots": [
            {
                "name": shot.name,
                "start": shot.start,
                "num_frames": shot.num_frames,
                "clips": [
                    {"key": clip.key, "seed": clip.request.seed, "num_frames": clip.num_new}
                    for clip in shot.clips
                ],
            }
            for shot in plan.shots
        ],
        "model": {"name": plan.target.name, "sha256": plan.target.sha256},
        "versions": installed_versions(),
        "pictures": {sha256: _png(picture) for sha256, picture in plan.pictures.items()},
    }


def _story(plan: StoryPlan) -> dict[str, Any]:
    """The story with every default spelt out; pictures are fingerprints of what the model saw."""
    story = plan.story
    fields = {name: getattr(story, name) for name in type(story).model_fields}
    return {
        **fields,
        "shots": [_shot(plan, shot) for shot in plan.shots],
        "model": plan.target.name,
        "height": plan.size.height,
        "width": plan.size.width,
        "aspect_ratio": "auto",
        "fit": "cover",
        "focus": [0.5, 0.5],
    }


def _shot(plan: StoryPlan, planned: PlannedShot) -> dict[str, Any]:
    shot = planned.shot
    moments = shot.keyframe_numbers(plan.story.fps)
    sha256_of = {role: plan.roles[planned.number, role] for role in shot.pictures}
    return {
        **{name: getattr(shot, name) for name in type(shot).model_fields},
        **{role: sha256_of.get(role) for role in _PICTURES},
        "keyframes": {str(frame): sha256_of[role] for frame, role in moments.items()},
        "duration": None,
        "num_frames": planned.num_frames,
        "seed": planned.clips[0].request.seed,
    }


def _png(picture: "Image") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=9)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def film_comment(recipe: Mapping[str, Any]) -> str:
    """The recipe as text for the film's comment.

    Args:
        recipe: From ``film_recipe``.

    Returns:
        Compact JSON without the pictures, which are beside the film.
    """
    return json.dumps({**recipe, "pictures": "sidecar"}, separators=(",", ":"))


def read_film_recipe(path: str | Path) -> dict[str, Any]:
    """Read the recipe of a film.

    Args:
        path: The ``.json`` file that lies beside the film.

    Returns:
        The recipe.

    Raises:
        InputError: If the file is missing or no recipe of a film.
        DataError: If it is too large or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"'{path}' does not exist. Give the .json file beside the film.")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise DataError(f"'{path}' is larger than {MAX_RECIPE_BYTES} bytes.")
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged: it is not valid JSON.") from error
    if not isinstance(recipe, dict) or recipe.get("schema") != FILM_SCHEMA:
        raise InputError(f"'{path}' is not the recipe of a film. Give the .json file beside one.")
    if recipe.get("schema_version") != FILM_SCHEMA_VERSION:
        raise DataError(
            f"'{path}' has schema version {recipe.get('schema_version')!r}, {FILM_SCHEMA_VERSION} "
            "is read. Use the version of pixeldance that wrote it."
        )
    return recipe


def story_of_recipe(recipe: Mapping[str, Any]) -> Story:
    """The story of a film, with its pictures; planned again it has the same keys.

    Args:
        recipe: From ``read_film_recipe``.

    Returns:
        The checked story.

    Raises:
        DataError: If a picture is missing or damaged.
        InputError: If the rest is no story.
    """
    try:
        pictures = {sha: _picture(sha, png) for sha, png in recipe["pictures"].items()}
        shots = [_with_pictures(shot, pictures) for shot in recipe["story"]["shots"]]
        story = {**recipe["story"], "shots": shots}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"The recipe of the film is damaged ({error}).") from error
    model = story.get("model")
    if not isinstance(model, str) or "\\" in model or Path(model).name != model:
        raise DataError(f"The recipe names a folder as its model ({model!r}), which is not read.")
    return Story.parse(story)


def _picture(sha256: str, png: object) -> "Image":
    try:
        picture = load_picture(base64.b64decode(str(png), validate=True))
    except (binascii.Error, InputError) as error:
        raise DataError(f"The picture {sha256[:12]} in the recipe is damaged.") from error
    if picture_sha256(picture) != sha256:
        raise DataError(f"The picture {sha256[:12]} in the recipe is another one.")
    return picture


def _with_pictures(shot: Mapping[str, Any], pictures: "Mapping[str, Image]") -> dict[str, Any]:
    frames = {role: pictures[shot[role]] for role in _PICTURES if shot.get(role) is not None}
    absent = {role: None for role in _PICTURES if role not in frames}
    keyframes = {frame: pictures[sha256] for frame, sha256 in shot["keyframes"].items()}
    return {**shot, **frames, **absent, "keyframes": keyframes}
