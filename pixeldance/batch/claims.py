"""Who makes which clip: claim files in the output folder, for any number of processes and hosts.

A claim is a file made with ``O_EXCL``, which is atomic on local disks and on NFS alike (locks are
not). Its owner shows that it lives by touching a file of its own every few seconds. A claim whose
owner is dead is taken over by making the file of the next generation, ``ID.1`` after ``ID.0``: only
one can, and nothing is ever renamed or removed under somebody else.

Where caches of a network file system hide a finished clip for a while, it may be made twice, with
the same frames; it is never lost and never half written.
"""

import json
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

__all__ = ["HEARTBEAT_S", "LEASE_S", "Claims"]

HEARTBEAT_S = 10.0
"""How often an owner shows that it lives."""

LEASE_S = 120.0
"""After this time without a sign of life an owner on another machine is taken for dead. Longer than
the minute for which NFS may hide a change."""


class _Sign(NamedTuple):
    """The last sign of life of an owner, and when it was noticed."""

    mtime_ns: int
    seen_at: float


class Claims:
    """The claims of one process in one output folder, and its view on those of the others.

    Args:
        folder: Where claims are kept; it is made if missing.
        heartbeat_s: Seconds between signs of life.
        lease_s: Seconds without one after which an owner is dead. They are counted on the clock of
            the one who watches, so the clocks of machines need not agree.
    """

    def __init__(
        self, folder: Path, *, heartbeat_s: float = HEARTBEAT_S, lease_s: float = LEASE_S
    ) -> None:
        self.owner = secrets.token_hex(8)
        self._claims = folder / "claims"
        self._owners = folder / "owners"
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._held: dict[str, int] = {}
        self._signs: dict[str, _Sign] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_life, daemon=True)

    def __enter__(self) -> Self:
        for folder in (self._claims, self._owners):
            folder.mkdir(parents=True, exist_ok=True)
        self._write_own_file()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        self._owner_path(self.owner).unlink(missing_ok=True)

    def acquire(self, name: str) -> bool:
        """Claim a name if nobody alive has it.

        Args:
            name: Id of a row.

        Returns:
            Whether it is held now. What it stands for may have been done meanwhile: look again.
        """
        generation = 0
        while not self._create(self._path(name, generation)):
            if self._is_held_by_another(name, generation):
                return False
            generation += 1
        if self._path(name, generation + 1).exists():
            # An older claim was given back under a living newer one.
            self._path(name, generation).unlink(missing_ok=True)
            return False
        self._held[name] = generation
        return True

    def is_mine(self, name: str) -> bool:
        """Whether a name is still held: a process that stood still may have been taken for dead.

        Args:
            name: Id of a row.

        Returns:
            False if it was never claimed or somebody has taken it over.
        """
        generation = self._held.get(name)
        return generation is not None and not self._path(name, generation + 1).exists()

    def release(self, name: str) -> None:
        """Give a name back.

        Args:
            name: Id of a row that is held.
        """
        is_mine, generation = self.is_mine(name), self._held.pop(name)
        if is_mine:
            for older in range(generation + 1):  # the newest last, so that there is no gap below it
                self._path(name, older).unlink(missing_ok=True)

    def is_claimed(self, name: str) -> bool:
        """Whether somebody who seems to be alive has a name.

        Args:
            name: Id of a row.

        Returns:
            True if there is a claim that could not be taken over now.
        """
        generation = 0
        while self._path(name, generation).exists():
            if self._is_held_by_another(name, generation):
                return True
            generation += 1
        return name in self._held

    def bury_dead_owners(self) -> set[str]:
        """Remove the signs of life of owners that are gone, such as processes that were killed.

        Returns:
            Their names.
        """
        dead = {path.name for path in self._owners.iterdir() if not self._is_alive(path.name)}
        for name in dead:
            self._owner_path(name).unlink(missing_ok=True)
        return dead

    # ---- files

    def _path(self, name: str, generation: int) -> Path:
        return self._claims / f"{name}.{generation}"

    def _owner_path(self, token: str) -> Path:
        return self._owners / token

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self.owner)
        return True

    def _write_own_file(self) -> None:
        text = json.dumps({"machine": machine_identity(), "pid": os.getpid()})
        self._owner_path(self.owner).write_text(text, encoding="utf-8")

    def _show_life(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                os.utime(self._owner_path(self.owner))
            except FileNotFoundError:
                self._write_own_file()  # somebody cleaned up too much
            except OSError:
                continue  # a network file system that is away for a moment

    # ---- others

    def _is_held_by_another(self, name: str, generation: int) -> bool:
        path = self._path(name, generation)
        if self._path(name, generation + 1).exists():
            return False  # taken over: look at the next generation
        try:
            token = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return True  # given back this moment; come again later
        # Killed between making the file and writing to it, an owner is watched by the file itself.
        return self._is_alive(token) if token else self._gives_signs(path, name)

    def _is_alive(self, token: str) -> bool:
        if token == self.owner:
            return True
        path = self._owner_path(token)
        try:
            described = json.loads(path.read_text(encoding="utf-8") or "{}")
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            described = {}
        if described.get("machine") == machine_identity() and not _runs(described["pid"]):
            return False
        return self._gives_signs(path, token)

    def _gives_signs(self, path: Path, key: str) -> bool:
        try:
            with path.open("rb") as file:  # opening makes NFS ask the server
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()
        last = self._signs.get(key)
        if last is None or last.mtime_ns != mtime_ns:
            self._signs[key] = _Sign(mtime_ns, now)
            return True
        return now - last.seen_at < self._lease_s


def machine_identity() -> str:
    """What processes have in common that see each other's process ids.

    Returns:
        Host name, boot and process namespace, as far as the system tells; containers may share the
        name of their host.
    """
    parts = [platform.node()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return " ".join(parts)


def _runs(pid: int) -> bool:
    if os.name != "posix":
        return True  # there signal 0 is no question; the heartbeat tells
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
