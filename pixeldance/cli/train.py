"""The command that trains: train."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixeldance.cli.app import JsonOption, command, print_json
from pixeldance.cli.screen import tell

if TYPE_CHECKING:
    from pixeldance.training.config import TrainConfig

__all__ = ["train"]


@command
def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file of differences from the defaults, see configs/.")
    ],
    *,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print parameters, FLOPs, memory per GPU and time; do not train."
        ),
    ] = False,
    num_gpus: Annotated[
        int, typer.Option(min=1, help="GPUs that --dry-run reckons with beside 1 and 8.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a part of the model, or go on with a run that was stopped.

    Prints the folder of the exported part. Several GPUs: accelerate launch -m pixeldance.training
    CONFIG, or torchrun -m pixeldance.training CONFIG. Told to stop (SIGTERM), it saves its state
    and ends with exit code 143; the same command goes on.
    """
    from pixeldance.training.config import load_config

    run = load_config(config)
    if dry_run:
        from pixeldance.training.dry_run import describe_run, run_facts

        if as_json:
            print_json(run_facts(run, num_gpus))
        else:
            typer.echo(describe_run(run, num_gpus))
        return
    exported = _trained(run)
    if int(os.environ.get("RANK", "0")) == 0:
        if as_json:
            print_json({"part": run.part, "steps": run.max_steps, "export": str(exported)})
        else:
            typer.echo(exported)


def _trained(run: "TrainConfig") -> Path:
    """Train; a run that is stopped ends the process with an exit code of its own."""
    from pixeldance.training import loop

    try:
        with _log_shown():
            return loop.train(run)
    except loop.TrainingStopped as stopped:
        tell(str(stopped))
        raise typer.Exit(loop.EXIT_STOPPED) from stopped


@contextmanager
def _log_shown() -> Iterator[None]:
    """Show the run's log on stderr, with times; it is longer than one screen."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("pixeldance.training")
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # the frame would print every line as a warning
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
