"""Pictures of requests, kept by content: a job never depends on a path that may vanish."""

import time
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from pixeldance.jobs.folders import DataFolder
from pixeldance.pictures import PictureInput, load_picture, picture_sha256
from pixeldance.video.files import new_files

__all__ = ["THUMBNAIL_SIDE", "StoredPicture", "save_thumbnail", "sweep_partial_files"]

THUMBNAIL_SIDE = 320
"""Most pixels along a side of a thumbnail."""

STALE_S = 3600.0
"""A half-written file that is older belongs to nobody any more."""


class StoredPicture:
    """A picture of a request in the data folder, without loss and named by its fingerprint.

    Args:
        source: What ``load_picture`` accepts.
        folder: Where it is written to, unless it is there.

    Raises:
        InputError: If it cannot be read.
        PixelDanceError: If it cannot be written.
    """

    def __init__(self, source: PictureInput, folder: DataFolder) -> None:
        self._picture = load_picture(source)
        self.sha256 = picture_sha256(self._picture)
        self._large = folder.picture(self.sha256)
        self._small = folder.picture_thumbnail(self.sha256)
        self.record: dict[str, Any] = {
            "name": _file_name(source),
            "sha256": self.sha256,
            "width": self._picture.width,
            "height": self._picture.height,
        }
        self.write_if_missing()

    def write_if_missing(self) -> None:
        """Write the files that are not there; somebody may have swept them as unused."""
        if self._large.is_file() and self._small.is_file():
            return
        with new_files(self._small, self._large, overwrite=True) as (small, large):
            save_thumbnail(self._picture, small)
            self._picture.save(large, format="PNG", compress_level=1)

    @property
    def num_bytes(self) -> int:
        """Bytes that its files take."""
        return self._large.stat().st_size + self._small.stat().st_size


def _file_name(source: PictureInput) -> str | None:
    # Windows' rules know both kinds of slash, so no folder slips through on either system.
    return PureWindowsPath(source).name or None if isinstance(source, (str, Path)) else None


def save_thumbnail(picture: Image.Image, path: Path) -> None:
    """Write a small copy of a picture as JPEG.

    Args:
        picture: An RGB picture; it is not changed.
        path: Where it goes, whatever its ending.
    """
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(path, format="JPEG", quality=85)


def sweep_partial_files(folder: Path, *, older_than_s: float = STALE_S) -> None:
    """Remove files that a crash left half-written.

    Args:
        folder: Where to look.
        older_than_s: Seconds that they must have been left alone.
    """
    limit = time.time() - older_than_s
    for path in folder.glob(".*.partial"):
        try:
            if path.stat().st_mtime < limit:
                path.unlink()
        except FileNotFoundError:  # its writer was faster
            continue
