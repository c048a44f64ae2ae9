"""Pictures of the form before they belong to a job.

A browser names them by fingerprint and file name only, and both are looked for among what is
there: no path ever comes from outside. What was not used for long is removed.
"""

import hashlib
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from pixeldance.errors import InputError
from pixeldance.geometry import Size
from pixeldance.jobs.pictures import save_thumbnail
from pixeldance.pictures import PictureInput, load_picture, picture_sha256
from pixeldance.video import read_frame
from pixeldance.video.files import new_files

__all__ = ["DraftPicture", "DraftPictures"]

MAX_DRAFTS = 300
"""Folders that are kept; beyond them the one that was longest unused goes."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_THUMBNAIL = "thumbnail.jpg"
_CLIP = "clip.mp4"


@dataclass(frozen=True, kw_only=True)
class DraftPicture:
    """A picture that was given.

    Attributes:
        sha256: Fingerprint of its pixels.
        name: Its file name.
        width: Pixels.
        height: Pixels.
        clip_sha256: Fingerprint of the clip that it is a frame of.
        frame: Which frame of it, from 0.
        num_frames: How many frames that clip has.
    """

    sha256: str
    name: str
    width: int
    height: int
    clip_sha256: str | None = None
    frame: int | None = None
    num_frames: int | None = None

    @property
    def size(self) -> Size:
        """Height and width."""
        return Size(self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """What the browser keeps of it."""
        return asdict(self)


class DraftPictures:
    """A folder of pictures and of clips to pick them from.

    Args:
        folder: The folder; it is made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # around making and removing folders

    def add(self, source: PictureInput, *, name: str) -> DraftPicture:
        """Keep a picture.

        Args:
            source: What ``load_picture`` accepts.
            name: Its file name, of any origin.

        Returns:
            The picture.
        """
        picture = load_picture(source)
        sha256, name = picture_sha256(picture), _file_name(name)
        folder = self._new_folder(sha256)
        target, thumbnail = folder / "pictures" / name, folder / _THUMBNAIL
        target.parent.mkdir(exist_ok=True)
        if not target.is_file():
            with new_files(target, overwrite=True) as (temporary,):
                picture.save(temporary, format="PNG", compress_level=1)
        if not thumbnail.is_file():
            with new_files(thumbnail, overwrite=True) as (temporary,):
                save_thumbnail(picture, temporary)
        return DraftPicture(sha256=sha256, name=name, width=picture.width, height=picture.height)

    def add_clip(self, path: Path, *, name: str, frame: int = -1) -> DraftPicture:
        """Keep a clip, and a frame of it as picture.

        Args:
            path: An MP4 or MOV file.
            name: Its file name, of any origin.
            frame: Which frame, from 0; -1 is the last.

        Returns:
            The picture.
        """
        found = read_frame(path, frame)  # before anything is kept
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        kept = self._new_folder(sha256) / _CLIP
        if not kept.is_file():
            with new_files(kept, overwrite=True) as (temporary,):
                shutil.copyfile(path, temporary)
        picture = self.add(found.picture, name=f"{Path(_file_name(name)).stem}-{found.number}.png")
        return DraftPicture(
            **{
                **picture.to_json(),
                "clip_sha256": sha256,
                "frame": found.number,
                "num_frames": found.num_frames,
            }
        )

    def pick(self, picture: DraftPicture, frame: int) -> DraftPicture:
        """Another frame of the clip that a picture is from.

        Args:
            picture: A frame of a clip.
            frame: Which frame, from 0.

        Returns:
            The picture.

        Raises:
            InputError: If it is from no clip, or that is not there any more.
        """
        clip = self._folder / str(picture.clip_sha256) / _CLIP
        if picture.clip_sha256 is None or not clip.is_file():
            raise InputError("The clip of this picture is not there any more. Drop it again.")
        name = re.sub(r"-[0-9]+\.png$", ".mp4", picture.name)
        return self.add_clip(clip, name=name, frame=frame)

    def find(self, record: object) -> DraftPicture | None:
        """Look up a picture that a browser remembers.

        Args:
            record: What ``to_json`` gave, or anything else: it comes from a browser.

        Returns:
            The picture as it is on the disk; None if there is none.
        """
        if not isinstance(record, Mapping):
            return None
        sha256, name = record.get("sha256"), record.get("name")
        if not _is_sha256(sha256) or not isinstance(name, str):
            return None
        folder = self._folder / str(sha256) / "pictures"
        # Compared with what is there, never joined to a path first.
        if not folder.is_dir() or name not in {path.name for path in folder.iterdir()}:
            return None
        try:
            with Image.open(folder / name, formats=["PNG"]) as image:
                width, height = image.size
        except OSError:
            return None
        folder.parent.touch()
        clip, frame, count = (record.get(key) for key in ("clip_sha256", "frame", "num_frames"))
        is_frame = _is_sha256(clip) and _is_count(frame) and _is_count(count)
        return DraftPicture(
            sha256=str(sha256),
            name=name,
            width=width,
            height=height,
            clip_sha256=clip if is_frame else None,
            frame=frame if is_frame else None,
            num_frames=count if is_frame else None,
        )

    def path(self, picture: DraftPicture) -> Path:
        """Where a picture is.

        Args:
            picture: What ``add`` or ``find`` gave.

        Returns:
            A PNG file named as the picture was.
        """
        return self._folder / picture.sha256 / "pictures" / picture.name

    def thumbnail(self, sha256: str) -> Path:
        """Where the small copy of a picture would be.

        Args:
            sha256: Its fingerprint, 64 hexadecimal digits.

        Returns:
            A JPEG file, which may not exist.
        """
        return self._folder / sha256 / _THUMBNAIL

    def _new_folder(self, sha256: str) -> Path:
        folder = self._folder / sha256
        with self._lock:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.touch()
            kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MAX_DRAFTS]:
                shutil.rmtree(path, ignore_errors=True)
        return folder


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6


def _file_name(name: str) -> str:
    """A name without folders that every system can store."""
    # Windows' rules know both kinds of slash.
    last = PureWindowsPath(name).name
    safe = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(" .")
    stem, dot, ending = safe.rpartition(".")
    short = f"{stem[:60]}{dot}{ending[:8]}" if dot else ending[:60]
    return short or "picture.png"
