"""The output folder of a batch: which rows are done, failed or missing, and how a clip gets in.

A row is done when ``ID.mp4`` and ``ID.json`` are there and the JSON, which is moved in last, says
that it was made from this row with these weights. Nothing else is remembered of what is done.
"""

import json
import shutil
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pixeldance.batch.claims import Claims
from pixeldance.batch.rows import BatchRow, RejectedRow
from pixeldance.errors import DataError, InputError, PixelDanceError
from pixeldance.video.files import new_files

if TYPE_CHECKING:
    from pixeldance.api import Clip

__all__ = ["OutputFolder", "RowResult", "RowState"]

STATE_FOLDER = ".pixeldance-batch"
REJECTS_FILE = "rejects.jsonl"
RECIPE_KEY = "batch"
"""Where a clip's recipe names its row."""


class RowState(StrEnum):
    """What has become of a row."""

    DONE = "done"
    """Its clip is there."""
    FAILED = "failed"
    """It was tried; ``--retry-failed`` tries again."""
    MISSING = "missing"
    """It has not been made yet."""
    CONFLICT = "conflict"
    """Something else has the name of its clip."""


class RowResult(NamedTuple):
    """What has become of a row, and the reason if that needs one."""

    state: RowState
    reason: str | None = None
    seconds: float | None = None
    """How long the model took for it, where it is done."""


