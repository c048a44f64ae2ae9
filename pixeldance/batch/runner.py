"""A whole run: check, claim, make, sum up."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pixeldance.backbones.options import ModelOptions
from pixeldance.batch.claims import Claims
from pixeldance.batch.folder import RowResult, RowState
from pixeldance.batch.plan import BatchPlan, Shard, make_plan
from pixeldance.batch.rows import RejectedRow
from pixeldance.batch.worker import BatchProgress, Worker
from pixeldance.errors import InputError

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = [
    "BatchSummary",
    "FailedRow",
    "RunOptions",
    "check_options",
    "load_model",
    "prepare",
    "run",
    "run_plan",
    "summarize",
]

START_TIMEOUT = timedelta(hours=6)
"""How long a process waits at the start for one that is still checking its rows."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a plan is run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``, see ``load``. Of processes started together, each
            takes a GPU of its own.
        dtype: Number format of the transformer, see ``load``.
        memory: How much of the device's memory a Wan checkpoint may take, see ``load``.
        batch_size: Most rows of one shape that run together.
        retry_failed: Try rows again that failed earlier.
        overwrite: Make clips again that are there, and replace those of other rows or models.

    Raises:
        InputError: If the batch size is below 1, or ``memory`` is unknown.
    """

    device: str = "auto"
    dtype: str = "auto"
    memory: str = "auto"
    batch_size: int = 1
    retry_failed: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}. Use 1.")
        ModelOptions(memory=self.memory)

    def to_load(self, plan: BatchPlan, device: str) -> ModelOptions:
        """How the model of a plan is loaded.

        Args:
            plan: The plan; it names the LoRAs.
            device: Where it goes.

        Returns:
            The options.
        """
        return ModelOptions(
            device=device, dtype=self.dtype, memory=self.memory, loras=plan.model.loras
        )


class FailedRow(NamedTuple):
    """A row whose clip could not be made."""

    id: str
    line: int
    error: str


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """How a run ended.

    Attributes:
        output_dir: Folder of the clips.
        clips: Paths of all clips of the manifest (or shard) that are there now, by id, in the order
            of the manifest.
        num_made: How many of them this process has made.
        failed: Rows whose clips could not be made, now or earlier.
        num_missing: Rows that have no clip yet: other processes have them.
        rejected: Rows that were left out.
        seconds: How long the run took.
        is_main: Whether this is the process that reports, of several that were started together.
    """

    output_dir: Path
    clips: dict[str, Path]
    num_made: int
    failed: list[FailedRow]
    num_missing: int
    rejected: list[RejectedRow]
    seconds: float
    is_main: bool = True

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values.

        Returns:
            Paths are texts.
        """
        return {
            "output_dir": str(self.output_dir),
            "num_clips": len(self.clips),
            "num_made": self.num_made,
            "num_failed": len(self.failed),
            "num_missing": self.num_missing,
            "num_rejected": len(self.rejected),
            "seconds": round(self.seconds, 3),
            "clips": {row_id: str(path) for row_id, path in self.clips.items()},
            "failed": [row._asdict() for row in self.failed],
            "rejected": [row.to_json() for row in self.rejected],
        }


def run(
    manifest: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    loras: Sequence[str] = (),
    batch_size: int = 1,
    shard: Shard | None = None,
    skip_invalid: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[BatchProgress], object] | None = None,
) -> BatchSummary:
    """Make the clips of a manifest that are not there yet.

    Stopped at any moment, the same call goes on where it was. Any number of processes, started
    together (``accelerate launch``) or each on its own, may run the same manifest into the same
    folder: each takes the next rows that nobody has.

    Args:
        manifest: JSON Lines, CSV or YAML file; its columns are ``id`` and the fields of
            ``GenerationRequest``, its paths begin at its folder.
        output_dir: Folder of the clips, ``ID.mp4`` and ``ID.json``; it is made if missing.
        model: Name or folder of the model; by default what the rows name.
        device: See ``RunOptions``.
        dtype: See ``RunOptions``.
        memory: See ``RunOptions``.
        loras: LoRAs that are added to the model, each ``[high:|low:]path[:scale]``.
        batch_size: See ``RunOptions``.
        shard: The part of the manifest to be run; by default all of it.
        skip_invalid: Write bad rows to ``rejects.jsonl`` and run the others, and not none.
        retry_failed: See ``RunOptions``.
        overwrite: See ``RunOptions``.
        on_progress: Called after each clip.

    Returns:
        What is there now, what failed and what was left out.

    Raises:
        InputError: If the manifest or the options are wrong, rows are bad, or the folder holds
            something else under their names; before anything is made.
        CheckpointError: If the model is missing or damaged.
        PixelDanceError: If a clip cannot be written.
    """
    options = RunOptions(
        device=device,
        dtype=dtype,
        memory=memory,
        batch_size=batch_size,
        retry_failed=retry_failed,
        overwrite=overwrite,
    )
    plan = make_plan(manifest, output_dir, model=model, loras=loras, shard=shard)
    check_options(plan, options)
    plan.check(skip_invalid=skip_invalid, overwrite=overwrite)
    return run_plan(plan, options, on_progress=on_progress)


