"""What a run will do: which rows, in which order, in which batches, and about how long."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

from pixeldance.backbones.facts import ModelFacts
from pixeldance.batch.folder import OutputFolder, RowResult, RowState
from pixeldance.batch.manifest import read_manifest
from pixeldance.batch.rows import BatchRow, RejectedRow, check_rows, chosen_model
from pixeldance.errors import InputError

__all__ = ["BatchPlan", "Estimate", "Shard", "batches", "estimate", "make_plan"]

REFERENCE_SECONDS_PER_COST = 2.2 / (256 * 144 * 25 * 12)
"""Seconds per unit of ``BatchRow.cost`` where nothing has been measured yet: pixeldance-mini on two
CPU cores with AVX512-bf16 takes 2.2 s for 25 frames of 256 x 144 in 8 steps."""

MAX_SHOWN = 20


@dataclass(frozen=True)
class Shard:
    """One of several parts of a manifest, for job arrays.

    Attributes:
        index: Which one, from 1.
        count: How many there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2/8``.

        Args:
            text: The text.

        Returns:
            The shard.

        Raises:
            InputError: If it is not written like that, or there is no such part.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()) or not 1 <= int(index) <= int(count):
            raise InputError(
                f"--shard must be i/n from 1/n to n/n, such as 2/8, got {text!r}. Let the indices "
                "of a job array begin at 1."
            )
        return cls(int(index), int(count))

    def choose(self, rows: Sequence[BatchRow]) -> list[BatchRow]:
        """The rows of this part: every part costs about the same.

        Args:
            rows: All rows of the manifest, whether they are done or not.

        Returns:
            The rows of the part; those of all parts are all rows.
        """
        # Longest processing time first (Graham 1969): each row goes to the part with least to do.
        loads = [0.0] * self.count
        chosen = []
        for row in longest_first(rows):
            part = loads.index(min(loads))
            loads[part] += row.cost
            if part == self.index - 1:
                chosen.append(row)
        return chosen