@dataclass(frozen=True)
class OutputFolder:
    """The output folder of a run.

    Attributes:
        path: The folder.
        model_sha256: Fingerprint of the weights of this run.
    """

    path: Path
    model_sha256: str

    @property
    def state(self) -> Path:
        """Folder of claims, failures and unfinished files."""
        return self.path / STATE_FOLDER

    @property
    def rejects(self) -> Path:
        """File of the rows that were left out."""
        return self.path / REJECTS_FILE

    def clip_path(self, row_id: str) -> Path:
        """Where the clip of a row lies.

        Args:
            row_id: Id of the row.

        Returns:
            The path of the MP4 file.
        """
        return self.path / f"{row_id}.mp4"

    def make(self) -> None:
        """Make the folder.

        Raises:
            InputError: If that is not possible.
        """
        try:
            for name in ("failed", "partial"):
                (self.state / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The folder '{self.path}' cannot be made or written to ({error.strerror}). "
                "Choose another --output-dir."
            ) from error

    # ---- what is there

    def result(self, row: BatchRow) -> RowResult:
        """What has become of a row so far.

        Args:
            row: The row.

        Returns:
            Its state.
        """
        found = self._made(row)
        if found is not None:
            return found
        failure = self._failure(row)
        if failure is not None:
            return RowResult(RowState.FAILED, failure)
        return RowResult(RowState.MISSING)

    def _made(self, row: BatchRow) -> RowResult | None:
        """State of a row by the files that have its name; None if its clip has yet to be made."""
        clip = self.clip_path(row.id)
        sidecar = clip.with_suffix(".json")
        if not sidecar.exists():
            is_foreign = clip.exists() and not _is_ours(clip)
            return RowResult(RowState.CONFLICT, "no batch made it") if is_foreign else None
        origin = _origin(sidecar)
        if origin is None:
            return RowResult(RowState.CONFLICT, "no batch made it")
        if origin.row_sha256 != row.sha256:
            return RowResult(RowState.CONFLICT, "it was made from another row")
        if origin.model_sha256 != self.model_sha256:
            return RowResult(RowState.CONFLICT, f"it was made with other weights ({origin.model})")
        if not clip.exists():
            return None
        return RowResult(RowState.DONE, seconds=origin.seconds)

    def _failure(self, row: BatchRow) -> str | None:
        """Why a row failed with these weights, if it did."""
        try:
            failure = json.loads(self._failure_path(row.id).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        is_same = (failure["row_sha256"], failure["model_sha256"]) == (
            row.sha256,
            self.model_sha256,
        )
        return str(failure["error"]) if is_same else None

    def _failure_path(self, row_id: str) -> Path:
        return self.state / "failed" / f"{row_id}.json"

    # ---- what comes in

    def add(self, row: BatchRow, clip: "Clip", claims: Claims) -> bool:
        """Put a finished clip into the folder, its JSON last.

        Args:
            row: Its row, claimed.
            clip: The clip.
            claims: The claims of this process.

        Returns:
            False if another process has taken the row over meanwhile; then nothing is written.

        Raises:
            PixelDanceError: If it cannot be written.
        """
        clip.recipe[RECIPE_KEY] = {"id": row.id, "row_sha256": row.sha256}
        workshop = self.state / "partial" / claims.owner
        target = self.clip_path(row.id)
        try:
            workshop.mkdir(exist_ok=True)
            finished = clip.save(workshop / target.name, overwrite=True)
            if not claims.is_mine(row.id):
                finished.unlink()
                finished.with_suffix(".json").unlink()
                return False
            # The old mark goes first, if there is one: it describes another clip.
            target.with_suffix(".json").unlink(missing_ok=True)
            finished.replace(target)
            finished.with_suffix(".json").replace(target.with_suffix(".json"))
            self._failure_path(row.id).unlink(missing_ok=True)
        except OSError as error:
            raise PixelDanceError(
                f"Could not write '{target}': {error.strerror or error}. Check the free space and "
                "the permissions of the folder."
            ) from error
        return True

    def add_failure(self, row: BatchRow, error: Exception) -> str:
        """Record that a row failed.

        Args:
            row: The row.
            error: What it raised.

        Returns:
            The error as one line.
        """
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, PixelDanceError):
            text = f"{type(error).__name__}: {text}"
        failure = {
            "id": row.id,
            "line": row.line,
            "row_sha256": row.sha256,
            "model_sha256": self.model_sha256,
            "error": text,
            "traceback": "".join(traceback.format_exception(error)),
        }
        path = self._failure_path(row.id)
        with new_files(path, overwrite=True) as (temporary,):
            temporary.write_text(json.dumps(failure, indent=2) + "\n", encoding="utf-8")
        return text

    def write_rejects(self, rejected: Iterable[RejectedRow]) -> None:
        """Write the rows that are left out, with reasons; without any, an old file is removed.

        Args:
            rejected: The rows.
        """
        lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rejected]
        if not lines:
            self.rejects.unlink(missing_ok=True)
            return
        with new_files(self.rejects, overwrite=True) as (temporary,):
            temporary.write_text("".join(lines), encoding="utf-8")

    # ---- what goes out

    def forget(self, rows: Iterable[BatchRow], *, done: bool) -> None:
        """Have rows made again: those that failed, or all of them.

        A clip that is there stays until the new one replaces it; without its JSON it is not done.

        Args:
            rows: The rows.
            done: Whether those that are done are made again, too.
        """
        for row in rows:
            self._failure_path(row.id).unlink(missing_ok=True)
            if done:
                self.clip_path(row.id).with_suffix(".json").unlink(missing_ok=True)

    def clean(self, claims: Claims) -> None:
        """Remove what processes that were killed have left unfinished.

        Args:
            claims: The claims of this process.
        """
        dead = claims.bury_dead_owners()
        for workshop in (self.state / "partial").iterdir():
            if workshop.name in dead:
                shutil.rmtree(workshop, ignore_errors=True)

    def leave(self, claims: Claims) -> None:
        """Remove this process's own folder of unfinished files.

        Args:
            claims: The claims of this process.
        """
        shutil.rmtree(self.state / "partial" / claims.owner, ignore_errors=True)


class _Origin(NamedTuple):
    """What a clip of a batch says of where it comes from."""

    row_sha256: str
    model: str
    model_sha256: str
    seconds: float


def _origin(file: Path) -> _Origin | None:
    """Where the clip of a file comes from; None if not from a batch."""
    from pixeldance.video import read_recipe

    try:
        recipe = read_recipe(file)
    except (DataError, InputError):
        return None
    batch: Any = recipe.get(RECIPE_KEY)
    if not isinstance(batch, dict) or not isinstance(batch.get("row_sha256"), str):
        return None
    timings = recipe["timings"]
    seconds = sum(timings.get(stage, 0.0) for stage in ("sample", "decode"))
    model = recipe["model"]
    return _Origin(batch["row_sha256"], model["name"], model["sha256"], seconds)


def _is_ours(clip: Path) -> bool:
    return _origin(clip) is not None
