"""What the worker tells while it works: a board that it rewrites and anybody may look at.

The board is a block of shared memory. It is a mapped file in the data folder, since every system
protects that alike and any process finds it there; it is never synced and never grows. Writing
takes no lock and does not depend on who reads: a reader that meets a half-written note, seen by an
odd sequence number or a wrong checksum, reads again.
"""

import json
import mmap
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pixeldance.jobs.job import Phase

__all__ = ["BoardReader", "BoardWriter", "Note"]

CAPACITY = 4 * 1024**2
_SEQUENCE = struct.Struct("<Q")
_LENGTHS = struct.Struct("<III")  # of the text, of the pixels, checksum of both
_START = _SEQUENCE.size + _LENGTHS.size
_TRIES = 50


class Note(NamedTuple):
    """What stands on the board."""

    job_id: str
    attempt: int
    """``Job.num_attempts`` of the run; a note of an earlier run says nothing."""
    number: int
    """Grows with each note of a run."""
    phase: Phase
    step: int
    num_steps: int
    clip: int
    num_clips: int
    seconds_per_step: float | None
    remaining_s: float | None
    preview_number: int | None
    preview: npt.NDArray[np.uint8] | None
    """``frames height width 3``."""


class _Board:
    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < CAPACITY:
                os.ftruncate(descriptor, CAPACITY)
            self._memory = mmap.mmap(descriptor, CAPACITY)
        finally:
            os.close(descriptor)

    @property
    def sequence(self) -> int:
        """Differs from before if there is a new note; odd while one is written."""
        return int(_SEQUENCE.unpack_from(self._memory, 0)[0])

    def close(self) -> None:
        """Let the memory go."""
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BoardWriter(_Board):
    """The worker's side; there is one at a time.

    Args:
        path: The file; it is made if missing.
    """

    def write(self, note: Note) -> None:
        """Put up a note in place of the one that is there.

        Args:
            note: The note; a preview that does not fit is left out.
        """
        pixels, shape = b"", None
        if note.preview is not None and note.preview.nbytes <= CAPACITY // 2:
            pixels, shape = note.preview.tobytes(), note.preview.shape
        text = json.dumps({**note._asdict(), "preview": shape}).encode()
        self._put(text, pixels)

    def clear(self) -> None:
        """Take the note down, with the pictures in it."""
        used = sum(_LENGTHS.unpack_from(self._memory, _SEQUENCE.size)[:2])
        self._put(b"", bytes(min(used, CAPACITY - _START)))

    def _put(self, text: bytes, pixels: bytes) -> None:
        sequence = self.sequence | 1  # a writer may have died in the middle
        _SEQUENCE.pack_into(self._memory, 0, sequence)
        checksum = zlib.crc32(pixels, zlib.crc32(text))
        _LENGTHS.pack_into(self._memory, _SEQUENCE.size, len(text), len(pixels), checksum)
        middle = _START + len(text)
        self._memory[_START:middle] = text
        self._memory[middle : middle + len(pixels)] = pixels
        _SEQUENCE.pack_into(self._memory, 0, sequence + 1)


class BoardReader(_Board):
    """A watcher's side.

    Args:
        path: The file; it is made if missing.
    """

    def read(self) -> Note | None:
        """What stands on the board.

        Returns:
            The note; None if there is none.
        """
        for _ in range(_TRIES):
            before = self.sequence
            if before % 2 == 0:
                found = self._copy()
                if found is not None and self.sequence == before:
                    return _note(*found)
            time.sleep(0.001)
        return None  # the worker died while it wrote

    def _copy(self) -> tuple[bytes, bytes] | None:
        num_text, num_pixels, checksum = _LENGTHS.unpack_from(self._memory, _SEQUENCE.size)
        middle = _START + num_text
        if middle + num_pixels > CAPACITY:
            return None
        text = self._memory[_START:middle]
        pixels = self._memory[middle : middle + num_pixels]
        return (text, pixels) if zlib.crc32(pixels, zlib.crc32(text)) == checksum else None


def _note(text: bytes, pixels: bytes) -> Note | None:
    if not text:
        return None
    try:
        fields: dict[str, Any] = json.loads(text)
        shape = fields["preview"]
        preview = None if shape is None else np.frombuffer(pixels, np.uint8).reshape(shape)
        return Note(**{**fields, "phase": Phase(fields["phase"]), "preview": preview})
    except (ValueError, KeyError, TypeError):
        return None  # of another version of the package
