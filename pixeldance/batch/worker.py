"""What one process does: take the next rows that nobody has, make their clips, go on."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pixeldance.batch.claims import Claims
from pixeldance.batch.folder import RowResult, RowState
from pixeldance.batch.plan import BatchPlan, batches
from pixeldance.batch.rows import BatchRow
from pixeldance.errors import CheckpointError

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = ["BatchProgress", "Worker"]

POLL_S = 1.0
"""How often rows of other processes are looked at."""


class BatchProgress(NamedTuple):
    """How far a run is, with all its processes."""

    done: int
    """Clips done and failed since the start of the run."""
    total: int
    """Clips that were missing when it began."""
    failed: int
    """How many of ``done`` failed."""
    remaining_s: float
    """Seconds that the rest will take at the pace so far."""
    row_id: str
    """Which one was last."""
    error: str | None
    """Why it failed, if it did."""


class Worker:
    """Makes the missing clips of a plan, beside any number of others.

    Args:
        plan: The plan; its missing rows are made.
        claims: The claims of this process, entered.
        load_model: Loads the model; called when the first clip is to be made.
        overwrite: Whether clips of other rows or models are replaced.
        on_progress: Called after each clip that has become known as done or failed.
    """

    def __init__(
        self,
        plan: BatchPlan,
        claims: Claims,
        *,
        load_model: Callable[[], "Model"],
        overwrite: bool = False,
        on_progress: Callable[[BatchProgress], object] | None = None,
    ) -> None:
        self.results = dict(plan.results)
        self.num_made = 0
        self._plan = plan
        self._folder = plan.folder
        self._claims = claims
        self._load_model = load_model
        self._model: Model | None = None
        self._wanted = {RowState.MISSING, *([RowState.CONFLICT] if overwrite else [])}
        self._on_progress = on_progress
        self._missing = plan.missing_rows(overwrite=overwrite)
        self._total_cost = sum(row.cost for row in self._missing)
        self._done_cost = 0.0
        self._num_done = self._num_failed = 0
        self._start = time.monotonic()

    def run(self, batch_size: int = 1) -> None:
        """Make what is missing, and wait for what others make, in case that they die.

        Args:
            batch_size: Most rows that run together.
        """
        pending = batches(self._missing, batch_size)
        while pending:
            waiting: list[list[BatchRow]] = []
            looked_at = time.monotonic()
            for batch in pending:
                waiting.append(self.run_batch(batch))
                if time.monotonic() - looked_at > POLL_S:
                    waiting = [self._still_missing(rows) for rows in waiting]
                    looked_at = time.monotonic()
            pending = [rows for rows in map(self._still_missing, waiting) if rows]
            if pending:
                time.sleep(POLL_S)

    def run_batch(self, rows: Sequence[BatchRow]) -> list[BatchRow]:
        """Make the clips of some rows, as far as they are missing and nobody else makes them.

        Args:
            rows: Rows of one shape.

        Returns:
            Those that are still missing: other processes have them.
        """
        held = [row for row in self._still_missing(rows) if self._claims.acquire(row.id)]
        try:
            # Somebody may have finished one between the look and the claim.
            missing = self._still_missing(held)
            if missing:
                self._make(missing)
        finally:
            for row in held:
                self._claims.release(row.id)
        return [row for row in rows if self._is_missing(row)]

    def _still_missing(self, rows: Sequence[BatchRow]) -> list[BatchRow]:
        """Look at rows again, those that others made or failed to make are reported."""
        for row in rows:
            if self._is_missing(row):
                result = self._folder.result(row)
                if result.state not in self._wanted:
                    self._settle(row, result)
        return [row for row in rows if self._is_missing(row)]

    def _is_missing(self, row: BatchRow) -> bool:
        return self.results[row.id].state in self._wanted

    def _make(self, rows: Sequence[BatchRow]) -> None:
        from pixeldance.batch.generate import make_clips

        model = self._loaded_model()
        try:
            clips = make_clips(model, rows)
        except Exception as error:
            if _is_device_broken(error):
                raise
            if len(rows) == 1:
                reason = self._folder.add_failure(rows[0], error)
                self._settle(rows[0], RowResult(RowState.FAILED, reason))
                return
            clips = []
        if not clips:  # one by one, so that only the row that is to blame fails
            for row in rows:
                self._make([row])
            return
        for row, clip in zip(rows, clips, strict=True):
            if self._folder.add(row, clip, self._claims):
                self.num_made += 1
                self._settle(row, self._folder.result(row))

    def _loaded_model(self) -> "Model":
        if self._model is None:
            self._model = self._load_model()
            if self._model.sha256 != self._plan.model.sha256:
                raise CheckpointError(
                    f"The weights of {self._plan.model.name!r} have changed since the rows were "
                    "checked. Run the command again."
                )
            self._start = time.monotonic()
        return self._model

    def _settle(self, row: BatchRow, result: RowResult) -> None:
        self.results[row.id] = result
        self._num_done += 1
        self._num_failed += result.state is not RowState.DONE
        self._done_cost += row.cost
        if self._on_progress is None:
            return
        pace = (time.monotonic() - self._start) / self._done_cost
        self._on_progress(
            BatchProgress(
                done=self._num_done,
                total=len(self._missing),
                failed=self._num_failed,
                remaining_s=pace * (self._total_cost - self._done_cost),
                row_id=row.id,
                error=None if result.state is RowState.DONE else result.reason,
            )
        )


def _is_device_broken(error: Exception) -> bool:
    """Whether every further row would fail as well: after such an error CUDA answers no more."""
    import torch

    is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory
