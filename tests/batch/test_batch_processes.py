"""Several processes make the clips of one manifest; some of them are killed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import CountingModel, frames_sha256, write_manifest
from batch_processes import start, start_together

from pixeldance.batch import Shard, make_plan
from pixeldance.batch.runner import RunOptions, run_plan
from pixeldance.video import read_clip

TIMEOUT_S = 300.0  # only a hang reaches it


def until(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_met():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def make_rows(count: int) -> list[dict[str, Any]]:
    pictures = ({}, {"first_frame": "1.png"}, {"first_frame": "1.png", "last_frame": "2.png"})
    return [
        {"id": f"row-{i}", "prompt": f"row-{i}", "num_frames": (5, 9)[i % 2], **pictures[i % 3]}
        for i in range(count)
    ]


def test_frames_are_equal_whatever_the_split(
    tmp_path: Path, tiny_folder: Path, model: CountingModel
) -> None:
    manifest, log = write_manifest(tmp_path, make_rows(12)), tmp_path / "log"
    together = start_together(2, manifest, tmp_path / "two", tiny_folder, log=log)
    for process in together:
        process.join(TIMEOUT_S)
    assert [process.exitcode for process in together] == [0, 0]
    for number in (1, 2):
        part = make_plan(
            manifest, tmp_path / "shards", model=str(tiny_folder), shard=Shard(number, 2)
        )
        assert 0 < len(part.rows) < 12
        run_plan(part, RunOptions(), load_onto=model)
    two, shards = frames_sha256(tmp_path / "two"), frames_sha256(tmp_path / "shards")
    assert len(two) == 12
    assert two == shards
    begun = [line.split() for line in log.read_text().splitlines()]
    assert sorted(prompt for _, prompt in begun) == sorted(two)  # each once


@pytest.mark.slow
def test_killed_processes_lose_at_most_the_clips_in_flight(
    tmp_path: Path, tiny_folder: Path
) -> None:
    num_rows, num_kills = 40, 8
    manifest, log = write_manifest(tmp_path, make_rows(num_rows)), tmp_path / "log"
    log.touch()
    draw = random.Random(0)

    def start_one() -> Any:
        return start(manifest, tmp_path / "out", tiny_folder, log=log)

    running = [start_one(), start_one()]
    for _ in range(num_kills):
        size = log.stat().st_size
        until(lambda size=size: log.stat().st_size > size or not any(p.is_alive() for p in running))
        time.sleep(draw.uniform(0.0, 0.15))
        victim = running.pop(draw.randrange(2))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        running.append(start_one())
    for process in running:
        process.join(TIMEOUT_S)
    assert [process.exitcode for process in running] == [0, 0]
    begun = Counter(line.split()[1] for line in log.read_text().splitlines())
    assert len(begun) == num_rows
    assert num_rows < begun.total() <= num_rows + num_kills
    recorded = frames_sha256(tmp_path / "out")
    assert len(recorded) == num_rows
    for row_id in recorded:
        assert len(read_clip(tmp_path / "out" / f"{row_id}.mp4").frames) in (5, 9)
    undisturbed = start(manifest, tmp_path / "alone", tiny_folder, log=tmp_path / "other")
    undisturbed.join(TIMEOUT_S)
    assert frames_sha256(tmp_path / "alone") == recorded
    left = [path for path in (tmp_path / "out").rglob("*.partial") if path.is_file()]
    start_one().join(TIMEOUT_S)  # cleans up after those that were killed last
    assert [path for path in (tmp_path / "out").rglob("*.partial") if path.is_file()] == []
    assert len(left) <= num_kills
