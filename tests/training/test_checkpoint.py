"""Checkpoints are whole or not there, whenever the process that writes them is killed."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import start_together
from tiny_training import forget_accelerate
from torch import Tensor

from pixeldance.errors import CheckpointError
from pixeldance.training.checkpoint import COMPLETE, Checkpoints
from pixeldance.training.distributed import Processes, start_processes


@pytest.fixture(autouse=True)
def processes() -> Processes:
    forget_accelerate()
    return start_processes("no")


def checkpoints_in(
    folder: Path, processes: Processes, *, keep: int = 2, **fingerprint: object
) -> Checkpoints:
    return Checkpoints(
        folder, keep=keep, fingerprint={"part": "transformer"} | fingerprint, processes=processes
    )


def state(value: float) -> dict[str, dict[str, Tensor]]:
    return {"model": {"a": torch.full((3, 4), value), "b": torch.full((), value)}}


def loaded(checkpoints: Checkpoints, processes: Processes) -> tuple[int, float]:
    """Step and value of the newest checkpoint, all of whose tensors hold that value."""
    found = checkpoints.newest()
    assert found is not None
    assert found.sizes("model") == {"a": (3, 4), "b": ()}
    tensors = state(-1)
    found.load(tensors, processes)
    values = {float(x) for tensor in tensors["model"].values() for x in tensor.flatten()}
    assert len(values) == 1
    return found.step, values.pop()


def test_what_is_saved_is_what_was_there_when_save_was_called(
    tmp_path: Path, processes: Processes
) -> None:
    checkpoints, tensors = checkpoints_in(tmp_path, processes), state(7)
    checkpoints.save(3, tensors, {"skipped": 2})
    for tensor in tensors["model"].values():
        tensor.fill_(8)
    checkpoints.finish()
    assert loaded(checkpoints, processes) == (3, 7.0)
    found = checkpoints.newest()
    assert found is not None
    assert found.facts == {"skipped": 2}


def test_a_new_run_has_nothing_to_load(tmp_path: Path, processes: Processes) -> None:
    assert checkpoints_in(tmp_path / "absent", processes).newest() is None


def test_the_newest_few_are_kept(tmp_path: Path, processes: Processes) -> None:
    checkpoints = checkpoints_in(tmp_path, processes)
    for step in (2, 9, 10, 11):
        checkpoints.save(step, state(step), {})
    checkpoints.finish()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000010", "step-0000011"]
    assert loaded(checkpoints, processes) == (11, 11.0)


def saved_twice(folder: Path, processes: Processes) -> Checkpoints:
    checkpoints = checkpoints_in(folder, processes)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.finish()
    return checkpoints


def test_what_was_never_completed_is_skipped(
    tmp_path: Path, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved_twice(tmp_path, processes)
    (tmp_path / "step-0000002" / COMPLETE).unlink()
    (tmp_path / "step-0000003.tmp").mkdir()
    assert loaded(checkpoints, processes) == (1, 1.0)
    assert "skipping" in caplog.text
    assert f"removing {tmp_path / 'step-0000003.tmp'}" in caplog.text
    assert not (tmp_path / "step-0000003.tmp").exists()
    checkpoints.save(2, state(5), {})  # the step is taken again
    checkpoints.finish()
    assert loaded(checkpoints, processes) == (2, 5.0)


def test_a_run_does_not_start_again_beside_folders_it_cannot_read(
    tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "step-0001100").mkdir()
    with pytest.raises(CheckpointError, match=r"step-0001100 but no complete checkpoint"):
        checkpoints_in(tmp_path, processes).newest()


def cut_short(folder: Path) -> None:
    path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def cut_short_unnoticed(folder: Path) -> None:
    """As if the disk had lied about what it holds."""
    path = next(folder.glob("*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))


def spoil_index(folder: Path) -> None:
    path = folder / ".metadata"
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        cut_short_unnoticed,
        spoil_index,
        lambda folder: next(folder.glob("*.distcp")).unlink(),
        lambda folder: (folder / COMPLETE).write_text("{"),
        lambda folder: (folder / COMPLETE).write_text("{}"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, processes: Processes, damage: Callable[[Path], object]
) -> None:
    checkpoints = saved_twice(tmp_path, processes)
    damage(tmp_path / "step-0000002")
    with pytest.raises(CheckpointError, match=r"step-0000002 is damaged .*Delete the folder") as e:
        loaded(checkpoints, processes)
    assert "\n" not in str(e.value)


def test_another_format_is_refused(tmp_path: Path, processes: Processes) -> None:
    checkpoints = saved_twice(tmp_path, processes)
    path = tmp_path / "step-0000002" / COMPLETE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(CheckpointError, match=r"step-0000002 has format 9; this version reads 1"):
        checkpoints.newest()


def test_a_run_that_contradicts_the_checkpoint_is_refused(
    tmp_path: Path, processes: Processes
) -> None:
    saved_twice(tmp_path, processes)
    other = checkpoints_in(tmp_path, processes, part="refiner", channels=(8, 8, 8))
    message = r"part is 'refiner' here and 'transformer' there; channels is \[8, 8, 8\] here and"
    with pytest.raises(CheckpointError, match=message):
        other.newest()


def save_without_end(folder: Path) -> None:
    """Save step after step; note each that is known to be complete."""
    processes = start_processes("no")
    checkpoints = checkpoints_in(folder, processes)
    found = checkpoints.newest()
    step = 0 if found is None else found.step
    while True:
        step += 1
        checkpoints.save(step, state(step), {})
        checkpoints.finish()
        with (folder / "known").open("a") as stream:
            stream.write(f"{step}\n")


@pytest.mark.slow
def test_killing_it_at_any_moment_costs_no_complete_checkpoint(
    tmp_path: Path, processes: Processes
) -> None:
    rng, known = random.Random(0), tmp_path / "known"
    newest = 0
    for _ in range(5):
        (process,) = start_together(1, save_without_end, tmp_path)
        deadline = time.monotonic() + 60
        while not known.exists() or int(known.read_text().split()[-1]) <= newest:
            assert process.is_alive(), "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        step, value = loaded(checkpoints_in(tmp_path, processes), processes)
        assert step == value
        assert step >= int(known.read_text().split()[-1]) > newest
        newest = step
