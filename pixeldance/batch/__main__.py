"""``python -m pixeldance.batch``: ``pixeldance batch``, also with ``accelerate launch -m``.

Several processes on CPUs need ``torchrun``: ``accelerate launch --cpu`` starts one whatever it is
told.
"""

import sys

from pixeldance.cli import app

if __name__ == "__main__":
    app(["batch", *sys.argv[1:]], prog_name="pixeldance")
