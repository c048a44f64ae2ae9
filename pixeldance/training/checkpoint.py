"""Checkpoints: written beside the training, whole or not there, and readable by any strategy.

A checkpoint is a folder ``step-0001000`` of torch's distributed checkpoint format: every process
writes and reads its shards, and another number of processes, or another strategy, can load it. It
is written in the background to ``step-0001000.tmp``, marked with a file ``COMPLETE`` (JSON: step,
what it fits, sizes of its files) and renamed, so that killing the run at any moment costs at most
the steps since the last complete one. The index inside is a pickle, as torch writes it: resume
only what you trained yourself. What is exported for others is safetensors.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from pixeldance.errors import CheckpointError
from pixeldance.training.distributed import Processes

__all__ = ["COMPLETE", "Checkpoint", "Checkpoints", "Tensors"]

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group (model, ema, optimizer) and name."""

_FORMAT = 1
_SCRATCH = ".tmp"
_LAST_SAVE_S = 60.0  # how long a failing run waits for a save under way


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as its mark describes it.

    Attributes:
        folder: Where it is.
        step: Steps done.
        facts: Other numbers of the run, as JSON values.
        fingerprint: What the run must agree with, as JSON values.
        files: Size of each file in bytes.
    """

    folder: Path
    step: int
    facts: dict[str, Any]
    fingerprint: dict[str, Any]
    files: dict[str, int] = field(repr=False)

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse a run that contradicts the checkpoint, and a checkpoint that lacks data.

        Args:
            fingerprint: That of the run.

        Raises:
            CheckpointError: If something differs.
        """
        given = _as_json(fingerprint)
        both = {**self.fingerprint, **given}
        differing = [
            f"{key} is {given.get(key)!r} here and {self.fingerprint.get(key)!r} there"
            for key in both
            if given.get(key) != self.fingerprint.get(key)
        ]
        if differing:
            raise CheckpointError(
                f"{self.folder} does not fit this config ({'; '.join(differing[:3])}). "
                "Use another output_dir, or delete the folder."
            )
        for name, size in self.files.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                reason = f"{name} is missing or not {size} bytes long"
                raise CheckpointError(_damage(self.folder, reason))

    def sizes(self, group: str) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of a group in the checkpoint.

        Args:
            group: Its name.

        Returns:
            By name.

        Raises:
            CheckpointError: If the index is damaged.
        """
        try:
            index = FileSystemReader(self.folder).read_metadata().state_dict_metadata
        except Exception as error:  # a damaged pickle raises anything
            raise CheckpointError(_damage(self.folder, error)) from error
        return {
            name.removeprefix(f"{group}."): tuple(entry.size)
            for name, entry in index.items()
            if isinstance(entry, TensorStorageMetadata) and name.startswith(f"{group}.")
        }

    def load(self, tensors: Tensors, processes: Processes) -> None:
        """Copy the checkpoint into tensors, each process its shards.

        Args:
            tensors: All that are wanted, by group and name.
            processes: Those of the run, all of which call this.

        Raises:
            CheckpointError: If the checkpoint is damaged.
        """
        try:
            load(
                dict(tensors),
                storage_reader=FileSystemReader(self.folder),
                process_group=processes.group,
                no_dist=processes.group is None,
            )
        except (Exception, CheckpointException) as error:  # damaged data raises anything
            raise CheckpointError(_damage(self.folder, error)) from error


class Checkpoints:
    """The checkpoints of a run.

    Args:
        output_dir: Folder of the run.
        keep: How many are kept.
        fingerprint: What a run that resumes must agree with, as JSON values.
        processes: Those of the run.
    """

    def __init__(
        self, output_dir: Path, *, keep: int, fingerprint: Mapping[str, Any], processes: Processes
    ) -> None:
        self._output_dir = output_dir
        self._keep = keep
        self._fingerprint = _as_json(fingerprint)
        self._processes = processes
        self._saved_step: int | None = None
        self._pending: tuple[Future[Any], Path, dict[str, Any]] | None = None
        if processes.group is None:  # said by torch, also from its thread, when told `no_dist`
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same on all processes.

        What a killed run has left half-written is removed.

        Returns:
            It, or None if there is nothing to resume.

        Raises:
            CheckpointError: If there are folders of checkpoints but none is complete, or if the
                newest one does not fit.
        """
        found: Checkpoint | CheckpointError | None = None
        if self._processes.is_main:
            try:
                found = self._find()
                if found is not None:
                    found.check(self._fingerprint)
            except CheckpointError as error:
                found = error
        found = self._processes.from_main(found)
        if isinstance(found, CheckpointError):
            raise found
        self._saved_step = None if found is None else found.step
        return found

    def save(self, step: int, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; training may go on once this returns.

        Waits for the one before.

        Args:
            step: Steps done; nothing happens if these are saved already.
            tensors: Weights and states by group and name, equal on all processes or shards.
            facts: Other numbers of the run, as JSON values.
        """
        self.finish()
        if step == self._saved_step:
            return
        self._saved_step = step
        scratch = self._folder(step).with_suffix(_SCRATCH)
        if self._processes.is_main:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        self._processes.wait()
        future = async_save(
            dict(tensors),
            storage_writer=FileSystemWriter(scratch),
            process_group=self._processes.group,
            no_dist=self._processes.group is None,
        )
        assert isinstance(future, Future)
        mark = {"format": _FORMAT, "step": step, "facts": dict(facts)}
        self._pending = (future, scratch, mark)

    def poll(self) -> None:
        """Mark the checkpoint under way as complete if all of it is written."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint under way is complete.

        Raises:
            CheckpointError: If it could not be written.
        """
        if self._pending is None:
            return
        (future, scratch, mark), self._pending = self._pending, None
        try:
            future.result()
            if self._processes.is_main:
                self._publish(scratch, mark)
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            raise CheckpointError(
                f"{scratch.stem} could not be saved ({_first_line(error)}). "
                "Make room on the disk and start again: the run resumes from the one before."
            ) from error

    def abandon(self) -> None:
        """When the run fails: complete what is nearly written, without a word about it."""
        if self._pending is not None:
            wait([self._pending[0]], timeout=_LAST_SAVE_S)
            if self._pending[0].done() and self._pending[0].exception() is None:
                self.finish()

    def _folder(self, step: int) -> Path:
        return self._output_dir / f"step-{step:07d}"

    def _find(self) -> Checkpoint | None:
        for scratch in self._output_dir.glob(f"step-*{_SCRATCH}"):
            logger.warning("removing %s, left behind by a run that was killed", scratch)
            shutil.rmtree(scratch)
        folders = sorted(self._output_dir.glob("step-*"))
        for folder in reversed(folders):
            if (folder / COMPLETE).is_file():
                return _read_mark(folder)
            logger.warning("skipping %s: it has no mark %s", folder, COMPLETE)
        if folders:
            raise CheckpointError(
                f"{self._output_dir} holds {folders[-1].name} but no complete checkpoint: "
                "half-copied, or of an older version. Start from its export with 'initial' in "
                "another output_dir, or delete the folders of steps."
            )
        return None

    def _publish(self, scratch: Path, mark: dict[str, Any]) -> None:
        mark["fingerprint"] = self._fingerprint
        mark["files"] = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        with (scratch / COMPLETE).open("w", encoding="utf-8") as stream:
            json.dump(mark, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        folder = self._folder(mark["step"])
        shutil.rmtree(folder, ignore_errors=True)  # one without a mark, skipped before
        scratch.rename(folder)
        complete = [f for f in sorted(self._output_dir.glob("step-*")) if (f / COMPLETE).is_file()]
        for old in complete[: -self._keep]:
            # renamed first: a folder that is half deleted must not look complete
            shutil.rmtree(old.rename(old.with_suffix(_SCRATCH)))


def _read_mark(folder: Path) -> Checkpoint:
    try:
        mark = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        if mark["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder} has format {mark['format']}; this version reads {_FORMAT}. "
                "Use another output_dir, or the version that wrote it."
            )
        return Checkpoint(folder, mark["step"], mark["facts"], mark["fingerprint"], mark["files"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(_damage(folder, error)) from error


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file: tuples become lists."""
    read: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return read


def _damage(folder: Path, reason: BaseException | str) -> str:
    text = reason if isinstance(reason, str) else _first_line(reason)
    return f"{folder} is damaged ({text}). Delete the folder: the run resumes from the one before."


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]  # what happened in the first process
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
