"""How far a story is, shot by shot, as the page shows it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.jobs import Job, JobState
from pixeldance.jobs.films import film_cache, story_from_json
from pixeldance.server.studio.context import StudioContext
from pixeldance.server.studio.history import FILM_DOWNLOADS, ClipFile
from pixeldance.server.studio.live import PHASES
from pixeldance.server.studio.story_draft import DraftReading, read_draft, split_problem
from pixeldance.stories import ClipCache, Story, StoryPlan, Target, plan_story

__all__ = ["MAX_JOBS", "StoryView"]

MAX_JOBS = 8
"""Films of a story that a browser remembers."""

_WORDS = {
    "last_frame_strength": "the strength",
    "transition ": "",
    "first_frame": "first picture",
    "last_frame": "last picture",
    "num_inference_steps": "steps",
}
"""How the page calls what errors name by its field."""

_KEPT_PLANS = 8


class StoryView:
    """Tells browsers about their stories, and makes films of them.

    Args:
        context: The service and what goes with it.
    """

    def __init__(self, context: StudioContext) -> None:
        self._context = context
        self._service = context.service
        self.cache: ClipCache = film_cache(context.service.store.folder)
        self._plans = _Plans(self._target)

    def look(self, draft: Mapping[str, Any]) -> dict[str, Any]:
        """What a browser shows of a story.

        Args:
            draft: See ``read_draft``; and ``jobs``, ids of the films made of it, latest last.

        Returns:
            JSON values: ``shots`` (state, label, poster, seconds, problem), ``problem``,
            ``summary``, ``can_make``, ``progress`` and ``film``.
        """
        reading, plan = self._read(draft)
        jobs = [*self._jobs(draft.get("jobs"))]
        active = [job for job in jobs if not job.is_final]
        keys = None if plan is None else [clip.key for clip in plan.clips]
        asked = [self._keys_of(job) for job in active]
        done = next((job for job in reversed(jobs) if job.clips), None)
        is_current = done is not None and self._is_film_of(done, plan)
        return {
            "shots": self._shots(draft, reading, plan, self._working_on(active), asked),
            "problem": self._plain(reading.problem) or _failure(jobs),
            "summary": "" if plan is None else self._summary(plan),
            "can_make": keys is not None and keys not in asked and not is_current,
            "progress": self._progress(active),
            "film": None if done is None else self._film(done, is_current=is_current),
        }

    def make(self, draft: Mapping[str, Any]) -> Job:
        """Put the film of a story into the queue.

        Args:
            draft: See ``read_draft``.

        Returns:
            Its job; it goes on whatever becomes of the browser.

        Raises:
            InputError: If something is wrong with the story.
        """
        reading, plan = self._read(draft)
        if plan is None:
            first = next(iter(sorted(reading.problems.items())), None)
            shot = "" if first is None else f"Shot {first[0] + 1}: {first[1]}"
            raise InputError(reading.problem or shot)
        self._context.check_room()
        return self._service.add(plan.story)

    def stop(self, draft: Mapping[str, Any]) -> None:
        """Stop what is made for a story; its finished clips stay.

        Args:
            draft: Its ``jobs`` are stopped.
        """
        for job in self._jobs(draft.get("jobs")):
            if not job.is_final:
                self._service.stop(job.id)

    # ---- the story and its jobs

    def _read(self, draft: Mapping[str, Any]) -> tuple[DraftReading, StoryPlan | None]:
        context = self._context
        reading = read_draft(
            draft, context.drafts, models=context.models, default_model=context.settings.model
        )
        if reading.story is None:
            return reading, None
        try:
            return reading, self._plans.get(reading.story)
        except InputError as error:
            return split_problem(error), None
        except PixelDanceError as error:
            return DraftReading(problem=str(error)), None

    def _target(self, model: str) -> Target:
        return Target.find(model, loras=self._context.settings.loras_of(model))

    def _jobs(self, ids: object) -> Iterable[Job]:
        for job_id in ids[-MAX_JOBS:] if isinstance(ids, list) else []:
            try:
                job = self._service.get(str(job_id))
            except InputError:  # removed meanwhile
                continue
            if job.is_film:
                yield job

    def _plan_of(self, job: Job) -> StoryPlan | None:
        try:
            return self._plans.get(story_from_json(job.request, self._service.store.folder))
        except PixelDanceError:  # made by another version, or its model is gone
            return None

    def _keys_of(self, job: Job) -> list[str]:
        plan = self._plan_of(job)
        return [] if plan is None else [clip.key for clip in plan.clips]

    def _is_film_of(self, job: Job, plan: StoryPlan | None) -> bool:
        made = self._plan_of(job)
        if plan is None or made is None:
            return False
        return _what_is_seen(plan) == _what_is_seen(made)

    def _working_on(self, active: Iterable[Job]) -> str | None:
        """Key of the clip that is being made: clips are made in their order."""
        running = next((job for job in active if job.state is JobState.RUNNING), None)
        if running is None:
            return None
        return next((key for key in self._keys_of(running) if key not in self.cache), None)

    # ---- what is shown

    def _shots(
        self,
        draft: Mapping[str, Any],
        reading: DraftReading,
        plan: StoryPlan | None,
        current: str | None,
        asked: list[list[str]],
    ) -> list[dict[str, Any]]:
        if plan is None:
            given = draft.get("shots")
            count = len(given) if isinstance(given, list) else 0
            return [{"problem": self._plain(reading.problems.get(i, ""))} for i in range(count)]
        waiting = {key for keys in asked for key in keys}
        return [
            {
                **_state([clip.key for clip in shot.clips], self.cache, current, waiting),
                "seconds": round(shot.num_frames / plan.story.fps, 2),
                "problem": "",
            }
            for shot in plan.shots
        ]

    def _summary(self, plan: StoryPlan) -> str:
        missing = sum(clip.key not in self.cache for clip in plan.clips)
        count, fps = len(plan.clips), plan.story.fps
        return " · ".join(
            [
                f"{plan.num_frames} frames at {fps} per second = {plan.num_frames / fps:.2f} s",
                f"{plan.size.width} × {plan.size.height} pixels",  # noqa: RUF001 - the sign for it
                f"{missing} of {count} clips to make" if missing else f"all {count} clips made",
            ]
        )

    def _progress(self, active: list[Job]) -> dict[str, Any] | None:
        if not active:
            return None
        job = next((one for one in active if one.state is JobState.RUNNING), active[0])
        event = self._service.event(job.id)
        label = PHASES[event.phase]
        if event.step:
            label += f" · step {event.step} of {event.num_steps}"
        if job.is_stopping:
            label = "Stopping after this step"
        elif job.is_paused:
            label = "Paused; let it go on in the queue below"
        elif job.state is JobState.QUEUED:
            label = "Waiting in the queue"
        return {"step": event.step, "num_steps": event.num_steps, "label": label}

    def _film(self, job: Job, *, is_current: bool) -> dict[str, Any]:
        def url(name: ClipFile) -> str:
            return self._context.urls.clip((job.id, 1), name)

        (clip,) = job.clips
        return {
            "url": url("clip.mp4"),
            "poster": url("thumbnail.jpg"),
            "ratio": f"{clip.width}/{clip.height}",
            "is_current": is_current,
            "downloads": [[label, f"{url(name)}?download=1"] for label, name in FILM_DOWNLOADS],
        }

    def _plain(self, message: str) -> str:
        plain = self._context.plain(PixelDanceError(message))
        for field, words in _WORDS.items():
            plain = plain.replace(field, words)
        return plain


class _Plans:
    """The latest plans, so that looking again reads no pictures."""

    def __init__(self, find_target: Callable[[str], Target]) -> None:
        self._find_target = find_target
        self._lock = threading.Lock()
        self._known: OrderedDict[str, StoryPlan] = OrderedDict()

    def get(self, story: Story) -> StoryPlan:
        """The plan of a story, whose pictures are named by what they show."""
        key = repr(story)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        plan = plan_story(story, self._find_target(story.model))
        with self._lock:
            self._known[key] = plan
            if len(self._known) > _KEPT_PLANS:
                self._known.popitem(last=False)
        return plan


def _state(
    keys: list[str], cache: ClipCache, current: str | None, waiting: set[str]
) -> dict[str, Any]:
    """How far a shot is: in a word for style, in words for people."""
    made = [key for key in keys if key in cache]
    poster = f"studio/story/posters/{keys[0]}.jpg" if keys[0] in made else None
    count = f" · {{}} of {len(keys)}" if len(keys) > 1 else ""
    if len(made) == len(keys):
        state, label = "made", "Made"
    elif current in keys:
        state, label = "making", f"Being made{count.format(len(made) + 1)}"
    elif waiting.intersection(keys):
        state, label = "waiting", "Waiting"
    else:
        state, label = "missing", f"To make{count.format(len(keys) - len(made))}"
    return {"state": state, "label": label, "poster": poster}


def _what_is_seen(plan: StoryPlan) -> tuple[list[str], int, bool]:
    return [clip.key for clip in plan.clips], plan.story.fps, plan.story.loop


def _failure(jobs: list[Job]) -> str:
    """Why the latest film was not made, if it was not."""
    latest = jobs[-1] if jobs else None
    if latest is None or latest.state not in {JobState.FAILED, JobState.INTERRUPTED}:
        return ""
    return latest.error or ""
