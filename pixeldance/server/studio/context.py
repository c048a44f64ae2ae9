"""What all parts of the page share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradio.utils import get_upload_folder

from pixeldance.backbones.facts import ModelFacts, installed_facts
from pixeldance.errors import InputError, PixelDanceError
from pixeldance.jobs import JobService
from pixeldance.models.loading import available_models
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.drafts import DraftPictures
from pixeldance.server.studio.media import MediaUrls

__all__ = ["StudioContext", "View", "draft_pictures"]


CARDS = 12
MAX_CARDS = 600


@dataclass(frozen=True, kw_only=True)
class View:
    """What a tab looks at.

    Attributes:
        clip: The clip in the viewer; None for the latest.
        compared: Clips that are compared, at most two.
        editing: The queued job that is in the form.
        search: What the gallery is searched for.
        num_cards: How many jobs the gallery shows.
    """

    clip: tuple[str, int] | None = None
    compared: tuple[tuple[str, int], ...] = ()
    editing: str | None = None
    search: str = ""
    num_cards: int = CARDS

    def after(self, event: Mapping[str, Any]) -> "View":
        """What the tab looks at after one of its events.

        Args:
            event: ``do`` and what belongs to it; it comes from a browser.

        Returns:
            The new view; the same one if the event says nothing.
        """
        if event.get("do") == "more":
            return replace(self, num_cards=min(self.num_cards + CARDS, MAX_CARDS))
        if event.get("do") == "compare_none":
            return replace(self, compared=())
        try:
            clip = (str(event["job"]), int(event["clip"]))
        except (KeyError, TypeError, ValueError):
            return self
        if event.get("do") == "select":
            return replace(self, clip=clip)
        if event.get("do") == "compare" and clip in self.compared:
            return replace(self, compared=tuple(one for one in self.compared if one != clip))
        if event.get("do") == "compare":
            return replace(self, compared=(*self.compared[-1:], clip))
        return self


class StudioContext:
    """The service and what goes with it.

    Args:
        service: The service.
        settings: How the server is run.
    """

    def __init__(self, service: JobService, settings: ServerSettings) -> None:
        self.service = service
        self.settings = settings
        self.drafts = draft_pictures(service)
        self.urls = MediaUrls()
        self.models = tuple(dict.fromkeys([settings.model, *available_models()]))

    def facts(self, model: object = None) -> ModelFacts | None:
        """What the configuration of a model says.

        Args:
            model: As a form names it; by default the server's own.

        Returns:
            The facts; None for a model that is not offered, is not on this machine or damaged.
        """
        chosen = self.settings.model if model is None else model
        if not isinstance(chosen, str) or chosen not in self.models:
            return None
        return installed_facts(chosen, loras=self.settings.loras_of(chosen))

    def check_room(self) -> None:
        """Check that the queue has room for a further job.

        Raises:
            InputError: If it has not.
        """
        limit = self.settings.max_queued
        if self.service.counts()["queued"] >= limit:
            raise InputError(f"{limit} jobs are waiting already. Wait, or remove some of them.")

    def plain(self, error: PixelDanceError) -> str:
        """An error as a person understands it: files by their names, without folders.

        Args:
            error: The error.

        Returns:
            One line.
        """
        folders = (str(self.service.store.folder.path), get_upload_folder())
        known = "|".join(re.escape(folder) for folder in folders)
        return re.sub(rf"(?:{known})[\\/](?:[\w.-]+[\\/])*", "", str(error))


def draft_pictures(service: JobService) -> DraftPictures:
    """The drafts beside a service's jobs.

    Args:
        service: The service.

    Returns:
        Pictures of forms.
    """
    return DraftPictures(service.store.folder.path / "drafts")
