"""One worker per store: a lock of the operating system, which a killed process cannot keep."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Self

__all__ = ["WorkerLock"]


class WorkerLock:
    """The right to run the jobs of a store. It ends with the process that holds it, however.

    Args:
        path: The file to lock; it is made if missing, and never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it.

        Returns:
            Whether it is held now.
        """
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        holder = json.dumps({"pid": os.getpid(), "since": time.time()}).encode()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder)
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """Who holds the lock, in words.

        Returns:
            Such as ``the worker with process id 4711``.
        """
        try:
            return f"the worker with process id {json.loads(self._path.read_text())['pid']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another worker"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # locks are mandatory there: a byte that nobody reads

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
