"""Where jobs are kept: the user's data folder and what lies where in it."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from pixeldance.errors import PixelDanceError

__all__ = ["DATA_VARIABLE", "ClipFiles", "DataFolder", "default_data_folder"]

DATA_VARIABLE = "PIXELDANCE_DATA"
"""Environment variable: the data folder."""


def default_data_folder() -> Path:
    """The data folder of this user.

    Returns:
        ``$PIXELDANCE_DATA`` if set, else ``pixeldance`` in the folder that the platform has for
        the data of programs: ``$XDG_DATA_HOME`` or ``~/.local/share``, ``~/Library/Application
        Support`` on macOS, ``%LOCALAPPDATA%`` on Windows. It may not exist yet.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "pixeldance"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "pixeldance"
    # The XDG base directory specification: a relative path is invalid and shall be ignored.
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else home / ".local" / "share") / "pixeldance"


class ClipFiles(NamedTuple):
    """The files of one finished clip."""

    clip: Path
    """The clip, ``.mp4``."""
    recipe: Path
    """How it was made, ``.json``."""
    last_frame: Path
    """Its last frame without loss, ``.png``."""
    thumbnail: Path
    """Its first frame, small, ``.jpg``."""

    @property
    def num_bytes(self) -> int:
        """Bytes that those of the files take that are there."""
        return sum(path.stat().st_size for path in self if path.is_file())


class DataFolder:
    """The layout of a data folder; only its owner may enter it.

    Args:
        path: The folder; it is made, with its parents, if missing.

    Raises:
        PixelDanceError: If it cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        try:
            if not self.path.is_dir():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.mkdir(mode=0o700, exist_ok=True)
            for folder in (self.pictures, self.clips):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PixelDanceError(
                f"The data folder '{self.path}' cannot be used ({error.strerror}). Set "
                f"{DATA_VARIABLE} to a folder that can be written to."
            ) from error

    @property
    def database(self) -> Path:
        """The SQLite file with all jobs."""
        return self.path / "jobs.db"

    @property
    def worker_lock(self) -> Path:
        """Held by the one worker; tells who it is."""
        return self.path / "worker.lock"

    @property
    def worker_log(self) -> Path:
        """What the worker process says."""
        return self.path / "worker.log"

    @property
    def resident(self) -> Path:
        """What the worker says of the model that it has loaded."""
        return self.path / "resident.json"

    @property
    def live(self) -> Path:
        """Memory that the worker shares with its watchers."""
        return self.path / "live"

    @property
    def pictures(self) -> Path:
        """Pictures of requests, named by their fingerprints."""
        return self.path / "pictures"

    @property
    def clips(self) -> Path:
        """A folder per job with its clips."""
        return self.path / "clips"

    @property
    def film_clips(self) -> Path:
        """Finished clips of films, by their keys; it is made with the first one."""
        return self.path / "film-clips"

    def picture(self, sha256: str) -> Path:
        """A picture of a request, as PNG."""
        return self.pictures / f"{sha256}.png"

    def picture_thumbnail(self, sha256: str) -> Path:
        """The same picture, small, as JPEG."""
        return self.pictures / f"{sha256}.jpg"

    def clip_folder(self, job_id: str) -> Path:
        """The folder with the clips of a job."""
        return self.clips / job_id

    def clip_files(self, job_id: str, number: int) -> ClipFiles:
        """The files of the clip of a job that has this number, from 1."""
        folder, stem = self.clip_folder(job_id), f"clip-{number}"
        return ClipFiles(
            clip=folder / f"{stem}.mp4",
            recipe=folder / f"{stem}.json",
            last_frame=folder / f"{stem}-last.png",
            thumbnail=folder / f"{stem}-thumbnail.jpg",
        )
