"""Rows of the table of jobs as jobs."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from pixeldance.jobs.database import Database
from pixeldance.jobs.job import Job, JobClip, JobState

__all__ = ["read_jobs"]


def read_jobs(database: Database, clauses: str, values: Sequence[Any] = ()) -> list[Job]:
    """Read jobs.

    Args:
        database: Where from.
        clauses: Conditions, order and limits, with ``?`` for each value.
        values: The values.

    Returns:
        The jobs.
    """
    rows = database.rows(f"SELECT * FROM jobs {clauses}", values)
    places: dict[str, int] = {}
    if any(row["state"] == "queued" for row in rows):
        # From an index alone; a join over window functions would be quadratic.
        queue = database.rows("SELECT id FROM jobs WHERE state = 'queued' ORDER BY rank")
        places = {row["id"]: place for place, row in enumerate(queue)}
    return [_job(row, places.get(row["id"])) for row in rows]


def _job(row: sqlite3.Row, place: int | None) -> Job:
    command = row["command"]
    return Job(
        id=row["id"],
        state=JobState(row["state"]),
        is_paused=bool(row["is_paused"]),
        is_stopping=command == "stop",
        is_finishing=command == "finish",
        place=place,
        request=json.loads(row["request"]),
        seed=row["seed"],
        num_steps=row["num_steps"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        num_attempts=row["num_attempts"],
        error=row["error"],
        traceback=row["traceback"],
        clips=tuple(JobClip(**clip) for clip in json.loads(row["clips"])),
        revision=row["revision"],
    )
