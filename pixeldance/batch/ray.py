"""Running a manifest with Ray Data: one actor per GPU holds the model; the files are the same.

    from pixeldance.batch import ray

    summary = ray.run("jobs.jsonl", "out")

Ray starts the actors and hands out the rows. Manifest, pictures and output folder must be reachable
under the same paths on all machines. Needs ``pip install pixeldance[ray]``.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError("This needs Ray: pip install 'pixeldance[ray]'.") from error

from pixeldance.batch.claims import Claims
from pixeldance.batch.plan import BatchPlan, Shard, batches, make_plan
from pixeldance.batch.rows import BatchRow
from pixeldance.batch.runner import (
    BatchSummary,
    RunOptions,
    check_options,
    load_model,
    prepare,
    summarize,
)
from pixeldance.batch.worker import Worker
from pixeldance.errors import InputError

__all__ = ["run", "run_plan"]

MAX_BLOCKS = 2000
"""More would cost Ray more than they gain in balance."""


def run(
    manifest: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model: str | None = None,
    loras: Sequence[str] = (),
    options: RunOptions | None = None,
    shard: Shard | None = None,
    skip_invalid: bool = False,
    num_actors: int | None = None,
) -> BatchSummary:
    """Make the clips of a manifest that are not there yet, on the Ray cluster.

    Args:
        manifest: See ``pixeldance.batch.run``.
        output_dir: See ``pixeldance.batch.run``.
        model: See ``pixeldance.batch.run``.
        loras: See ``pixeldance.batch.run``.
        options: How it is run; by default as ``pixeldance.batch.run`` does.
        shard: See ``pixeldance.batch.run``.
        skip_invalid: See ``pixeldance.batch.run``.
        num_actors: Number of actors; by default one per GPU of the cluster, without GPUs one per
            CPU.

    Returns:
        How it ended.

    Raises:
        InputError: As ``pixeldance.batch.run``.
    """
    options = options or RunOptions()
    plan = make_plan(manifest, output_dir, model=model, loras=loras, shard=shard)
    check_options(plan, options)
    plan.check(skip_invalid=skip_invalid, overwrite=options.overwrite)
    return run_plan(plan, options, num_actors=num_actors)


def run_plan(
    plan: BatchPlan, options: RunOptions, *, num_actors: int | None = None
) -> BatchSummary:
    """Run a plan that has been checked, on the Ray cluster.

    Args:
        plan: The plan.
        options: How it is run.
        num_actors: See ``run``.

    Returns:
        How it ended.

    Raises:
        InputError: If the number of actors is below 1.
    """
    if num_actors is not None and num_actors < 1:
        raise InputError(f"num_actors must be at least 1, got {num_actors}. Leave it out.")
    start = time.monotonic()
    plan.folder.make()
    with Claims(plan.folder.state) as claims:
        prepare(plan, options, claims)
    plan = plan.looked_at_again()
    missing = batches(plan.missing_rows(overwrite=options.overwrite), options.batch_size)
    num_made = 0
    if missing:
        num_made = _make(plan, options, missing, num_actors)
    results = plan.looked_at_again().results
    return summarize(plan, results, num_made=num_made, seconds=time.monotonic() - start)


def _make(
    plan: BatchPlan, options: RunOptions, missing: list[list[BatchRow]], num_actors: int | None
) -> int:
    """Let actors make the clips; returns how many they have made."""
    ray.init(ignore_reinit_error=True)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = 0 if options.device == "cpu" else int(resources.get("GPU", 0))
    slots = num_gpus or int(resources.get("CPU", 1))
    # One batch of rows is one block, so that an actor that is free gets the next one.
    numbers = ray.data.from_items(
        [{"number": number} for number in range(len(missing))],
        override_num_blocks=min(len(missing), MAX_BLOCKS),
    )
    counted = numbers.map_batches(
        _Actor,
        fn_constructor_args=(plan, options, missing),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(num_actors or slots, len(missing))),
        num_gpus=1 if num_gpus else 0,
        num_cpus=0 if num_gpus else 1,
    )
    return int(sum(row["num_made"] for row in counted.iter_rows()))


class _Actor:
    """One process of the cluster with a model in it."""

    def __init__(self, plan: BatchPlan, options: RunOptions, missing: list[list[BatchRow]]) -> None:
        self._missing = missing
        # An actor is ended without notice, as if it were killed; its claims are given back after
        # each batch, and its signs of life end with it.
        claims = Claims(plan.folder.state).__enter__()
        self._worker = Worker(
            plan,
            claims,
            load_model=lambda: load_model(plan, options, options.device),
            overwrite=options.overwrite,
        )

    def __call__(self, numbers: dict[str, Any]) -> dict[str, list[int]]:
        """Make the clips of the batches with some numbers."""
        before = self._worker.num_made
        for number in numbers["number"]:
            self._worker.run_batch(self._missing[number])
        return {"num_made": [self._worker.num_made - before]}
