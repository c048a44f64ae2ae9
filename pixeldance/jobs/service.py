"""Jobs for whoever offers them: the page, the server, the command line."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from pixeldance.errors import InputError
from pixeldance.jobs.folders import ClipFiles
from pixeldance.jobs.job import Job, JobEvent, JobState, Phase, Preview
from pixeldance.jobs.live import BoardReader, Note
from pixeldance.jobs.storage import Usage
from pixeldance.jobs.store import JobPage, JobStore
from pixeldance.request import GenerationRequest
from pixeldance.stories import Story
from pixeldance.video import read_recipe

__all__ = ["JobService"]

POLL_S = 0.05
"""How often a watcher looks for news; looking costs some microseconds."""

_NOTES_PER_REVISION = 1_000_000


class JobService:
    """All that can be done with the jobs of a store. Its methods may be called from any thread.

    It runs no jobs: ``WorkerProcess`` and ``Worker`` do.

    Args:
        store: The store; it is closed with the service.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._board = BoardReader(store.folder.live)
        self._note_lock = threading.Lock()
        self._note: tuple[int, Note | None] = (-1, None)

    def close(self) -> None:
        """Close the store; iterators of events end with an error."""
        self._board.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- the queue

    def add(
        self,
        request: GenerationRequest | Story | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
    ) -> Job:
        """Put a request or a film at the end of the queue; see ``JobStore.add``.

        Args:
            request: A request, or its fields, or the story of a film.
            idempotency_key: Names this call, so that repeating it adds nothing.

        Returns:
            The job; it is on the disk.

        Raises:
            InputError: If the request is wrong, or the key belongs to another request.
            StorageFullError: If the quota is used up or the disk is nearly full.
        """
        if isinstance(request, Mapping):
            request = GenerationRequest.parse(request)
        return self.store.add(request, idempotency_key=idempotency_key)

    def get(self, job_id: str) -> Job:
        """Look a job up.

        Args:
            job_id: The job.

        Returns:
            The job as it is now. An unknown id is an ``UnknownJobError``, here and in every method.
        """
        return self.store.get(job_id)

    def list(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] | None = None,
        search: str = "",
        limit: int = 100,
        offset: int = 0,
    ) -> JobPage:
        """List jobs: what runs, what waits in the order of the queue, what is over, latest first.

        Args:
            state: Only jobs in this state, or in one of these.
            search: Only jobs with this in their prompt or id, whatever the case.
            limit: How many at most, 1 to 1000.
            offset: How many to leave out at the start.

        Returns:
            The jobs, and how many there are in all.
        """
        given = [state] if isinstance(state, str) else (state or [])
        return self.store.list(
            states=[_state(one) for one in given], search=search, limit=limit, offset=offset
        )

    def by_creation(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = True
    ) -> tuple[Job, ...]:
        """Jobs in the order of their creation, see ``JobStore.by_creation``."""
        return self.store.by_creation(after=after, limit=limit, newest_first=newest_first)

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state, by its name, also where it is 0."""
        return {state.value: number for state, number in self.store.counts().items()}

    def request(self, job_id: str) -> GenerationRequest:
        """The request of a job with the stored pictures, to fill a form with.

        Args:
            job_id: The job.

        Returns:
            The request.
        """
        return self.store.request(job_id)

    def stop(self, job_id: str) -> Job:
        """Stop a job: at once if it is queued, after its step if it runs.

        Args:
            job_id: The job. Clips of it that are finished stay.

        Returns:
            The job, cancelled or about to be.
        """
        return self.store.stop(job_id)

    def finish_early(self, job_id: str) -> Job:
        """Have a running job decode what there is after its step, and make no further clips.

        Args:
            job_id: The job.

        Returns:
            The job, about to be done.
        """
        return self.store.finish_early(job_id)

    def pause(self, job_id: str) -> Job:
        """Pause a job: a queued one is passed over, a running one waits after its step.

        Args:
            job_id: The job.

        Returns:
            The job, paused.
        """
        return self.store.set_paused(job_id, True)

    def resume(self, job_id: str) -> Job:
        """Have a paused job go on.

        Args:
            job_id: The job.

        Returns:
            The job, not paused any more.
        """
        return self.store.set_paused(job_id, False)

    def move(self, job_id: str, place: int) -> Job:
        """Move a queued job within the queue.

        Args:
            job_id: The job.
            place: Its new place from 0, which is next; a place behind the end is the end.

        Returns:
            The job.
        """
        return self.store.move(job_id, place)

    def run_next(self, job_id: str) -> Job:
        """Move a queued job to the head of the queue.

        Args:
            job_id: The job.

        Returns:
            The job.
        """
        return self.store.move(job_id, 0)

    def edit(self, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Change the request of a queued job.

        Args:
            job_id: The job.
            changes: New values by field of the request; None takes a field out.

        Returns:
            The job, at its place.
        """
        return self.store.edit(job_id, changes)

    def duplicate(self, job_id: str, changes: Mapping[str, Any] | None = None) -> Job:
        """Add a job with the request of another; a seed that was left open is drawn anew.

        Args:
            job_id: The job to copy, in whatever state.
            changes: New values by field of the request; None takes a field out.

        Returns:
            The new job, at the end of the queue.
        """
        return self.store.duplicate(job_id, changes)

    def requeue(self, job_id: str) -> Job:
        """Put a job that failed, was stopped or interrupted back at the end of the queue.

        Args:
            job_id: The job. Clips of it that are finished stay and are not made again.

        Returns:
            The job, queued.
        """
        return self.store.requeue(job_id)

    def remove(self, job_id: str) -> None:
        """Remove a job that does not run, with its clips.

        Args:
            job_id: The job.
        """
        self.store.remove(job_id)

    # ---- progress

    def event(self, job_id: str) -> JobEvent:
        """How far a job is.

        Args:
            job_id: The job.

        Returns:
            Its latest event.
        """
        job = self.get(job_id)
        return _event(job, self._note_of(job))

    def events(
        self, job_id: str, *, after: int = -1, timeout_s: float | None = None
    ) -> Iterator[JobEvent]:
        """Follow a job. Whoever is slow misses events, never the latest.

        Args:
            job_id: The job.
            after: Only events with a greater number.
            timeout_s: End when there was no news for so long; by default never.

        Yields:
            JobEvent: The latest event, then each new one, until the job is over.
        """
        follow = self._follower(job_id, after)
        last_news = time.monotonic()
        while True:
            event = follow()
            if event is not None:
                yield event
                if event.is_final:
                    return
                last_news = time.monotonic()
            elif timeout_s is not None and time.monotonic() - last_news > timeout_s:
                return
            else:
                time.sleep(POLL_S)

    async def watch(self, job_id: str, *, after: int = -1) -> AsyncIterator[JobEvent]:
        """Follow a job as ``events`` does, without a thread of its own.

        Args:
            job_id: The job.
            after: Only events with a greater number.

        Yields:
            JobEvent: The latest event, then each new one, until the job is over.
        """
        follow = self._follower(job_id, after)
        while True:
            event = follow()
            if event is not None:
                yield event
                if event.is_final:
                    return
            else:
                await asyncio.sleep(POLL_S)

    def version(self) -> tuple[int, ...]:
        """Something that differs from before if anything has changed anywhere; very cheap."""
        return (*self.store.version(), self._board.sequence)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """Wait until a job is over.

        Args:
            job_id: The job.
            timeout_s: Wait so long at most.

        Returns:
            The job as it is then; look at ``is_final``.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        job = self.get(job_id)
        while not job.is_final and (end is None or time.monotonic() < end):
            time.sleep(POLL_S)
            job = self.get(job_id)
        return job

    def preview(self, job_id: str) -> Preview | None:
        """What a running job is about to make.

        Args:
            job_id: The job.

        Returns:
            The latest preview; None if there is none, or the job does not run.
        """
        note = self._note_of(self.get(job_id))
        if note is None or note.preview is None or note.preview_number is None:
            return None
        return Preview(number=note.preview_number, frames=note.preview)

    def _follower(self, job_id: str, after: int) -> Callable[[], JobEvent | None]:
        """A function that gives the latest event of a job if it is news."""
        seen: tuple[int, ...] = ()
        number = after

        def follow() -> JobEvent | None:
            nonlocal seen, number
            version = self.version()
            if version == seen:
                return None
            event = self.event(job_id)
            seen = version
            if event.number <= number and not (event.is_final and number == after):
                return None
            number = event.number
            return event

        return follow

    def _note_of(self, job: Job) -> Note | None:
        """What stands on the board about this run of a job; read once for all watchers."""
        if job.state is not JobState.RUNNING:
            return None
        with self._note_lock:
            sequence = self._board.sequence
            if sequence != self._note[0]:
                self._note = (sequence, self._board.read())
            note = self._note[1]
        is_of_this_run = note and (note.job_id, note.attempt) == (job.id, job.num_attempts)
        return note if is_of_this_run else None

    # ---- results and room

    def clip_files(self, job_id: str, number: int = 1) -> ClipFiles:
        """The files of a finished clip.

        Args:
            job_id: The job.
            number: Which of its clips, from 1.

        Returns:
            Paths in the data folder.

        Raises:
            InputError: If the job has no such clip.
        """
        job = self.get(job_id)
        if number not in {clip.number for clip in job.clips}:
            raise InputError(
                f"The job {job_id} is {job.state.value} and has {len(job.clips)} finished "
                f"clips; there is no clip {number}."
            )
        return self.store.folder.clip_files(job_id, number)

    def recipe(self, job_id: str, number: int = 1) -> dict[str, Any]:
        """How a finished clip was made.

        Args:
            job_id: The job.
            number: Which of its clips, from 1.

        Returns:
            Its recipe.
        """
        return read_recipe(self.clip_files(job_id, number).recipe)

    def usage(self) -> Usage:
        """What the store takes, its quota and what is left on the disk."""
        return self.store.storage.usage()

    def clean_up(
        self, *, older_than_s: float | None = None, keep: int | None = None
    ) -> tuple[str, ...]:
        """Remove jobs that are over, with their clips. Nothing is ever removed unasked.

        Args:
            older_than_s: Only those that ended longer ago than this many seconds.
            keep: Only those beyond this many, the latest being kept.

        Returns:
            Ids of the jobs removed.
        """
        return tuple(self.store.storage.clean_up(older_than_s=older_than_s, keep=keep))


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        raise InputError(
            f"There is no state {name!r} of a job. Use one of {', '.join(JobState)}."
        ) from None


def _event(job: Job, note: Note | None) -> JobEvent:
    phase = Phase.QUEUED if job.state is JobState.QUEUED else Phase.FINISHED
    if job.state is JobState.RUNNING:
        phase = Phase.LOADING if note is None else note.phase
    return JobEvent(
        job_id=job.id,
        number=job.revision * _NOTES_PER_REVISION + (0 if note is None else note.number),
        state=job.state,
        is_paused=job.is_paused,
        phase=phase,
        step=sum(clip.num_steps_done for clip in job.clips) if note is None else note.step,
        num_steps=job.num_steps,
        clip=len(job.clips) if note is None else note.clip,
        num_clips=job.request.get("num_videos", 1) if note is None else note.num_clips,
        seconds_per_step=None if note is None else note.seconds_per_step,
        remaining_s=None if note is None else note.remaining_s,
        preview_number=None if note is None else note.preview_number,
        error=job.error,
    )
