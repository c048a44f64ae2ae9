"""The worker's side of the store: which job is next, what was asked of it, how it ended."""

import json
import time
from dataclasses import asdict
from typing import Literal, NamedTuple

from pixeldance.jobs.database import Database
from pixeldance.jobs.job import Job, JobClip, JobState
from pixeldance.jobs.rows import read_jobs

__all__ = ["Control", "RunningJobs"]

MAX_INTERRUPTIONS = 1
"""A job whose worker died this often is requeued; the next time it is given up."""


class Control(NamedTuple):
    """What was asked of the running job."""

    command: Literal["stop", "finish"] | None
    is_paused: bool


class RunningJobs:
    """Claims and ends jobs, each in one transaction; for the holder of the worker lock.

    Args:
        database: The store's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self) -> Job | None:
        """Take up the first job of the queue that is not paused.

        Returns:
            The job, running; None if there is nothing to do.
        """
        with self._database.transaction():
            found = self._database.rows(
                "SELECT id FROM jobs WHERE state = 'queued' AND NOT is_paused ORDER BY rank LIMIT 1"
            )
            if not found:
                return None
            job_id = found[0]["id"]
            self._database.execute(
                "UPDATE jobs SET state = 'running', position = NULL, command = NULL,"
                " started_at = ?, finished_at = NULL, error = NULL, traceback = NULL,"
                " num_attempts = num_attempts + 1, revision = revision + 1 WHERE id = ?",
                (time.time(), job_id),
            )
            return read_jobs(self._database, "WHERE id = ?", (job_id,))[0]

    def control(self, job_id: str) -> Control:
        """What was asked of a running job; cheap enough for every step.

        Args:
            job_id: The job.

        Returns:
            The command and whether to wait.
        """
        (row,) = self._database.rows("SELECT command, is_paused FROM jobs WHERE id = ?", (job_id,))
        return Control(row["command"], bool(row["is_paused"]))

    def add_clip(self, job: Job, clip: JobClip, *, is_last: bool) -> None:
        """Record a clip whose files are on the disk.

        Args:
            job: The running job.
            clip: The clip.
            is_last: Whether the job is done with it.
        """
        with self._database.transaction():
            (row,) = self._database.rows("SELECT clips FROM jobs WHERE id = ?", (job.id,))
            clips = [*json.loads(row["clips"]), asdict(clip)]
            self._database.execute(
                "UPDATE jobs SET clips = ?, num_bytes = ?, revision = revision + 1 WHERE id = ?",
                (json.dumps(clips), sum(one["num_bytes"] for one in clips), job.id),
            )
            if is_last:
                self._end(job.id, JobState.DONE)

    def end(
        self,
        job_id: str,
        state: Literal[JobState.CANCELLED, JobState.FAILED],
        *,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """End a running job without a further clip.

        Args:
            job_id: The job.
            state: How it ended.
            error: Why, in plain words.
            traceback: Where that came from.
        """
        with self._database.transaction():
            self._end(job_id, state, error=error, traceback=traceback)

    def give_back(self, job_id: str) -> None:
        """Put a running job back at the head of the queue, unless it was asked to stop.

        Args:
            job_id: The job.
        """
        with self._database.transaction():
            if self.control(job_id).command == "stop":
                self._end(job_id, JobState.CANCELLED)
            else:
                self._requeue_first(job_id, num_interruptions=0)

    def recover(self) -> None:
        """Deal with jobs whose worker died: requeued once, given up the second time."""
        if not self._database.rows("SELECT 1 FROM jobs WHERE state = 'running'"):
            return
        with self._database.transaction():
            for row in self._database.rows(
                "SELECT id, command, num_interruptions FROM jobs WHERE state = 'running'"
            ):
                if row["command"] == "stop":
                    self._end(row["id"], JobState.CANCELLED)
                elif row["num_interruptions"] < MAX_INTERRUPTIONS:
                    self._requeue_first(row["id"], num_interruptions=1)
                else:
                    self._end(
                        row["id"],
                        JobState.INTERRUPTED,
                        error="The program ended twice while it made this clip, perhaps for want "
                        "of memory. Requeue the job, or duplicate it with a smaller size.",
                    )

    def _requeue_first(self, job_id: str, *, num_interruptions: int) -> None:
        self._database.execute(
            "UPDATE jobs SET state = 'queued', command = NULL, revision = revision + 1,"
            " num_interruptions = num_interruptions + ?, position ="
            " (SELECT COALESCE(MIN(position), 0) - 1 FROM jobs WHERE state = 'queued')"
            " WHERE id = ? AND state = 'running'",
            (num_interruptions, job_id),
        )

    def _end(
        self,
        job_id: str,
        state: JobState,
        *,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        self._database.execute(
            "UPDATE jobs SET state = ?, finished_at = ?, error = ?, traceback = ?, command = NULL,"
            " is_paused = 0, revision = revision + 1 WHERE id = ? AND state = 'running'",
            (state.value, time.time(), error, traceback, job_id),
        )
