"""The worker process: ``python -m pixeldance.jobs --data-dir FOLDER``.

It runs jobs until its standard input ends, which is how it learns that its server is gone, or until
it is asked to terminate.
"""

import argparse
import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING

from pixeldance.backbones.facts import ModelFacts
from pixeldance.backbones.options import ModelOptions
from pixeldance.jobs.errors import WorkerBusyError
from pixeldance.jobs.store import JobStore
from pixeldance.jobs.worker import Worker

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = ["main", "run_until_told"]


def main() -> None:
    """Run the worker process."""
    parser = argparse.ArgumentParser(prog="python -m pixeldance.jobs", description=__doc__)
    parser.add_argument("--data-dir", required=True, help="The data folder.")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ...")
    parser.add_argument("--memory", default="auto", help="auto, 24gb, 12gb or 8gb.")
    parser.add_argument("--lora", action="append", default=[], help="LoRA of the model.")
    parser.add_argument("--model", default="", help="The model that LoRAs are for.")
    given = parser.parse_args()
    options = ModelOptions(
        device=given.device, dtype=given.dtype, memory=given.memory, loras=tuple(given.lora)
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def load_model(name: str) -> "Model":
        from pixeldance.api import load  # torch takes seconds to import: with the first job

        facts = ModelFacts.read(name)
        return load(name, **options.of_model(facts, main=given.model).to_load())

    with JobStore(given.data_dir) as store:
        run_until_told(Worker(store, load_model=load_model, wait=True))


def run_until_told(worker: Worker) -> None:
    """Run jobs until the standard input ends or SIGTERM comes; a job that runs is given back.

    Args:
        worker: A worker that has not been entered.
    """
    signal.signal(signal.SIGTERM, lambda *_: worker.leave())
    threading.Thread(target=_leave_with_server, args=(worker,), daemon=True).start()
    try:
        with worker:
            worker.run()
    except WorkerBusyError as error:  # told before it began
        logging.getLogger(__name__).info("%s", error)


def _leave_with_server(worker: Worker) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    worker.leave()


if __name__ == "__main__":
    main()
