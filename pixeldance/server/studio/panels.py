"""The views of the jobs, and when to draw them anew."""

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from pixeldance.errors import InputError
from pixeldance.jobs import FINAL_STATES, Job, JobClip, JobState, ResidentModel
from pixeldance.server.studio.actions import running_job
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.fidelity import FidelityBook, badge_html
from pixeldance.server.studio.history import (
    ClipKey,
    ShownClip,
    compare_html,
    gallery_html,
    viewer_html,
)
from pixeldance.server.studio.live import PreviewStrips, live_html
from pixeldance.server.studio.model_panel import model_html
from pixeldance.server.studio.queue import queue_html

__all__ = ["PANELS", "Panels", "Seen"]

PANELS = ("model", "live", "preview", "queue", "viewer", "compare", "gallery")
WITH_CLIPS = (*FINAL_STATES, JobState.RUNNING)
"""States in which a job may have clips."""

MAX_QUEUE_ROWS = 50
MAX_TROUBLED_ROWS = 8

BUSY_S = 0.5
IDLE_S = 2.0
"""Seconds from look to look while something runs, and while nothing does."""


class Seen(NamedTuple):
    """What a tab shows already."""

    key: tuple[object, ...] = ()
    """Equal as long as nothing has changed."""
    digests: tuple[tuple[str, str], ...] = ()
    """Fingerprints of its panels."""
    is_running: bool | None = None


class Panels:
    """Draws the panels of all tabs.

    Args:
        context: The service and what goes with it.
    """

    def __init__(self, context: StudioContext) -> None:
        self._context = context
        self._service = context.service
        self._strips = PreviewStrips()
        self._fidelity = FidelityBook(context.service)

    def news(self, view: View, seen: Seen) -> tuple[dict[str, str], Seen]:
        """The panels that have changed.

        Args:
            view: What the tab looks at.
            seen: What it shows already.

        Returns:
            HTML by panel, only of those that are new; and what it shows then.
        """
        resident = ResidentModel.read(self._service.store.folder)
        key = (self._service.version(), self._fidelity.version, view, repr(resident))
        if key == seen.key:
            return {}, seen
        job = running_job(self._service)
        panels = self._draw(view, job, resident)
        digests = {name: hashlib.sha256(html.encode()).hexdigest() for name, html in panels.items()}
        known = dict(seen.digests)
        # A preview that is the same would only start again.
        news = {name: html for name, html in panels.items() if digests[name] != known.get(name)}
        return news, Seen(key, tuple(digests.items()), job is not None)

    def close(self) -> None:
        """Wait for measures that are being taken, and take no more."""
        self._fidelity.close()

    def _draw(self, view: View, job: Job | None, resident: ResidentModel | None) -> dict[str, str]:
        service, counts = self._service, self._service.counts()
        event = None if job is None else service.event(job.id)
        viewer = viewer_html(self._selected(view))
        model = self._context.settings.model
        return {
            "model": model_html(model, self._context.facts(), resident),
            "live": live_html(job, event, num_waiting=counts["queued"], has_clip=bool(viewer)),
            "preview": "" if job is None else self._strips.html(job.id, service.preview(job.id)),
            "queue": self._queue(view),
            "viewer": viewer,
            "compare": compare_html(self._find(view.compared)),
            "gallery": self._gallery(view),
        }

    def _queue(self, view: View) -> str:
        active = self._service.list(state=[JobState.RUNNING, JobState.QUEUED], limit=MAX_QUEUE_ROWS)
        over = self._service.list(
            state=[JobState.FAILED, JobState.INTERRUPTED, JobState.CANCELLED],
            limit=MAX_TROUBLED_ROWS,
        )
        return queue_html(
            [*active.jobs, *over.jobs],
            total=active.total + over.total,
            editing=view.editing,
            url_of=self._context.urls.picture,
        )

    def _gallery(self, view: View) -> str:
        page = self._service.list(state=WITH_CLIPS, search=view.search, limit=view.num_cards)
        cards = [
            self._shown(job, clip, has_badge=False)
            for job in page.jobs
            for clip in reversed(job.clips)
        ]
        return gallery_html(
            cards,
            search=view.search,
            has_more=page.total > len(page.jobs),
            selected=view.clip,
            compared=view.compared,
        )

    def _selected(self, view: View) -> ShownClip | None:
        """The clip that was chosen, or the latest."""
        chosen = self._find([view.clip] if view.clip else [])
        if chosen:
            return chosen[0]
        jobs = self._service.list(state=WITH_CLIPS, limit=MAX_TROUBLED_ROWS).jobs
        latest = next((job for job in jobs if job.clips), None)
        return None if latest is None else self._shown(latest, latest.clips[-1])

    def _find(self, keys: Iterable[ClipKey]) -> list[ShownClip]:
        """The clips of these keys that are still there."""
        found = []
        for job_id, number in keys:
            try:
                job = self._service.get(job_id)
            except InputError:
                continue
            found += [self._shown(job, clip) for clip in job.clips if clip.number == number]
        return found

    def _shown(self, job: Job, clip: JobClip, *, has_badge: bool = True) -> ShownClip:
        key = (job.id, clip.number)
        # A film may be too long to be held in memory as a whole.
        is_measured = has_badge and not job.is_film
        badge = badge_html(self._fidelity.get(*key)) if is_measured else ""
        return ShownClip(job, clip, partial(self._context.urls.clip, key), badge)