def check_options(plan: BatchPlan, options: RunOptions) -> None:
    """Refuse options that have no effect on the model of a plan.

    Args:
        plan: The plan.
        options: How it is run.
    """
    options.to_load(plan, options.device).check(plan.model)


def load_model(plan: BatchPlan, options: RunOptions, device: str) -> "Model":
    """Load the model of a plan.

    Args:
        plan: The plan.
        options: How it is run.
        device: Where it goes; of several GPUs, each process gets its own.

    Returns:
        The model.
    """
    from pixeldance.api import load

    return load(plan.model.source, **options.to_load(plan, device).to_load())


def run_plan(
    plan: BatchPlan,
    options: RunOptions,
    *,
    load_onto: "Callable[[str], Model] | None" = None,
    on_progress: Callable[[BatchProgress], object] | None = None,
) -> BatchSummary:
    """Run a plan that has been checked.

    Args:
        plan: The plan.
        options: How it is run.
        load_onto: Loads its model onto a device; called only if there is something to make. By
            default ``load_model`` does it.
        on_progress: Called after each clip.

    Returns:
        How it ended.
    """
    start = time.monotonic()
    if load_onto is None:
        load_onto = partial(load_model, plan, options)
    plan.folder.make()
    with started_together(options.device) as process, Claims(plan.folder.state) as claims:
        if process.is_main:
            prepare(plan, options, claims)
        process.wait_for_all()
        plan = plan.looked_at_again()
        worker = Worker(
            plan,
            claims,
            load_model=lambda: load_onto(process.device),
            overwrite=options.overwrite,
            on_progress=on_progress,
        )
        try:
            worker.run(options.batch_size)
        finally:
            plan.folder.leave(claims)
    return summarize(
        plan,
        worker.results,
        num_made=worker.num_made,
        seconds=time.monotonic() - start,
        is_main=process.is_main,
    )


def prepare(plan: BatchPlan, options: RunOptions, claims: Claims) -> None:
    """What one of the processes does in the output folder before any begins.

    Args:
        plan: The plan.
        options: How it is run.
        claims: The claims of this process.
    """
    plan.folder.write_rejects(plan.rejected)
    plan.folder.clean(claims)
    if options.retry_failed or options.overwrite:
        plan.folder.forget(plan.rows, done=options.overwrite)


def summarize(
    plan: BatchPlan,
    results: Mapping[str, RowResult],
    *,
    num_made: int,
    seconds: float,
    is_main: bool = True,
) -> BatchSummary:
    """Sum up what has become of the rows of a plan.

    Args:
        plan: The plan.
        results: What has become of each row, by id.
        num_made: How many clips this process has made.
        seconds: How long it took.
        is_main: Whether this process reports.

    Returns:
        The summary, in the order of the manifest.
    """
    rows = sorted(plan.rows, key=lambda row: (row.line, row.id))
    states = {row.id: results[row.id].state for row in rows}
    done = [row.id for row in rows if states[row.id] is RowState.DONE]
    return BatchSummary(
        output_dir=plan.folder.path,
        clips={row_id: plan.folder.clip_path(row_id) for row_id in done},
        num_made=num_made,
        failed=[
            FailedRow(row.id, row.line, results[row.id].reason or "unknown")
            for row in rows
            if states[row.id] in (RowState.FAILED, RowState.CONFLICT)
        ],
        num_missing=sum(state is RowState.MISSING for state in states.values()),
        rejected=plan.rejected,
        seconds=seconds,
        is_main=is_main,
    )


class _Process(NamedTuple):
    """This process among those that were started together."""

    is_main: bool
    device: str
    wait_for_all: Callable[[], object]


@contextmanager
def started_together(device: str) -> Iterator[_Process]:
    """Find out about the other processes of ``accelerate launch`` or ``torchrun``.

    They meet once, after the first has put the output folder in order. From then on they only know
    of each other by their claims, so that one that dies or is slow holds up no other.

    Args:
        device: Where the model shall run: of several GPUs, each process gets its own.

    Yields:
        _Process: This process.

    Raises:
        InputError: If all processes would use one GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield _Process(True, device, lambda: None)
        return
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"The device is {device!r} for every process. Use auto: each takes a GPU of its own."
        )
    import torch
    from accelerate import PartialState

    # On a machine without GPUs accelerate has to be told, or the processes would not meet.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=START_TIMEOUT)
    try:
        # Not accelerate's "cpu:0": that copies the weights to other addresses, and where a matrix
        # is aligned otherwise, the processor's sums differ in their last bits.
        own_device = "cpu" if on_cpu else str(state.device)
        yield _Process(state.is_main_process, own_device, state.wait_for_everyone)
    finally:
        state.destroy_process_group()
