"""The SQLite file: how it is opened, what its tables are, how a change is made."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixeldance.errors import PixelDanceError

__all__ = ["Database"]

APPLICATION_ID = 0x50444A31
"""Marks the file as ours (``PDJ1``), see the pragma ``application_id``."""

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN
            ('queued', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
        is_paused INTEGER NOT NULL DEFAULT 0,
        command TEXT CHECK (command IN ('stop', 'finish')),
        position REAL CHECK ((position IS NULL) = (state != 'queued')),
        request TEXT NOT NULL,
        search_text TEXT NOT NULL,
        seed INTEGER NOT NULL,
        num_steps INTEGER NOT NULL,
        created_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        num_attempts INTEGER NOT NULL DEFAULT 0,
        num_interruptions INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        traceback TEXT,
        clips TEXT NOT NULL DEFAULT '[]',
        num_bytes INTEGER NOT NULL DEFAULT 0,
        idempotency_key TEXT UNIQUE,
        revision INTEGER NOT NULL DEFAULT 1,
        -- The order of lists: what runs, what waits by its place, what is over, latest first.
        section INTEGER NOT NULL GENERATED ALWAYS AS
            (CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 ELSE 2 END) VIRTUAL,
        rank REAL GENERATED ALWAYS AS
            (CASE state WHEN 'queued' THEN position ELSE -finished_at END) VIRTUAL
    ) STRICT;
    CREATE INDEX jobs_in_order ON jobs (section, rank, created_at);
    CREATE INDEX jobs_by_creation ON jobs (created_at, id);
    CREATE INDEX jobs_by_state ON jobs (state, rank, created_at);
    CREATE TABLE pictures (
        sha256 TEXT PRIMARY KEY,
        num_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE job_pictures (
        job_id TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
        sha256 TEXT NOT NULL REFERENCES pictures,
        PRIMARY KEY (job_id, sha256)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX jobs_of_picture ON job_pictures (sha256);
    """,
)
"""Scripts that bring a file from version i to i + 1; its version is the pragma ``user_version``."""


class Database:
    """One connection, shared by the threads of a process.

    Args:
        path: The file; it is made if missing.

    Raises:
        PixelDanceError: If it is no job store, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            # Autocommit: transactions are begun by hand, as writers from the start.
            self._connection = sqlite3.connect(
                path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._set_up()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise PixelDanceError(
                f"The job store '{path}' cannot be opened ({error}). Move it away to begin with "
                "an empty one; clips that are done stay in the folder beside it."
            ) from error

    def _set_up(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A change is on the disk before it is acknowledged.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if self._pragma("user_version") == len(MIGRATIONS):
            self._check_application()
            return
        with self.transaction():
            version = self._pragma("user_version")
            if version > len(MIGRATIONS):
                raise PixelDanceError(
                    f"The job store '{self._path}' has version {version}; this pixeldance reads "
                    f"up to {len(MIGRATIONS)}. Use the newer pixeldance, or another data folder."
                )
            is_new = version == 0 and not self.rows("SELECT 1 FROM sqlite_master LIMIT 1")
            if not is_new:
                self._check_application()
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _check_application(self) -> None:
        if self._pragma("application_id") != APPLICATION_ID:
            raise PixelDanceError(
                f"'{self._path}' is not a job store of pixeldance. Use another data folder."
            )

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make changes all together or, after an exception, not at all.

        Yields:
            None: While nobody else, in any process, can change anything.

        Raises:
            PixelDanceError: If they cannot be written.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise PixelDanceError(
                    f"The job store '{self._path}' cannot be written to ({error}). Check the "
                    "free space and the permissions of its folder."
                ) from error

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement that changes rows; inside ``transaction``.

        Args:
            statement: With ``?`` for each value.
            values: The values.

        Returns:
            How many rows it changed.
        """
        return self._connection.execute(statement, values).rowcount

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Run a statement that reads rows.

        Args:
            statement: With ``?`` for each value.
            values: The values.

        Returns:
            All rows.
        """
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def version(self) -> tuple[int, int]:
        """Something that differs from before if anybody, in any process, has changed anything."""
        with self._lock:
            return self._pragma("data_version"), self._connection.total_changes

    def close(self) -> None:
        """Close the connection; the database cannot be used any more."""
        with self._lock:
            self._connection.close()


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
