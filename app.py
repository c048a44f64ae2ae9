"""Serve the page on this machine: ``python app.py``, the same as ``pixeldance serve``."""

import sys

from pixeldance.cli import app

if __name__ == "__main__":
    app(["serve", *sys.argv[1:]], prog_name="python app.py")
