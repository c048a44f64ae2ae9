"""Set-up of all tests; never imports the package, so that shape checks can hook its import."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# One thread: same sums in the same order on every machine, and no fight over busy cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests never reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# The user's own settings must not change what is tested.
os.environ.pop("PIXELDANCE_WEIGHTS", None)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium; skips the tests where there is none."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
