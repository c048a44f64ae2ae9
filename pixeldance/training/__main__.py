"""``python -m pixeldance.training CONFIG``; also under ``accelerate launch -m``."""

import argparse
import logging
import sys

from pixeldance.errors import PixelDanceError
from pixeldance.training.config import load_config


def main() -> int:
    """Train what the config describes; print where the result is."""
    parser = argparse.ArgumentParser(prog="pixeldance.training", description="Train a part.")
    parser.add_argument("config", help="YAML file, see configs/")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        config = load_config(arguments.config)
        from pixeldance.training.loop import train

        print(train(config))  # noqa: T201
    except PixelDanceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
