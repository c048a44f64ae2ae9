"""Stories as files: YAML with the pictures inside, which ``read_story`` reads as well."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pixeldance._fields import shown
from pixeldance.errors import InputError, PixelDanceError
from pixeldance.server.studio.drafts import DraftPicture, DraftPictures
from pixeldance.server.studio.story_draft import (
    FILM_FIELDS,
    ROLES,
    SHOT_FIELDS,
    film_fields,
    shot_fields,
)
from pixeldance.stories import Story, read_film_recipe, story_of_recipe
from pixeldance.stories.story import MAX_SHOTS

__all__ = ["ImportedStory", "draft_as_yaml", "import_story"]

_MAX_BYTES = 64 * 1024**2


class ImportedStory(NamedTuple):
    """A story from a file."""

    draft: dict[str, Any]
    """As the browser keeps it."""
    message: str
    """What a person should know; may be empty."""


def draft_as_yaml(draft: object, drafts: DraftPictures) -> str:
    """A draft as a file, also one that is not finished.

    Args:
        draft: See ``read_draft``.
        drafts: Where its pictures are.

    Returns:
        YAML; pictures are inside, so that the file is all that there is.
    """
    given = draft if isinstance(draft, Mapping) else {}
    items = given.get("shots")
    shots = []
    for place, item in enumerate(items if isinstance(items, list) else []):
        fields, _ = shot_fields(item, drafts.find, is_first=place == 0)
        for role in set(ROLES) & fields.keys():
            fields[role] = drafts.path(fields[role]).read_bytes()
        if "keyframes" in fields:
            fields["keyframes"] = {
                moment: drafts.path(picture).read_bytes()
                for moment, picture in fields["keyframes"].items()
            }
        shots.append(fields)
    story = {**film_fields(given.get("film")), "shots": shots}
    text: str = yaml.safe_dump(story, sort_keys=False, allow_unicode=True)
    return text


def import_story(
    path: Path, name: str, drafts: DraftPictures, *, models: Collection[str]
) -> ImportedStory:
    """Read a story in YAML, or the ``.json`` beside a film. No file that it names is opened.

    Args:
        path: The file.
        name: Its name.
        drafts: Takes its pictures.
        models: Names of the models that are here.

    Returns:
        The draft. What is wrong in it stays as it is, for the page to tell.

    Raises:
        InputError: If it is no YAML or has no shots.
    """
    if path.suffix.lower() == ".json":
        story = story_of_recipe(read_film_recipe(path))
        values: Any = {n: getattr(story, n) for n in type(story).model_fields}
        values["shots"] = [{n: getattr(s, n) for n in type(s).model_fields} for s in story.shots]
    else:
        values = _read_yaml(path, name)
    if not isinstance(values, Mapping) or not isinstance(values.get("shots"), list):
        raise InputError(f"{name!r} is no story: it has no list of shots.")
    if len(values["shots"]) > MAX_SHOTS:
        raise InputError(f"{name!r} has {len(values['shots'])} shots; {MAX_SHOTS} are the most.")
    reader = _Importer(drafts, values.get("fps"))
    draft: dict[str, Any] = {
        "film": {key: _plain(values[key]) for key in FILM_FIELDS if values.get(key) is not None},
        "shots": [reader.shot(place, shot) for place, shot in enumerate(values["shots"], 1)],
    }
    model = draft["film"].get("model")
    if model is not None and model not in models:
        del draft["film"]["model"]
        reader.messages.append(f"Its model {shown(model)} is not offered here.")
    reader.note_unknown("The film", values, {*FILM_FIELDS, "shots"})
    return ImportedStory(draft, " ".join(reader.messages))


class _Importer:
    """Turns shots of a file into shots of a draft and collects what was left out."""

    def __init__(self, drafts: DraftPictures, fps: object) -> None:
        self._drafts = drafts
        default: int = Story.model_fields["fps"].default
        self._fps = fps if isinstance(fps, int) and fps > 0 else default
        self.messages: list[str] = []

    def shot(self, place: int, given: object) -> dict[str, Any]:
        values = given if isinstance(given, Mapping) else {"prompt": shown(given)}
        fields = {key: _plain(values[key]) for key in SHOT_FIELDS if values.get(key) is not None}
        num_frames = values.get("num_frames")
        if isinstance(num_frames, int) and fields.get("duration") is None:
            fields["duration"] = round(num_frames / self._fps, 4)
        for role in ROLES:
            if values.get(role) is not None:
                fields[role] = self._picture(place, role, values[role])
        keyframes = values.get("keyframes")
        if isinstance(keyframes, Mapping):
            kept = {
                str(moment): self._picture(place, f"keyframe:{moment}", picture)
                for moment, picture in keyframes.items()
            }
            fields["keyframes"] = {moment: one for moment, one in kept.items() if one}
        self.note_unknown(
            f"Shot {place}", values, {*SHOT_FIELDS, *ROLES, "keyframes", "num_frames"}
        )
        return fields

    def note_unknown(self, whose: str, values: Mapping[Any, Any], known: set[str]) -> None:
        """Say which fields were left out."""
        unknown = [shown(key) for key in values if key not in known]
        if unknown:
            self.messages.append(f"{whose} has {', '.join(unknown)}, which nobody knows; left out.")

    def _picture(self, place: int, role: str, source: Any) -> dict[str, Any] | None:
        if isinstance(source, str):
            name = Path(source).name
            self.messages.append(f"Shot {place}: give {name} again; it is not in the file.")
            return None
        try:
            picture: DraftPicture = self._drafts.add(source, name=f"shot-{place}-{role}.png")
        except PixelDanceError as error:
            self.messages.append(f"Shot {place}, {role}: {error}")
            return None
        return picture.to_json()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML without aliases, of which a small file can unfold to any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*), which are not read here")
        return super().compose_node(parent, index)


def _read_yaml(path: Path, name: str) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{name!r} is larger than {_MAX_BYTES // 1024**2} MB.")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name!r} is not valid YAML: {reason}.") from None


def _plain(value: Any) -> Any:
    """A value that JSON can hold; what cannot be meant is kept as text, to be told of."""
    if isinstance(value, str | bool | int | float):
        return str(value) if isinstance(value, int) and abs(value) >= 2**53 else value
    if isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
        return list(value)
    return shown(value)
