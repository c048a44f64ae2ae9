"""Processes that run a manifest: forked from one server that has imported everything already."""

import multiprocessing
import os
import socket
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pixeldance.api import Model
from pixeldance.batch import make_plan
from pixeldance.batch.runner import RunOptions, load_model, run_plan

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["accelerate", "batch_processes", "pixeldance.batch.generate"])


def start(
    manifest: Path, output_dir: Path, model: Path, *, log: Path, **environment: object
) -> BaseProcess:
    """Start a process that runs a manifest; ids that it begins are added to the log."""
    process = _CONTEXT.Process(target=_work, args=(manifest, output_dir, model, log, environment))
    process.start()
    return process


def start_together(count: int, *arguments: Any, **options: Any) -> list[BaseProcess]:
    """Start processes as torchrun does; they know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            *arguments,
            **options,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=count,
            LOCAL_WORLD_SIZE=count,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(count)
    ]


def _work(
    manifest: Path, output_dir: Path, model: Path, log: Path, environment: dict[str, object]
) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}

    def load_onto(device: str) -> Any:
        return _LoggingModel(load_model(plan, RunOptions(dtype="float32"), device), log)

    try:
        plan = make_plan(manifest, output_dir, model=str(model))
        plan.check(skip_invalid=False, overwrite=False)
        summary = run_plan(plan, RunOptions(device="cpu"), load_onto=load_onto)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(3 if summary.failed or summary.num_missing else 0)


class _LoggingModel:
    """The model it is given, with a line in a file for each clip that it begins."""

    def __init__(self, model: Model, log: Path) -> None:
        self.sha256 = model.sha256
        self._model = model
        self._log = log

    def generate(self, request: Any, *, on_step: Any) -> Any:
        with self._log.open("a") as file:
            file.write(f"{os.getpid()} {request.prompt}\n")
        return self._model.generate(request, on_step=on_step)
