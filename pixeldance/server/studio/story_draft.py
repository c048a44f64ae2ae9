"""The story as the browser keeps it, and the film that it means. What comes is not trusted."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pixeldance.errors import InputError
from pixeldance.server.studio.drafts import DraftPicture, DraftPictures
from pixeldance.stories import Shot, Story

__all__ = ["FILM_FIELDS", "ROLES", "SHOT_FIELDS", "DraftReading", "read_draft", "split_problem"]

ROLES = ("first_frame", "last_frame")
SHOT_FIELDS = tuple(n for n in Shot.model_fields if n not in (*ROLES, "keyframes", "num_frames"))
FILM_FIELDS = tuple(name for name in Story.model_fields if name != "shots")

_OF_SHOT = re.compile(r"(?:^|(?<=\. ))Shot ([0-9]+)(?:, |: )")
_ROLE_NAMES = {"first_frame": "first picture", "last_frame": "last picture"}


@dataclass(frozen=True, kw_only=True)
class DraftReading:
    """What a draft means.

    Attributes:
        story: The story; None if something is wrong.
        problem: What is wrong with the film as a whole; may be empty.
        problems: What is wrong with shots, by their places from 0.
    """

    story: Story | None = None
    problem: str = ""
    problems: Mapping[int, str] = field(default_factory=dict)


def read_draft(
    draft: object, drafts: DraftPictures, *, models: Collection[str], default_model: str
) -> DraftReading:
    """Read a draft; all that is wrong is told at once, beside the shot that it is about.

    Args:
        draft: ``film``, the fields of a story, and ``shots``, a list of the fields of each shot
            with records of pictures; it comes from a browser.
        drafts: Where its pictures are.
        models: Models that may be asked for; a browser shall not name a folder.
        default_model: The one that is taken if none is named.

    Returns:
        The story, or what is wrong.
    """
    given = draft if isinstance(draft, Mapping) else {}
    film = film_fields(given.get("film"))
    film.setdefault("model", default_model)
    if film["model"] not in models:
        return DraftReading(problem=f"Choose one of the models {', '.join(models)}.")
    items = given.get("shots")
    shots: list[Shot] = []
    problems: dict[int, str] = {}
    for place, item in enumerate(items if isinstance(items, list) else []):
        fields, lost = shot_fields(item, drafts.find, is_first=place == 0)
        try:
            shots.append(
                Shot(
                    **{k: drafts.path(v) if k in ROLES else v for k, v in fields.items()}
                    | {
                        "keyframes": {
                            k: drafts.path(v) for k, v in fields.get("keyframes", {}).items()
                        }
                    }
                )
            )
        except InputError as error:
            problems[place] = str(error)
        if lost:
            problems[place] = " ".join([*lost, problems.get(place, "")]).strip()
    if problems:
        return DraftReading(problems=problems)
    if not shots:
        return DraftReading(problem="The story has no shots. Add one.")
    try:
        return DraftReading(story=Story.parse({**film, "shots": shots}))
    except InputError as error:
        return split_problem(error)


def film_fields(given: object) -> dict[str, Any]:
    """The fields of the film that are filled in.

    Args:
        given: Values by field, from a browser or a file.

    Returns:
        Those that a story has; seeds as numbers.
    """
    return _filled(given, FILM_FIELDS)


def shot_fields(
    given: object, find: Callable[[object], DraftPicture | None], *, is_first: bool
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a shot that are filled in, with its pictures.

    Args:
        given: Values by field, from a browser.
        find: Looks a picture up by its record.
        is_first: The first shot begins with a cut, whatever it did at another place.

    Returns:
        Values by field, and what is to be said of pictures that are gone.
    """
    fields = _filled(given, SHOT_FIELDS)
    values = given if isinstance(given, Mapping) else {}
    lost: list[str] = []

    def found(record: object, what: str) -> DraftPicture | None:
        picture = find(record)
        if picture is None:
            lost.append(f"The {what} is not here any more. Choose it again.")
        return picture

    for role in ROLES:
        if values.get(role):
            picture = found(values[role], _ROLE_NAMES[role])
            if picture is not None:
                fields[role] = picture
    records = values.get("keyframes")
    keyframes = {
        moment: found(record, f"picture at {moment}")
        for moment, record in (records.items() if isinstance(records, Mapping) else ())
    }
    if keyframes:
        fields["keyframes"] = {k: picture for k, picture in keyframes.items() if picture}
    if is_first:
        fields["transition"] = "cut"
    if not values.get("last_frame"):  # the slider is not shown then
        fields.pop("last_frame_strength", None)
    return fields, lost


def _filled(given: object, names: Collection[str]) -> dict[str, Any]:
    values = given if isinstance(given, Mapping) else {}
    fields = {name: values[name] for name in names if values.get(name) not in (None, "")}
    if isinstance(fields.get("seed"), str):  # text, because a browser rounds numbers above 2**53
        with suppress(ValueError):  # what is no number is for the story to refuse
            fields["seed"] = int(fields["seed"])
    return fields


def split_problem(error: InputError) -> DraftReading:
    """Put what is wrong with a story beside the shots that it is about.

    Args:
        error: Of ``Story`` or ``plan_story``, whose sentences name the shot first.

    Returns:
        The problems.
    """
    message = str(error)
    whole, *rest = _OF_SHOT.split(message)
    problems: dict[int, str] = {}
    for number, sentences in zip(rest[::2], rest[1::2], strict=True):
        place = int(number) - 1
        problems[place] = f"{problems.get(place, '')} {sentences}".strip()
    return DraftReading(problem=whole.strip(), problems=problems)
