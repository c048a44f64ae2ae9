"""Room on the disk: what the store takes, its quota, and removing what nobody needs."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pixeldance.errors import InputError
from pixeldance.jobs.database import Database
from pixeldance.jobs.errors import StorageFullError
from pixeldance.jobs.folders import DataFolder
from pixeldance.jobs.job import FINAL_STATES
from pixeldance.jobs.pictures import StoredPicture, sweep_partial_files
from pixeldance.jobs.rows import read_jobs

__all__ = ["DEFAULT_QUOTA_BYTES", "MIN_FREE_BYTES", "Storage", "Usage"]

DEFAULT_QUOTA_BYTES = 20 * 1024**3
MIN_FREE_BYTES = 256 * 1024**2
"""New jobs are refused when the disk has less left."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the store takes.

    Attributes:
        clips_bytes: Clips and what lies beside them.
        pictures_bytes: Pictures of requests.
        quota_bytes: How much both may take together; None for no limit.
        free_bytes: What is left on the disk.
    """

    clips_bytes: int
    pictures_bytes: int
    quota_bytes: int | None
    free_bytes: int

    @property
    def num_bytes(self) -> int:
        """Clips and pictures together."""
        return self.clips_bytes + self.pictures_bytes


class Storage:
    """Files of a store.

    Args:
        database: The store's.
        folder: Where its files are.
        quota_bytes: See ``Usage``.
    """

    def __init__(self, database: Database, folder: DataFolder, *, quota_bytes: int | None) -> None:
        if quota_bytes is not None and quota_bytes < 0:
            raise InputError(f"quota_bytes must be at least 0 or None, got {quota_bytes}.")
        self._database = database
        self._folder = folder
        self._quota_bytes = quota_bytes

    def usage(self) -> Usage:
        """What the store takes now."""
        ((clips, pictures),) = self._database.rows(
            "SELECT (SELECT COALESCE(SUM(num_bytes), 0) FROM jobs),"
            " (SELECT COALESCE(SUM(num_bytes), 0) FROM pictures)"
        )
        return Usage(
            clips_bytes=clips,
            pictures_bytes=pictures,
            quota_bytes=self._quota_bytes,
            free_bytes=shutil.disk_usage(self._folder.path).free,
        )

    def check_room(self) -> None:
        """Check that there is room for a further job.

        Raises:
            StorageFullError: If there is not.
        """
        usage = self.usage()
        if usage.quota_bytes is not None and usage.num_bytes >= usage.quota_bytes:
            raise StorageFullError(
                f"Clips and pictures take {_shown(usage.num_bytes)} of the "
                f"{_shown(usage.quota_bytes)} that they may. Remove old clips (pixeldance jobs "
                "clean), or raise the quota."
            )
        if usage.free_bytes < MIN_FREE_BYTES:
            raise StorageFullError(
                f"The disk has {_shown(usage.free_bytes)} left; {_shown(MIN_FREE_BYTES)} are "
                "kept free. Remove old clips (pixeldance jobs clean) or other files."
            )

    def link_pictures(self, job_id: str, pictures: Iterable[StoredPicture]) -> None:
        """Record which pictures a job needs; in the transaction that writes the job.

        Args:
            job_id: The job.
            pictures: All its pictures.
        """
        self._database.execute("DELETE FROM job_pictures WHERE job_id = ?", (job_id,))
        for picture in pictures:
            picture.write_if_missing()
            self._database.execute(
                "INSERT OR IGNORE INTO pictures VALUES (?, ?)", (picture.sha256, picture.num_bytes)
            )
            self._database.execute(
                "INSERT OR IGNORE INTO job_pictures VALUES (?, ?)", (job_id, picture.sha256)
            )

    def drop_unused_pictures(self) -> None:
        """Remove pictures that no job needs any more."""
        with self._database.transaction():
            unused = self._database.rows(
                "SELECT sha256 FROM pictures WHERE NOT EXISTS"
                " (SELECT 1 FROM job_pictures WHERE job_pictures.sha256 = pictures.sha256)"
            )
            for row in unused:
                self._database.execute("DELETE FROM pictures WHERE sha256 = ?", (row["sha256"],))
                self._folder.picture(row["sha256"]).unlink(missing_ok=True)
                self._folder.picture_thumbnail(row["sha256"]).unlink(missing_ok=True)

    def remove_clips(self, job_id: str) -> None:
        """Remove the clips of a job that is not in the store any more."""
        shutil.rmtree(self._folder.clip_folder(job_id), ignore_errors=True)

    def clean_up(self, *, older_than_s: float | None, keep: int | None) -> list[str]:
        """Remove jobs that are over, with their clips.

        Args:
            older_than_s: Only those that ended longer ago than this many seconds.
            keep: Only those beyond this many, the latest being kept.

        Returns:
            Ids of the jobs removed.

        Raises:
            InputError: If neither is given, or one is negative.
        """
        if older_than_s is None and keep is None:
            raise InputError(
                "Say what to remove: jobs older than a number of seconds, or all but the latest "
                "ones to keep."
            )
        if (older_than_s or 0) < 0 or (keep or 0) < 0:
            raise InputError(
                f"older_than_s and keep must be at least 0, got {older_than_s} and {keep}."
            )
        final = ", ".join(f"'{state.value}'" for state in sorted(FINAL_STATES))
        limit = time.time() - older_than_s if older_than_s is not None else float("inf")
        with self._database.transaction():
            rows = self._database.rows(
                f"SELECT id, finished_at FROM jobs WHERE state IN ({final})"
                " ORDER BY finished_at DESC LIMIT -1 OFFSET ?",
                (keep or 0,),
            )
            removed = [row["id"] for row in rows if row["finished_at"] < limit]
            for job_id in removed:
                self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        for job_id in removed:
            self.remove_clips(job_id)
        self.drop_unused_pictures()
        return removed

    def sweep(self) -> None:
        """Remove files that a crash left behind; for the holder of the worker lock."""
        clips = {job.id: job.clips for job in read_jobs(self._database, "")}
        for folder in self._folder.clips.iterdir():
            if folder.name not in clips:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            files = (
                self._folder.clip_files(folder.name, clip.number) for clip in clips[folder.name]
            )
            expected = {path for each in files for path in each}
            for path in folder.iterdir():
                if path not in expected:
                    path.unlink(missing_ok=True)
        self.drop_unused_pictures()
        sweep_partial_files(self._folder.pictures)
        sweep_partial_files(self._folder.film_clips)
        self._sweep_pictures()

    def _sweep_pictures(self) -> None:
        """Remove pictures that were written for jobs that never were."""
        with self._database.transaction():
            known = {row["sha256"] for row in self._database.rows("SELECT sha256 FROM pictures")}
            for path in self._folder.pictures.iterdir():
                if not path.name.startswith(".") and path.stem not in known:
                    path.unlink(missing_ok=True)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
