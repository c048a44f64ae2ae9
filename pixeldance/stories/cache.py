"""The clips of films that are made already: one file each, found by its key.

A file is a ZIP of PNG pictures, written whole or not at all, so that a run that is stopped loses
at most the clip in hand. Files are never changed and may be deleted at any time.
"""

import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.errors import DataError, InputError
from pixeldance.stories.colour import Picture
from pixeldance.video import export_clip

__all__ = ["ClipCache"]


class ClipCache:
    """A folder of finished clips.

    Args:
        folder: Where they are; it is made when the first one is kept.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path_of(self, key: str) -> Path:
        """Where a clip is or would be.

        Args:
            key: Its key.

        Returns:
            The path of its file.
        """
        return self.folder / f"{key}.zip"

    def __contains__(self, key: str) -> bool:
        """Whether a clip is there."""
        return self.path_of(key).is_file()

    def keep(self, key: str, frames: npt.NDArray[np.uint8], *, fps: int) -> None:
        """Store the frames of a clip, without loss.

        Args:
            key: Its key.
            frames: ``frames height width 3``.
            fps: Frames per second.

        Raises:
            InputError: If the folder cannot be made or written to.
            PixelDanceError: If writing fails; nothing is left behind.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The folder '{self.folder}' cannot be made ({error.strerror}). Choose another one "
                "for the clips of the film."
            ) from error
        export_clip(self.path_of(key), frames, fps=fps, overwrite=True)

    def frame(self, key: str, number: int) -> Picture:
        """One frame of a clip.

        Args:
            key: Its key.
            number: Which frame, from 0; -1 is the last.

        Returns:
            The frame.

        Raises:
            DataError: If the clip is missing or damaged.
        """
        return next(self._read(key, slice(number, None if number == -1 else number + 1)))

    def frames(self, key: str) -> Iterator[Picture]:
        """The frames of a clip one after another, of which only one is in memory.

        Args:
            key: Its key.

        Yields:
            Picture: A frame.

        Raises:
            DataError: If the clip is missing or damaged.
        """
        yield from self._read(key, slice(None))

    def tail(self, keys: tuple[str, ...], num_frames: int) -> list[Picture]:
        """The last frames of clips that go on from each other.

        Args:
            keys: Their keys, the latest first.
            num_frames: How many frames; the clips have as many.

        Returns:
            The frames in the order they are shown.

        Raises:
            DataError: If a clip is missing or damaged.
        """
        found: list[Picture] = []
        for key in keys:
            missing = num_frames - len(found)
            if missing == 0:
                break
            found = [*self._read(key, slice(-missing, None)), *found]
        return found

    def _read(self, key: str, wanted: slice) -> Iterator[Picture]:
        path = self.path_of(key)
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(name for name in archive.namelist() if name.endswith(".png"))
                for name in names[wanted]:
                    with Image.open(BytesIO(archive.read(name)), formats=["PNG"]) as picture:
                        yield np.asarray(picture.convert("RGB"))
        except (OSError, zipfile.BadZipFile, ValueError, SyntaxError) as error:
            raise DataError(
                f"The clip '{path}' is missing or damaged ({error}). Delete it and make the film "
                "again: only that clip is made anew."
            ) from error
