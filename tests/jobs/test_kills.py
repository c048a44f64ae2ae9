"""Processes are killed at any time: no job is lost or done twice, what is finished plays."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixeldance.jobs import JobService, JobState, JobStore, WorkerProcess
from pixeldance.jobs.locks import WorkerLock
from pixeldance.pictures import load_picture
from pixeldance.video import read_clip, read_recipe

SMALL = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 3}
TIMEOUT_S = 120.0  # only a hang reaches it
FAKE_WORKER = [sys.executable, str(Path(__file__).with_name("fake_model.py"))]

ADDER = """
import sys
from pixeldance.jobs import JobService, JobStore
with JobService(JobStore(sys.argv[1])) as service:
    for seed in range(10_000):
        print(service.add({"prompt": "x", "seed": seed}).id, flush=True)
"""

SERVER = """
import sys, time
from pixeldance.jobs import WorkerProcess
with WorkerProcess(sys.argv[1], command=sys.argv[2:]) as process:
    while process.status.pid is None:
        time.sleep(0.01)
    print(process.status.pid, flush=True)
    time.sleep(600)
"""


def until(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_met():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@contextmanager
def started_worker(folder: Path, seconds_per_step: float) -> Iterator[subprocess.Popen[bytes]]:
    command = [*FAKE_WORKER, str(folder), str(seconds_per_step)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_growth(log: Path) -> None:
    size = log.stat().st_size if log.exists() else 0
    until(lambda: log.exists() and log.stat().st_size > size)


def is_free(folder: Path) -> bool:
    with WorkerLock(folder / "worker.lock") as lock:
        return lock.try_acquire()


def kill_workers(folder: Path, *, num_kills: int, num_jobs: int) -> None:
    """Kill one worker after the other, each at another time, under a queue that is kept full."""
    draw = random.Random(num_kills)
    log = folder / "starts.log"
    seed = 0
    with JobService(JobStore(folder)) as service:
        for _ in range(num_kills):
            while service.counts()["queued"] < num_jobs:
                service.add({**SMALL, "seed": seed})
                seed += 1
            with started_worker(folder, 0.01) as process:
                wait_for_growth(log)
                time.sleep(draw.uniform(0.0, 0.5))
                process.send_signal(signal.SIGKILL)
        with started_worker(folder, 0.0):
            until(lambda: service.counts()["queued"] + service.counts()["running"] == 0)
        starts = Counter(map(int, log.read_text().split()))
        counts = service.counts()
        assert counts["done"] + counts["interrupted"] == seed == service.list().total
        assert counts["done"] > num_kills // 2
        for job in service.list(limit=1000).jobs:
            # A start is logged a moment after it is recorded, so a kill may lose it.
            assert starts[job.seed] <= job.num_attempts <= 2
            if job.state is JobState.INTERRUPTED:
                assert (job.num_attempts, job.clips) == (2, ())
                continue
            files = service.clip_files(job.id)
            assert read_clip(files.clip).frames.shape == (5, 32, 48, 3)
            assert read_recipe(files.recipe)["seed"] == job.seed
            assert load_picture(files.last_frame).getpixel((0, 0)) == (job.seed % 200,) * 3
    with sqlite3.connect(folder / "jobs.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_killing_workers_loses_nothing(tmp_path: Path) -> None:
    kill_workers(tmp_path, num_kills=4, num_jobs=6)


@pytest.mark.slow
def test_killing_fifty_workers_loses_nothing(tmp_path: Path) -> None:
    kill_workers(tmp_path, num_kills=50, num_jobs=20)


def test_what_a_killed_server_acknowledged_is_there(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ADDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        acknowledged = [server.stdout.readline().strip() for _ in range(10)]
        server.kill()
        acknowledged += server.stdout.read().split()
    with JobService(JobStore(tmp_path)) as service:
        jobs = service.list(state="queued", limit=1000).jobs
    assert [job.id for job in jobs][: len(acknowledged)] == acknowledged
    assert len(jobs) - len(acknowledged) in (0, 1)  # written, and killed before it could say so


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path)) as service:
        poison = service.add({**SMALL, "prompt": "die"})
        job = service.add(SMALL)
        with WorkerProcess(tmp_path, command=[*FAKE_WORKER, str(tmp_path)]) as process:
            assert service.wait(job.id, timeout_s=TIMEOUT_S).state is JobState.DONE
            assert process.status.pid is not None
            assert (process.status.num_restarts, process.status.last_exit) == (2, 3)
        assert process.status.pid is None
        assert service.get(poison.id).state is JobState.INTERRUPTED
    assert is_free(tmp_path)


def test_a_worker_leaves_when_its_server_is_killed(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path)) as service:
        job = service.add({**SMALL, "num_inference_steps": 200})
        command = [sys.executable, "-c", SERVER, str(tmp_path), *FAKE_WORKER, str(tmp_path), "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            pid = int(server.stdout.readline())
            until(lambda: service.event(job.id).step > 0)
            server.kill()
        until(lambda: is_free(tmp_path))
        given_back = service.get(job.id)
        assert (given_back.state, given_back.num_attempts) == (JobState.QUEUED, 1)
        with pytest.raises(ProcessLookupError):
            until(lambda: os.kill(pid, 0) is not None)


def test_a_second_worker_waits_and_takes_over_at_once_after_a_kill(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path)) as service:
        jobs = [service.add({**SMALL, "num_inference_steps": 200}) for _ in range(2)]
        with started_worker(tmp_path, 0.05) as first:
            until(lambda: service.event(jobs[0].id).step > 0)
            with started_worker(tmp_path, 0.0):
                first.kill()
                for job in jobs:
                    done = service.wait(job.id, timeout_s=TIMEOUT_S)
                    assert done.state is JobState.DONE
                assert [service.get(job.id).num_attempts for job in jobs] == [2, 1]
