"""Batch scripts: the clips of a manifest, made by any number of processes that may stop any time.

    from pixeldance import batch

    summary = batch.run("jobs.jsonl", "out")

The same on the command line: ``pixeldance batch jobs.jsonl --output-dir out``; on several GPUs:
``accelerate launch -m pixeldance.batch jobs.jsonl --output-dir out``. For Ray see ``batch.ray``.
"""

from pixeldance.batch.folder import RowResult, RowState
from pixeldance.batch.plan import BatchPlan, Estimate, Shard, estimate, make_plan
from pixeldance.batch.rows import BatchRow, RejectedRow
from pixeldance.batch.runner import BatchSummary, FailedRow, run
from pixeldance.batch.worker import BatchProgress

__all__ = [
    "BatchPlan",
    "BatchProgress",
    "BatchRow",
    "BatchSummary",
    "Estimate",
    "FailedRow",
    "RejectedRow",
    "RowResult",
    "RowState",
    "Shard",
    "estimate",
    "make_plan",
    "run",
]
