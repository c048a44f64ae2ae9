"""Reading stories from YAML files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pixeldance.errors import InputError
from pixeldance.stories.story import Story

__all__ = ["read_story"]

_ROLES = ("first_frame", "last_frame")


def read_story(path: str | Path) -> Story:
    """Read a story from a YAML file; its pictures are looked for beside it.

    Args:
        path: The file.

    Returns:
        The checked story.

    Raises:
        InputError: If the file is missing, is no YAML or no story.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"The story '{path}' cannot be read: {reason}. Check the path.") from error
    except yaml.YAMLError as error:
        raise InputError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}.") from error
    try:
        return Story.parse(_with_folders(values, path.parent))
    except InputError as error:
        raise InputError(f"'{path}': {error}") from None


def _with_folders(values: Any, folder: Path) -> Any:
    """Pictures named by a relative path are looked for in the folder of the story."""
    if not isinstance(values, Mapping) or not isinstance(values.get("shots"), list):
        return values

    def found(source: Any) -> Any:
        return folder / source if isinstance(source, str) and source else source

    shots = []
    for shot in values["shots"]:
        if isinstance(shot, Mapping):
            frames = {role: found(shot[role]) for role in _ROLES if role in shot}
            if isinstance(shot.get("keyframes"), Mapping):
                frames["keyframes"] = {key: found(each) for key, each in shot["keyframes"].items()}
            shot = {**shot, **frames}
        shots.append(shot)
    return {**values, "shots": shots}
