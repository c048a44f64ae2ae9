"""The job store: a SQLite file and the pictures and clips beside it.

What a method returns is on the disk. Any number of processes may have a store open; one of them at
a time, the worker, runs its jobs.
"""

import os
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

from pixeldance.errors import InputError
from pixeldance.jobs.database import Database
from pixeldance.jobs.errors import IdempotencyKeyError, JobStateError, UnknownJobError
from pixeldance.jobs.films import StoredStory, stored_form
from pixeldance.jobs.folders import DataFolder, default_data_folder
from pixeldance.jobs.job import Job, JobState, pictures_of
from pixeldance.jobs.locks import WorkerLock
from pixeldance.jobs.requests import StoredRequest, request_from_json, with_changes
from pixeldance.jobs.rows import read_jobs
from pixeldance.jobs.running import RunningJobs
from pixeldance.jobs.storage import DEFAULT_QUOTA_BYTES, Storage
from pixeldance.request import GenerationRequest
from pixeldance.stories import Story

__all__ = ["JobPage", "JobStore"]

MAX_KEY_LENGTH = 255


class JobPage(NamedTuple):
    """A part of a list of jobs."""

    jobs: list[Job]
    total: int
    """How many jobs there are in all that fit the filters."""


class JobStore:
    """The jobs of a user.

    Args:
        folder: The data folder; by default ``default_data_folder()``. It is made if missing.
        quota_bytes: New jobs are refused when pictures and clips take more; None for no limit.

    Raises:
        PixelDanceError: If the folder cannot be used, or its store is damaged or too new.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        quota_bytes: int | None = DEFAULT_QUOTA_BYTES,
    ) -> None:
        self.folder = DataFolder(default_data_folder() if folder is None else folder)
        self._database = Database(self.folder.database)
        self.running = RunningJobs(self._database)
        self.storage = Storage(self._database, self.folder, quota_bytes=quota_bytes)
        with WorkerLock(self.folder.worker_lock) as lock:
            if lock.try_acquire():  # nobody works, so what runs was left behind
                self.running.recover()

    def close(self) -> None:
        """Close the store."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def version(self) -> tuple[int, int]:
        """Something that differs from before if any process has changed any job; very cheap."""
        return self._database.version()

    # ---- reading

    def get(self, job_id: str) -> Job:
        """Look a job up.

        Args:
            job_id: The job.

        Returns:
            The job as it is now.

        Raises:
            UnknownJobError: If there is none of that id.
        """
        found = read_jobs(self._database, "WHERE id = ?", (job_id,))
        if not found:
            raise UnknownJobError(
                f"There is no job {job_id[:64]!r}. It may have been removed; list the jobs."
            )
        return found[0]

    def list(
        self,
        *,
        states: Iterable[JobState] = (),
        search: str = "",
        limit: int = 100,
        offset: int = 0,
    ) -> JobPage:
        """List jobs: what runs, what waits in the order of the queue, what is over, latest first.

        Args:
            states: Only jobs in one of these; all if empty.
            search: Only jobs with this in their prompt or id, whatever the case.
            limit: How many at most, 1 to 1000.
            offset: How many to leave out at the start.

        Returns:
            The jobs, and how many there are in all.

        Raises:
            InputError: If limit or offset is out of range.
        """
        if not 1 <= limit <= 1000 or offset < 0:
            raise InputError(
                f"limit must be 1 to 1000 and offset at least 0, got {limit} and {offset}."
            )
        chosen = [JobState(state).value for state in states]
        conditions, values = ["TRUE"], [*chosen]
        if chosen:
            conditions.append(f"state IN ({', '.join('?' * len(chosen))})")
        if search:
            conditions.append("instr(search_text, ?) > 0")
            values.append(search.casefold())
        where = "WHERE " + " AND ".join(conditions)
        jobs = read_jobs(
            self._database,
            f"{where} ORDER BY section, rank, created_at LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        ((total,),) = self._database.rows(f"SELECT COUNT(*) FROM jobs {where}", values)
        return JobPage(jobs, total)

    def by_creation(self, *, after: str | None, limit: int, newest_first: bool) -> tuple[Job, ...]:
        """Jobs in the order of their creation, which never changes; for reading page by page.

        Args:
            after: Only jobs behind this one, by its id; all if None.
            limit: How many at most.
            newest_first: Whether the newest comes first.

        Returns:
            The jobs.
        """
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where: str = ""
        values: tuple[Any, ...] = ()
        if after is not None:
            where, values = f"WHERE (created_at, id) {sign} (?, ?)", self._created(after)
        tail = f"{where} ORDER BY created_at {order}, id {order} LIMIT ?"
        return tuple(read_jobs(self._database, tail, (*values, limit)))

    def _created(self, job_id: str) -> tuple[float, str]:
        return self.get(job_id).created_at, job_id

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state, also where it is 0."""
        rows = self._database.rows("SELECT state, COUNT(*) AS number FROM jobs GROUP BY state")
        found = {row["state"]: row["number"] for row in rows}
        return {state: found.get(state.value, 0) for state in JobState}

    def request(self, job_id: str) -> GenerationRequest:
        """The request of a job, with the stored pictures.

        Args:
            job_id: The job.

        Returns:
            The request; its seed is open if it was left open.
        """
        return request_from_json(self.get(job_id).request, self.folder)

    # ---- changing

    def add(self, request: GenerationRequest | Story, *, idempotency_key: str | None = None) -> Job:
        """Put a request at the end of the queue.

        Args:
            request: The request, or the story of a film; pictures are copied into the data folder.
            idempotency_key: Names this call: made again with the same key and the same request, it
                adds nothing.

        Returns:
            The job, queued; with a key that was used before the job of then, whatever its state.

        Raises:
            InputError: If a picture cannot be read.
            IdempotencyKeyError: If the key belongs to another request.
            StorageFullError: If the quota is used up or the disk is nearly full.
        """
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_KEY_LENGTH:
            raise InputError(
                f"An idempotency key has 1 to {MAX_KEY_LENGTH} characters, got "
                f"{len(idempotency_key)}."
            )
        if idempotency_key is None or not self.has_key(idempotency_key):
            self.storage.check_room()  # before pictures are written
        stored = stored_form(request, self.folder)
        with self._database.transaction():
            if idempotency_key is not None:
                same = self._database.rows(
                    "SELECT id, request FROM jobs WHERE idempotency_key = ?", (idempotency_key,)
                )
                if same and same[0]["request"] != stored.text:
                    raise IdempotencyKeyError(
                        f"The idempotency key {idempotency_key!r} was used for another request. "
                        "Use a new key for each request."
                    )
                if same:
                    return self.get(same[0]["id"])
            return self.get(self._insert(stored, idempotency_key))

    def has_key(self, key: str) -> bool:
        """Whether a job was added with this idempotency key."""
        return bool(self._database.rows("SELECT 1 FROM jobs WHERE idempotency_key = ?", (key,)))

    def _insert(self, stored: StoredRequest | StoredStory, idempotency_key: str | None) -> str:
        job_id = secrets.token_hex(6)
        self._database.execute(
            "INSERT INTO jobs (id, state, position, request, search_text, seed, num_steps,"
            " created_at, idempotency_key) VALUES (?, 'queued',"
            " (SELECT COALESCE(MAX(position), 0) + 1 FROM jobs WHERE state = 'queued'),"
            " ?, ?, ?, ?, ?, ?)",
            (
                job_id,
                stored.text,
                _search_text(job_id, stored),
                secrets.randbits(32) if stored.seed is None else stored.seed,
                stored.num_steps,
                time.time(),
                idempotency_key,
            ),
        )
        self.storage.link_pictures(job_id, stored.pictures.values())
        return job_id

    def edit(self, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Change the request of a queued job.

        Args:
            job_id: The job.
            changes: New values by field of the request; None takes a field out.

        Returns:
            The job, at its place.

        Raises:
            JobStateError: If it is not queued any more.
            InputError: If the new request is wrong; the job stays as it was.
        """
        job = self.get(job_id)
        self._require(job, "edited", JobState.QUEUED, hint="Duplicate it with changes instead.")
        if job.clips:
            raise JobStateError(
                f"The job {job.id} has finished clips and cannot be edited. Duplicate it with "
                "changes instead."
            )
        request = with_changes(job.request, changes, self.folder)
        stored = StoredRequest(request, self.folder, known=pictures_of(job.request).values())
        seed = job.seed
        if "seed" in changes:
            seed = secrets.randbits(32) if request.seed is None else request.seed
        with self._database.transaction():
            edited = self._database.execute(
                "UPDATE jobs SET request = ?, search_text = ?, seed = ?, num_steps = ?,"
                " revision = revision + 1 WHERE id = ? AND state = 'queued'",
                (stored.text, _search_text(job_id, stored), seed, stored.num_steps, job_id),
            )
            if edited:
                self.storage.link_pictures(job_id, stored.pictures.values())
        if not edited:  # it was taken up meanwhile
            self._require(self.get(job_id), "edited", JobState.QUEUED)
        self.storage.drop_unused_pictures()
        return self.get(job_id)

    def duplicate(self, job_id: str, changes: Mapping[str, Any] | None = None) -> Job:
        """Add a job with the request of another; a seed that was left open is drawn anew.

        Args:
            job_id: The job to copy, in whatever state.
            changes: New values by field of the request; None takes a field out.

        Returns:
            The new job, at the end of the queue.
        """
        self.storage.check_room()
        job = self.get(job_id)
        request = with_changes(job.request, changes or {}, self.folder)
        stored = StoredRequest(request, self.folder, known=pictures_of(job.request).values())
        with self._database.transaction():
            return self.get(self._insert(stored, None))

    def move(self, job_id: str, place: int) -> Job:
        """Move a queued job within the queue.

        Args:
            job_id: The job.
            place: Its new place from 0, which is next; a place behind the end is the end.

        Returns:
            The job.

        Raises:
            InputError: If the place is negative.
            JobStateError: If the job is not queued.
        """
        if place < 0:
            raise InputError(f"place must be at least 0 (next), got {place}.")
        with self._database.transaction():
            self._require(self.get(job_id), "moved", JobState.QUEUED)
            self._place(job_id, place)
            return self.get(job_id)

    def _place(self, job_id: str, place: int) -> None:
        """Give a job a position between its new neighbours, so that they keep theirs."""
        others = self._database.rows(
            "SELECT id, position FROM jobs WHERE state = 'queued' AND id != ? ORDER BY rank",
            (job_id,),
        )
        positions = [row["position"] for row in others]
        place = min(place, len(positions))
        upper = positions[place] if place < len(positions) else max(positions, default=0.0) + 2.0
        lower = positions[place - 1] if place > 0 else upper - 2.0
        middle = (lower + upper) / 2
        if not lower < middle < upper:  # no number is left between them
            for number, row in enumerate(others):
                self._set_position(row["id"], number)
            middle = place - 0.5
        self._set_position(job_id, middle)

    def _set_position(self, job_id: str, position: float) -> None:
        self._database.execute("UPDATE jobs SET position = ? WHERE id = ?", (position, job_id))

    def set_paused(self, job_id: str, is_paused: bool) -> Job:
        """Pause or resume a job that is queued or running.

        Args:
            job_id: The job.
            is_paused: A queued job is passed over, a running one waits after its step.

        Returns:
            The job.
        """
        verb = "paused" if is_paused else "resumed"
        with self._database.transaction():
            self._require(self.get(job_id), verb, JobState.QUEUED, JobState.RUNNING)
            self._database.execute(
                "UPDATE jobs SET is_paused = ?, revision = revision + 1 WHERE id = ? AND"
                " is_paused != ?",
                (is_paused, job_id, is_paused),
            )
            return self.get(job_id)

    def stop(self, job_id: str) -> Job:
        """Stop a job: at once if it is queued, after its step if it runs.

        Args:
            job_id: The job. Clips of it that are finished stay.

        Returns:
            The job, cancelled or about to be.
        """
        with self._database.transaction():
            job = self.get(job_id)
            self._require(job, "stopped", JobState.QUEUED, JobState.RUNNING)
            if job.state is JobState.RUNNING:
                return self._command(job_id, "stop")
            self._database.execute(
                "UPDATE jobs SET state = 'cancelled', finished_at = ?, position = NULL,"
                " is_paused = 0, revision = revision + 1 WHERE id = ?",
                (time.time(), job_id),
            )
            return self.get(job_id)

    def finish_early(self, job_id: str) -> Job:
        """Have a running job decode what there is after its step, and make no further clips.

        Args:
            job_id: The job.

        Returns:
            The job, about to be done.

        Raises:
            JobStateError: If it does not run, or makes a film.
        """
        with self._database.transaction():
            job = self.get(job_id)
            self._require(job, "finished early", JobState.RUNNING)
            if job.is_film:
                raise JobStateError("A film cannot be finished early. Stop it; its clips are kept.")
            return job if job.is_stopping else self._command(job_id, "finish")

    def _command(self, job_id: str, command: Literal["stop", "finish"]) -> Job:
        self._database.execute(
            "UPDATE jobs SET command = ?, is_paused = 0, revision = revision + 1 WHERE id = ?"
            " AND command IS NOT ?",
            (command, job_id, command),
        )
        return self.get(job_id)

    def requeue(self, job_id: str) -> Job:
        """Put a job that failed, was stopped or interrupted back at the end of the queue.

        Args:
            job_id: The job. Clips of it that are finished stay and are not made again.

        Returns:
            The job, queued.
        """
        self.storage.check_room()
        with self._database.transaction():
            self._require(
                self.get(job_id),
                "requeued",
                JobState.FAILED,
                JobState.CANCELLED,
                JobState.INTERRUPTED,
                hint="Duplicate it instead.",
            )
            self._database.execute(
                "UPDATE jobs SET state = 'queued', finished_at = NULL, error = NULL, traceback ="
                " NULL, num_interruptions = 0, revision = revision + 1, position ="
                " (SELECT COALESCE(MAX(position), 0) + 1 FROM jobs WHERE state = 'queued')"
                " WHERE id = ?",
                (job_id,),
            )
            return self.get(job_id)

    def remove(self, job_id: str) -> None:
        """Remove a job that does not run, with its clips.

        Args:
            job_id: The job.
        """
        with self._database.transaction():
            job = self.get(job_id)
            others = frozenset(JobState) - {JobState.RUNNING}
            self._require(job, "removed", *others, hint="Stop it first.")
            self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        self.storage.remove_clips(job_id)
        self.storage.drop_unused_pictures()

    def _require(self, job: Job, verb: str, *states: JobState, hint: str = "") -> None:
        if job.state not in states:
            text = f"The job {job.id} is {job.state.value} and cannot be {verb}."
            raise JobStateError(f"{text} {hint}".strip())


def _search_text(job_id: str, stored: StoredRequest | StoredStory) -> str:
    return f"{job_id} {stored.prompt}".casefold()
