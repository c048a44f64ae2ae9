"""``python -m pixeldance.training CONFIG``, also with ``accelerate launch`` and ``torchrun``.

``pixeldance train`` is the same with the command line's conventions. Several processes on CPUs
need ``torchrun``: ``accelerate launch --cpu`` starts one whatever it is told.
"""

import argparse
import logging
import os
import sys

from pixeldance.errors import PixelDanceError
from pixeldance.training.config import load_config


def main() -> int:
    """Train what the config describes; print where the result is."""
    parser = argparse.ArgumentParser(
        prog="pixeldance.training",
        description="Train a part. The same command goes on with a run that was stopped.",
    )
    parser.add_argument("config", help="YAML file, see configs/")
    arguments = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        config = load_config(arguments.config)
        from pixeldance.training import loop

        try:
            exported = loop.train(config)
        except loop.TrainingStopped as stopped:
            if rank == 0:
                print(stopped, file=sys.stderr)  # noqa: T201
            return loop.EXIT_STOPPED
    except PixelDanceError as error:
        who = f" in process {rank}" if rank else ""
        print(f"error{who}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if rank == 0:
        print(exported)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