class Estimate(NamedTuple):
    """About how long one process takes."""

    seconds: float
    """For the rows that are missing."""
    basis: str
    """Where the figure comes from."""

    @property
    def text(self) -> str:
        """For people."""
        whole = round(self.seconds)
        return f"about {whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h ({self.basis})"


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a run will do, and what there is already.

    Attributes:
        manifest: The manifest.
        model: The model of the run.
        folder: Where clips go.
        rows: The rows of this shard, longest first.
        rejected: Rows of the manifest that cannot be run.
        results: What has become of each row so far, by id.
    """

    manifest: Path
    model: ModelFacts
    folder: OutputFolder
    rows: list[BatchRow]
    rejected: list[RejectedRow]
    results: dict[str, RowResult]

    def rows_in(self, state: RowState) -> list[BatchRow]:
        """The rows in a state.

        Args:
            state: The state.

        Returns:
            The rows, longest first.
        """
        return [row for row in self.rows if self.results[row.id].state is state]

    def missing_rows(self, *, overwrite: bool) -> list[BatchRow]:
        """The rows that a run makes.

        Args:
            overwrite: Whether it replaces clips of other rows or models.

        Returns:
            The rows, longest first.
        """
        wanted = {RowState.MISSING, *([RowState.CONFLICT] if overwrite else [])}
        return [row for row in self.rows if self.results[row.id].state in wanted]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by state, and of those that cannot be run."""
        found = Counter(result.state for result in self.results.values())
        return {**{str(state): found[state] for state in RowState}, "invalid": len(self.rejected)}

    def looked_at_again(self) -> Self:
        """The same plan with what has become of its rows meanwhile.

        Returns:
            A new plan.
        """
        return replace(self, results={row.id: self.folder.result(row) for row in self.rows})

    def check(self, *, skip_invalid: bool, overwrite: bool) -> None:
        """Refuse to run if the person has to decide something first.

        Args:
            skip_invalid: Whether rows that cannot be run are left out.
            overwrite: Whether clips of other rows or models are replaced.

        Raises:
            InputError: If there are bad rows or conflicts that the options say nothing about.
        """
        if self.rejected and not skip_invalid:
            raise InputError(
                f"{len(self.rejected)} rows of {self.manifest.name!r} cannot be run; nothing was "
                "started. Repair them, or leave them out with --skip-invalid."
            )
        conflicts = self.rows_in(RowState.CONFLICT)
        if conflicts and not overwrite:
            listed = "; ".join(
                f"{row.id}.mp4: {self.results[row.id].reason}" for row in conflicts[:MAX_SHOWN]
            )
            more = f"; and {len(conflicts) - MAX_SHOWN} more" * (len(conflicts) > MAX_SHOWN)
            raise InputError(
                f"{len(conflicts)} clips in '{self.folder.path}' are others than those asked for "
                f"({listed}{more}). Choose another --output-dir or other ids, or replace them with "
                "--overwrite."
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values.

        Returns:
            Number of rows, pairs, sizes, estimated time and what is there already.
        """
        expected = estimate(self)
        return {
            "manifest": str(self.manifest),
            "output_dir": str(self.folder.path),
            "model": self.model.name,
            "num_clips": len(self.rows),
            "num_pairs": self.num_pairs,
            "sizes": self.sizes,
            "counts": self.counts,
            "estimated_seconds": round(expected.seconds, 3),
            "estimated_from": expected.basis,
            "rejected": [row.to_json() for row in self.rejected],
        }

    @property
    def num_pairs(self) -> int:
        """Rows with a first and a last frame."""
        return sum({"first_frame", "last_frame"} <= set(row.request.pictures) for row in self.rows)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of clips by size and length, such as ``256x144, 25 frames``."""
        found = Counter(
            f"{row.size.width}x{row.size.height}, {row.request.resolved_num_frames} frames"
            for row in self.rows
        )
        return dict(found.most_common())


def make_plan(
    manifest: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    loras: Sequence[str] = (),
    shard: Shard | None = None,
) -> BatchPlan:
    """Read and check a manifest and look at what there is already. Nothing is written.

    Args:
        manifest: JSON Lines, CSV or YAML file, see ``read_manifest``.
        output_dir: Folder of the clips; it need not exist.
        model: Name or folder of the model; by default what the rows name.
        loras: LoRAs that are added to it, each ``[high:|low:]path[:scale]``.
        shard: The part of the manifest to be run; by default all of it.

    Returns:
        The plan.

    Raises:
        InputError: If the manifest cannot be read, or the rows name several models. What is wrong
            with single rows is in ``rejected``.
        CheckpointError: If the model is missing.
    """
    manifest = Path(manifest)
    written = read_manifest(manifest)
    facts = ModelFacts.read(chosen_model(written, model), loras=tuple(loras))
    checked = check_rows(written, folder=manifest.parent, model=facts)
    rows = longest_first(checked.rows) if shard is None else shard.choose(checked.rows)
    folder = OutputFolder(Path(output_dir), facts.sha256)
    return BatchPlan(
        manifest=manifest,
        model=facts,
        folder=folder,
        rows=rows,
        rejected=checked.rejected,
        results={row.id: folder.result(row) for row in rows},
    )


def longest_first(rows: Iterable[BatchRow]) -> list[BatchRow]:
    """The order in which rows are made: with the short ones last, all processes end together.

    Args:
        rows: The rows.

    Returns:
        Rows of one shape beside each other; the same order in every process.
    """
    return sorted(rows, key=lambda row: (-row.cost, _shape(row), row.id))


def batches(rows: Iterable[BatchRow], batch_size: int) -> list[list[BatchRow]]:
    """Rows that run together: of one shape, with the same steps and guidance.

    Args:
        rows: Rows, longest first.
        batch_size: Most rows of a batch.

    Returns:
        The batches, longest rows first.
    """
    found = []
    for _, group in groupby(rows, key=_shape):
        alike = list(group)
        found += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    return found


def _shape(row: BatchRow) -> tuple[float, ...]:
    """What rows of a batch have in common."""
    request = row.request
    return (
        *row.size,
        request.resolved_num_frames,
        request.num_inference_steps,
        request.guidance_scale,
        request.guidance_scale_2 or 0.0,
        request.last_frame_strength,
    )


def estimate(plan: BatchPlan) -> Estimate:
    """About how long one process takes for the missing rows.

    Time goes with ``BatchRow.cost``. What a unit of it takes is measured on the clips that are
    done already; where there are none, a stated figure of a reference machine stands in.

    Args:
        plan: The plan.

    Returns:
        The estimate.
    """
    missing = sum(row.cost for row in plan.rows_in(RowState.MISSING))
    done = [(row.cost, plan.results[row.id].seconds) for row in plan.rows_in(RowState.DONE)]
    timed = [(cost, seconds) for cost, seconds in done if seconds]
    if not timed:
        basis = "as pixeldance-mini on two CPU cores; nothing has been measured here yet"
        return Estimate(missing * REFERENCE_SECONDS_PER_COST, basis)
    per_cost = sum(seconds for _, seconds in timed) / sum(cost for cost, _ in timed)
    basis = f"one process, as measured on the {len(timed)} clips that are done"
    return Estimate(missing * per_cost, basis)
