"""Settings that come back: from a job, a clip or its ``.json`` file."""

from collections.abc import Callable, Collection, Mapping
from pathlib import PureWindowsPath
from typing import Any, NamedTuple

from pixeldance.jobs import JobService
from pixeldance.request import GenerationRequest
from pixeldance.server.studio.drafts import DraftPictures
from pixeldance.server.studio.form import FormPictures, pictures_of, values_of
from pixeldance.video import decode_pictures

__all__ = ["Settings", "settings_of_job", "settings_of_recipe"]


class Settings(NamedTuple):
    """What the form takes over."""

    values: dict[str, Any]
    """Values of its widgets by name."""
    pictures: FormPictures
    message: str
    """What a person should know about it; may be empty."""


def settings_of_job(
    service: JobService,
    job_id: str,
    drafts: DraftPictures,
    *,
    models: Collection[str],
    seed: int | None = None,
) -> Settings:
    """Settings of a job in the store, with its pictures as they were given.

    Args:
        service: The service.
        job_id: The job.
        drafts: Takes the pictures.
        models: Names of the models that are here.
        seed: The seed of one of its clips; by default that of the request, which may be open.

    Returns:
        The settings.
    """
    job, request = service.get(job_id), service.request(job_id)
    names = {role: record["name"] or "" for role, record in job.pictures.items()}
    values = values_of(request)
    if seed is not None:
        values |= {"seed": str(seed), "is_seed_locked": True, "num_videos": 1}
    message = _choose_model(values, models)
    return Settings(values, pictures_of(request, _keep(drafts), names), message)


def settings_of_recipe(
    recipe: Mapping[str, Any], drafts: DraftPictures, *, models: Collection[str]
) -> Settings:
    """Settings of a clip of unknown origin, with its pictures as the model saw them.

    Args:
        recipe: A recipe as ``read_recipe`` gave it; it is not trusted.
        drafts: Takes the pictures.
        models: Names of the models that are here.

    Returns:
        The settings.
    """
    pictures = decode_pictures(recipe)
    request = GenerationRequest.from_recipe(recipe["request"], pictures)
    names = {role: _recorded_name(recipe["request"], role) for role in request.pictures}
    values = values_of(request) | {"seed": str(recipe["seed"]), "is_seed_locked": True}
    values["num_videos"] = 1  # the clip is one of them, made with its own seed
    message = f"The settings of the clip are in the form. {_choose_model(values, models)}".strip()
    return Settings(values, pictures_of(request, _keep(drafts), names), message)


def _choose_model(values: dict[str, Any], models: Collection[str]) -> str:
    """Take another model where the one named is not here, and say so."""
    if values["model"] in models:
        return ""
    given = PureWindowsPath(values["model"]).name
    # A recipe names a model by its folder's name alone.
    named = next((model for model in models if PureWindowsPath(model).name == given), None)
    if named is not None:
        values["model"] = named
        return ""
    values["model"] = next(iter(models), GenerationRequest.model_fields["model"].default)
    message = f"Its model {given!r} is not offered here; {values['model']} is chosen instead."
    if values["guidance_scale_2"] is not None:
        values["guidance_scale_2"] = None
        message += " The guidance of its second expert is left out."
    return message


def _keep(drafts: DraftPictures) -> Callable[[Any, str], Any]:
    return lambda source, name: drafts.add(source, name=name)


def _recorded_name(request: Mapping[str, Any], role: str) -> str:
    record = request.get(role)
    if role.startswith("keyframe:"):
        record = (request.get("keyframes") or {}).get(role.removeprefix("keyframe:"))
    name = record.get("name") if isinstance(record, Mapping) else None
    return name if isinstance(name, str) else ""
