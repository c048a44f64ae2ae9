"""The server as a process: what it listens at, what it leaves behind, how it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_helpers import leftovers

from pixeldance.errors import PixelDanceError
from pixeldance.jobs import JobService, JobStore
from pixeldance.server import launch
from pixeldance.server.launch import DEFAULT_PORT, listening_socket

SERVE = [sys.executable, "-m", "pixeldance", "serve", "--no-page", "--port", "0"]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [*SERVE, "--data-dir", str(folder), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "it ended"
        yield process, address
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    return process.wait(30)


def worker_is_free(folder: Path) -> bool:
    """Whether no worker is left: its lock ends with it."""
    from pixeldance.jobs.locks import WorkerLock

    with WorkerLock(folder / "worker.lock") as lock:
        return lock.try_acquire()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_server_ends_cleanly_and_keeps_what_waits(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as http:
            # Paused, so that the worker leaves it alone.
            with JobService(JobStore(tmp_path)) as service:
                video_id = service.add({"prompt": "a"}).id
                service.pause(video_id)
            assert len(leftovers(tmp_path)) == 1
            with http.stream("GET", f"/v1/videos/{video_id}/events") as stream:
                lines = stream.iter_lines()
                assert next(lines) == "retry: 2000"
                assert ended(process, signal.SIGTERM) == 0  # an open stream does not hold it up
    assert leftovers(tmp_path) == []
    assert worker_is_free(tmp_path)
    with JobService(JobStore(tmp_path)) as service:
        assert service.get(video_id).state == "queued"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_it_and_the_next_one_sweeps_up_after_one_that_was_killed(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as (process, _):
        ended(process, signal.SIGKILL)
    (left,) = (tmp_path / "tmp").glob("server-*")
    old = time.time() - 3600
    os.utime(left, (old, old))
    with serving(tmp_path) as (process, _):
        assert not left.exists()
        assert len(leftovers(tmp_path)) == 1
        assert ended(process, signal.SIGINT) == 0
    assert leftovers(tmp_path) == []


def test_nothing_outlives_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    before = dict(os.environ), Path.cwd(), tempfile.gettempdir()
    with launch._scratch(tmp_path / "tmp"):
        (name,) = leftovers(tmp_path)
        folder = tmp_path / "tmp" / name
        assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert Path.cwd().is_relative_to(folder)
        assert list(Path.cwd().iterdir()) == []
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).is_relative_to(folder)
        # One that is in use is never swept.
        os.utime(folder, (0, 0))
        launch._sweep(tmp_path / "tmp")
        assert folder.is_dir()
    assert leftovers(tmp_path) == []
    assert before == (dict(os.environ), Path.cwd(), tempfile.gettempdir())


def test_ports_are_looked_for_and_taken_ones_refused() -> None:
    with listening_socket("127.0.0.1", None) as one:
        first = one.getsockname()[1]
        assert first >= DEFAULT_PORT
        with listening_socket("127.0.0.1", None) as two:
            assert two.getsockname()[1] > first
        with pytest.raises(PixelDanceError, match=rf"port {first} .*Choose another with --port"):
            listening_socket("127.0.0.1", first)


def test_only_loopback_is_listened_at() -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with pytest.raises(PixelDanceError, match="no address"):
        listening_socket("nowhere.invalid", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PixelDanceError, match="cannot listen at"):
        listening_socket("192.0.2.1", 0)  # RFC 5737: nobody has it


def test_importing_the_server_changes_and_loads_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import pixeldance.server.launch;"
        "assert dict(os.environ) == before;"
        "print(sorted({'gradio', 'torch', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
