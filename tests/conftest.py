"""Set-up of all tests; never imports the package, so that shape checks can hook its import."""

import os

# One thread: same sums in the same order on every machine, and no fight over busy cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests never reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# The user's own settings must not change what is tested.
os.environ.pop("PIXELDANCE_WEIGHTS", None)
