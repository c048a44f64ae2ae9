"""Serve the page on this machine: ``python app.py``. What it writes is gone when it ends."""

import os
import tempfile

with tempfile.TemporaryDirectory(prefix="pixeldance-") as folder:
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_TEMP_DIR"] = folder

    import pixeldance
    from pixeldance.server import build_app, serve

    serve(build_app(lambda: pixeldance.load()))
