"""Requests as the store keeps them: JSON values, with pictures named by their fingerprints."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pixeldance.backbones.facts import installed_facts
from pixeldance.errors import InputError
from pixeldance.jobs.folders import DataFolder
from pixeldance.jobs.pictures import StoredPicture
from pixeldance.models.loading import is_model
from pixeldance.request import GenerationRequest

__all__ = ["StoredRequest", "absolute_model", "request_from_json", "with_changes"]

_PICTURES = ("first_frame", "last_frame")


class StoredRequest:
    """A checked request whose pictures are in the data folder.

    Args:
        request: The request.
        folder: Where its pictures go.
        known: Records of pictures that are there already, whose names are kept.

    Raises:
        InputError: If a picture cannot be read, or the model, where it is here, cannot do it.
    """

    def __init__(
        self,
        request: GenerationRequest,
        folder: DataFolder,
        *,
        known: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        facts = installed_facts(request.model)
        if facts is not None:
            facts.check(request)
        self.request = request
        self.pictures = {
            role: StoredPicture(source, folder) for role, source in request.pictures.items()
        }
        names = {f"{record['sha256']}.png": record["name"] for record in known}
        for picture in self.pictures.values():
            picture.record["name"] = names.get(picture.record["name"], picture.record["name"])
        self.fields = self._to_json()

    @property
    def text(self) -> str:
        """The fields as JSON text; equal requests have equal texts."""
        return json.dumps(self.fields, sort_keys=True, ensure_ascii=False)

    @property
    def prompt(self) -> str:
        """What jobs are searched for."""
        return self.request.prompt

    @property
    def seed(self) -> int | None:
        """Its seed, if it was given."""
        return self.request.seed

    @property
    def num_steps(self) -> int:
        """Sampling steps of all clips together."""
        return self.request.num_inference_steps * self.request.num_videos

    def _to_json(self) -> dict[str, Any]:
        """The fields that were given; those left out follow the defaults of their time."""
        request = self.request
        fields = {name: getattr(request, name) for name in sorted(request.model_fields_set)}
        for role in _PICTURES:
            if fields.get(role) is not None:
                fields[role] = self.pictures[role].record
        if "keyframes" in fields:
            fields["keyframes"] = {
                str(frame): self.pictures[f"keyframe:{frame}"].record for frame in request.keyframes
            }
        if "focus" in fields:
            fields["focus"] = list(fields["focus"])
        if "model" in fields:
            fields["model"] = absolute_model(request.model)
        return {name: value for name, value in fields.items() if value is not None}


def absolute_model(model: str) -> str:
    """A model as the worker finds it, which runs in another folder.

    Args:
        model: Its name or folder.

    Returns:
        The name, or the whole path of the folder.
    """
    folder = Path(model).expanduser()
    return str(folder.resolve()) if is_model(folder) else model


def request_from_json(fields: Mapping[str, Any], folder: DataFolder) -> GenerationRequest:
    """The request that was stored.

    Args:
        fields: ``StoredRequest.fields``.
        folder: Where its pictures are.

    Returns:
        The request, with the paths of its pictures.
    """
    return GenerationRequest.parse(_with_paths(fields, folder))


def with_changes(
    fields: Mapping[str, Any], changes: Mapping[str, Any], folder: DataFolder
) -> GenerationRequest:
    """A stored request with some fields changed.

    Args:
        fields: ``StoredRequest.fields``.
        changes: New values by field; None takes a field out.
        folder: Where the pictures of the stored request are.

    Returns:
        The new request.

    Raises:
        InputError: If it is wrong.
    """
    merged = {**_with_paths(fields, folder), **changes}
    return GenerationRequest.parse({k: v for k, v in merged.items() if v is not None})


def _with_paths(fields: Mapping[str, Any], folder: DataFolder) -> dict[str, Any]:
    if "story" in fields:
        raise InputError(
            "This job makes a film of several shots, which has no settings of one clip. Change its "
            "story and make the film again."
        )

    def path_of(record: Mapping[str, Any]) -> Path:
        return folder.picture(record["sha256"])

    paths = {role: path_of(fields[role]) for role in _PICTURES if role in fields}
    keyframes = {frame: path_of(item) for frame, item in fields.get("keyframes", {}).items()}
    return {**fields, **paths, **({"keyframes": keyframes} if keyframes else {})}
