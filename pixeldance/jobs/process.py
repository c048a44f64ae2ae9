"""The worker as a process of its own, started and watched over by a server."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pixeldance.backbones.options import ModelOptions
from pixeldance.jobs.folders import DataFolder
from pixeldance.request import GenerationRequest

__all__ = ["WorkerProcess", "WorkerStatus"]

MAX_BACKOFF_S = 30.0
MAX_LOG_BYTES = 1024**2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """How the worker process is.

    Attributes:
        pid: Its process id; None while there is none.
        num_restarts: How often it died and was started again.
        last_exit: Exit code of the one before, negative for a signal; None if none died.
    """

    pid: int | None
    num_restarts: int
    last_exit: int | None


class WorkerProcess:
    """Keeps a worker process running. Use it as a context manager.

    A worker that dies is started again, ever more slowly if it cannot live. If this process dies,
    however, the worker leaves by itself.

    Args:
        folder: The data folder.
        options: How models are loaded.
        model: The model that their LoRAs are for, by the name that requests give it.
        command: Starts another worker, which options do not reach. Its standard input is a pipe
            that ends with this process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        options: ModelOptions | None = None,
        model: str = GenerationRequest.model_fields["model"].default,
        command: Sequence[str] | None = None,
    ) -> None:
        self._folder = DataFolder(folder)
        own = [sys.executable, "-m", "pixeldance.jobs", f"--data-dir={self._folder.path}"]
        own += [f"--model={model}", *(options or ModelOptions()).with_whole_paths().arguments()]
        self._command = list(command or own)
        self._is_closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_restarts = 0
        self._last_exit: int | None = None
        self._thread = threading.Thread(target=self._supervise, name="worker-process", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def status(self) -> WorkerStatus:
        """How the worker process is."""
        process = self._process
        is_alive = process is not None and process.poll() is None
        return WorkerStatus(
            pid=process.pid if process is not None and is_alive else None,
            num_restarts=self._num_restarts,
            last_exit=self._last_exit,
        )

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the worker: its job goes back to the queue after its step.

        Args:
            timeout_s: How long it may take; then it is killed, and recovered from like a crash.
        """
        self._is_closing.set()
        if self._thread.is_alive():
            self._ask_to_leave()
            self._thread.join(timeout_s)
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _ask_to_leave(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def _supervise(self) -> None:
        backoff_s = 0.0
        while not self._is_closing.is_set():
            started = time.monotonic()
            code = self._run_once()
            if self._is_closing.is_set():
                return
            self._last_exit = code
            self._num_restarts += 1
            has_lived = time.monotonic() - started > MAX_BACKOFF_S
            backoff_s = 0.0 if has_lived else min(MAX_BACKOFF_S, 2 * backoff_s + 0.5)
            logger.warning(
                "The worker ended (exit code %s, see '%s'); it is started again.",
                code,
                self._folder.worker_log,
            )
            self._is_closing.wait(backoff_s)

    def _run_once(self) -> int:
        with _opened_log(self._folder.worker_log) as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the server's terminal is the server's to deal with.
                start_new_session=True,
            )
        self._process = process
        if self._is_closing.is_set():  # it was not there to be asked
            self._ask_to_leave()
        code = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        return code


def _opened_log(path: Path) -> BinaryIO:
    """The log, to be added to; begun anew when it has grown large."""
    is_large = path.is_file() and path.stat().st_size > MAX_LOG_BYTES
    return path.open("wb" if is_large else "ab")
