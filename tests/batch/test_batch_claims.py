"""A row is made by one process at a time, whatever becomes of the processes."""

import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from pixeldance.batch import claims as claims_module
from pixeldance.batch.claims import Claims

HOLDER = """
import os, sys
from pathlib import Path
from pixeldance.batch.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.acquire("fox"), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Claims]:
    with Claims(tmp_path) as claims:
        yield claims


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Claims]:
    with Claims(tmp_path) as claims:
        yield claims


def stay_silent(folder: Path, name: str) -> Claims:
    """A claim of a process that gives no signs of life, on a machine that nobody can ask."""
    silent = Claims(folder, heartbeat_s=1e9)
    silent.__enter__()
    assert silent.acquire(name)
    (folder / "owners" / silent.owner).write_text('{"machine": "elsewhere", "pid": 1}')
    return silent


def test_only_one_gets_it_and_gives_it_back(one: Claims, two: Claims) -> None:
    assert one.acquire("fox")
    assert not two.acquire("fox")
    assert two.is_claimed("fox")
    assert two.acquire("fox.0")  # another name, however it is spelt
    one.release("fox")
    assert not two.is_claimed("fox")
    assert two.acquire("fox")
    assert not one.acquire("fox")


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    names = [f"row-{i}" for i in range(50)]
    everybody = [Claims(tmp_path).__enter__() for _ in range(8)]
    with ThreadPool(8) as pool:
        got = pool.map(lambda claims: {name for name in names if claims.acquire(name)}, everybody)
    assert sorted(name for part in got for name in part) == sorted(names)
    for claims in everybody:
        claims.__exit__()
    assert list((tmp_path / "claims").iterdir()) == list((tmp_path / "owners").iterdir()) == []


def test_claims_of_a_killed_process_are_taken_over_at_once(tmp_path: Path, one: Claims) -> None:
    done = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], capture_output=True)
    assert (done.stdout, done.returncode) == (b"True\n", -9)
    assert not one.is_claimed("fox")
    assert one.acquire("fox")
    assert one.is_mine("fox")


def test_far_away_an_owner_is_dead_when_it_has_been_silent_for_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    stay_silent(tmp_path, "fox")
    with Claims(tmp_path, lease_s=60.0) as watcher:
        assert not watcher.acquire("fox")
        now += 59.0
        assert not watcher.acquire("fox")
        now += 2.0
        assert watcher.acquire("fox")


def test_one_sign_of_life_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    silent = stay_silent(tmp_path, "fox")
    with Claims(tmp_path, lease_s=60.0) as watcher:
        assert not watcher.acquire("fox")
        now += 59.0
        (tmp_path / "owners" / silent.owner).touch()
        assert not watcher.acquire("fox")
        now += 59.0
        assert not watcher.acquire("fox")


def test_owners_show_that_they_live(tmp_path: Path) -> None:
    with Claims(tmp_path, heartbeat_s=0.01) as claims:
        path = tmp_path / "owners" / claims.owner
        first = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == first:
            pass
        path.unlink()  # somebody cleans up too much
        while not path.exists():
            pass


def test_who_was_taken_for_dead_learns_that_the_row_is_no_longer_its_own(
    tmp_path: Path, one: Claims, two: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    stalled = stay_silent(tmp_path, "fox")
    assert not one.acquire("fox")
    now += 1e6
    assert one.acquire("fox")
    assert not stalled.is_mine("fox")
    stalled.release("fox")  # takes nothing from who has it now
    assert one.is_mine("fox")
    assert not two.acquire("fox")
    one.release("fox")
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_without_a_name_in_it_is_watched_itself(
    tmp_path: Path, one: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    (tmp_path / "claims" / "fox.0").touch()  # killed between making it and writing to it
    assert not one.acquire("fox")
    now += 1e6
    assert one.acquire("fox")


def test_the_dead_are_buried_and_the_living_are_not(tmp_path: Path, one: Claims) -> None:
    subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], capture_output=True)
    assert len(list((tmp_path / "owners").iterdir())) == 2
    assert len(one.bury_dead_owners()) == 1
    assert [path.name for path in (tmp_path / "owners").iterdir()] == [one.owner]
