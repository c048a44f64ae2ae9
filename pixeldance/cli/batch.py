"""The command that makes the clips of a manifest: batch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixeldance.cli.app import JsonOption, command, print_json
from pixeldance.cli.loading import (
    DeviceOption,
    DtypeOption,
    LoraOption,
    MemoryOption,
    is_main,
    load_model,
)
from pixeldance.cli.screen import FAILED, INTERRUPTED, WRONG_INPUT, TaskProgress, tell
from pixeldance.errors import InputError

if TYPE_CHECKING:
    from pixeldance.api import Model
    from pixeldance.batch import BatchPlan, BatchProgress, BatchSummary
    from pixeldance.batch.runner import RunOptions

__all__ = ["batch"]


@command
def batch(
    manifest: Annotated[
        Path,
        typer.Argument(help="A .jsonl, .csv or .yaml file; columns as the options of generate."),
    ],
    *,
    output_dir: Annotated[
        Path, typer.Option(help="Folder of the clips, ID.mp4 and ID.json; made if missing.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model, or a local folder; else what the rows name."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most rows of one shape that run together.")
    ] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run part I (from 1) of N of the rows.")
    ] = None,
    skip_invalid: Annotated[
        bool,
        typer.Option("--skip-invalid", help="Write bad rows to rejects.jsonl, run the others."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try rows again that failed earlier.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make clips again that are already there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all rows and print the plan; make nothing.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print what is done, failed and missing.")
    ] = False,
    use_ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster, one actor per GPU.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the clips of a manifest that are not there yet.

    Prints the paths of the clips. All rows are checked before the first is made. Stopped at any
    moment, the same command goes on where it was. Several GPUs: accelerate launch -m
    pixeldance.batch with the same arguments; job arrays: --shard.
    """
    from pixeldance.batch import Shard, make_plan
    from pixeldance.batch.runner import RunOptions, check_options

    part = None if shard is None else Shard.parse(shard)
    options = RunOptions(
        device=device,
        dtype=dtype,
        memory=memory,
        batch_size=batch_size,
        retry_failed=retry_failed,
        overwrite=overwrite,
    )
    plan = make_plan(manifest, output_dir, model=model, loras=lora, shard=part)
    check_options(plan, options)
    if status:
        _print_status(plan, as_json=as_json)
        return
    _tell_rejected(plan)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        _leave(WRONG_INPUT if plan.rejected and not skip_invalid else 0)
        return
    plan.check(skip_invalid=skip_invalid, overwrite=overwrite)
    try:
        summary = _run_with_ray(plan, options) if use_ray else _run(plan, options)
    except KeyboardInterrupt:
        tell(f"\nStopped. What is made is kept in {output_dir}: the same command goes on.")
        _leave(INTERRUPTED)
    else:
        if summary.is_main:
            _print_summary(summary, as_json=as_json)
            _leave(FAILED if summary.failed else 0)


def _leave(exit_code: int) -> None:
    if exit_code:
        raise typer.Exit(exit_code)


# ---- running


def _run(plan: "BatchPlan", options: "RunOptions") -> "BatchSummary":
    from pixeldance.batch.runner import run_plan

    def load_onto(device: str) -> "Model":
        return load_model(plan.model.source, **options.to_load(plan, device).to_load())

    on_progress = _progress() if is_main() else None
    return run_plan(plan, options, load_onto=load_onto, on_progress=on_progress)


def _run_with_ray(plan: "BatchPlan", options: "RunOptions") -> "BatchSummary":
    try:
        from pixeldance.batch.ray import run_plan
    except ImportError as error:
        raise InputError(str(error)) from error
    return run_plan(plan, options)


# ---- what is shown


def _tell_rejected(plan: "BatchPlan") -> None:
    if is_main():
        for row in plan.rejected:
            tell(f"{plan.manifest.name}:{row.line}: {row.reason}")


def _print_plan(plan: "BatchPlan", *, as_json: bool) -> None:
    from pixeldance.batch import estimate

    if as_json:
        print_json(plan.to_json())
        return
    sizes = "; ".join(f"{count} of {size}" for size, count in plan.sizes.items())
    typer.echo(f"clips   {len(plan.rows)}, {plan.num_pairs} with a first and a last frame")
    typer.echo(f"model   {', '.join([plan.model.name, *plan.model.loras])}")
    typer.echo(f"sizes   {sizes or 'none'}")
    typer.echo(f"now     {_counts(plan)}")
    typer.echo(f"time    {estimate(plan).text}")


def _print_status(plan: "BatchPlan", *, as_json: bool) -> None:
    from pixeldance.batch import RowState

    failed = [
        {"id": row.id, "line": row.line, "error": plan.results[row.id].reason}
        for row in plan.rows_in(RowState.FAILED) + plan.rows_in(RowState.CONFLICT)
    ]
    if as_json:
        print_json({"output_dir": str(plan.folder.path), "counts": plan.counts, "failed": failed})
        return
    typer.echo(_counts(plan))
    for row in failed:
        typer.echo(f"{row['id']} (line {row['line']}): {row['error']}")


def _counts(plan: "BatchPlan") -> str:
    return ", ".join(f"{count} {state}" for state, count in plan.counts.items())


def _print_summary(summary: "BatchSummary", *, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_json())
    else:
        for path in summary.clips.values():
            typer.echo(path)
    for row in summary.failed:
        tell(f"failed: {row.id} (line {row.line}): {row.error}")
    tell(
        f"{len(summary.clips)} clips are there, {summary.num_made} of them made by this process in "
        f"{summary.seconds:.0f} s; {len(summary.failed)} failed, {len(summary.rejected)} left out."
    )
    if summary.failed:
        tell("The same command with --retry-failed tries them again.")


def _progress() -> "Callable[[BatchProgress], None]":
    line = TaskProgress()

    def on_progress(event: "BatchProgress") -> None:
        failed = f", {event.failed} failed" * (event.failed > 0)
        line.show(event.done, event.total, "clips", event.remaining_s, failed)

    return on_progress
