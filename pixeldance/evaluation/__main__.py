"""``python -m pixeldance.evaluation``: the same as ``pixeldance eval``."""

import sys

from pixeldance.cli import app

if __name__ == "__main__":
    app(["eval", *sys.argv[1:]], prog_name="pixeldance")
