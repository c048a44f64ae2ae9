"""Two processes, over gloo on CPUs: the same training, whoever shares it in whatever way."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_together, start_together
from safetensors.torch import load_file
from tiny_training import (
    BUCKETS,
    forget_accelerate,
    make_codec,
    make_config,
    saved_tensors,
    use_made_up_world,
)
from torch import Tensor

from pixeldance.errors import ConfigError
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training import export, loop
from pixeldance.training.checkpoint import COMPLETE
from pixeldance.training.config import BucketConfig, TrainConfig
from pixeldance.training.data import plan_step, training_batches
from pixeldance.training.distributed import start_processes
from pixeldance.training.loop import TrainingStopped, train

SINGLE = BucketConfig(height=48, width=48, num_frames=9, batch_size=1)
STEPS, MIDDLE = 5, 2


def config_in(folder: Path, name: str, **changes: object) -> TrainConfig:
    """Batches of 3, 2 and 1 clips: two processes share them evenly, unevenly and not at all."""
    values: dict[str, Any] = {
        "output_dir": str(folder / name),
        "buckets": (*BUCKETS, SINGLE),
        "mixed_precision": "no",
        "max_steps": STEPS,
        "log_steps": 1,
        "seed": 4,
        "checkpoint_minutes": None,
        "keep_checkpoints": 9,
    }
    return make_config(folder, **(values | changes))


def train_stopping(config: TrainConfig, *, in_process: int) -> None:
    """One of the processes is told to stop during step MIDDLE; all must, after the same step."""

    def signalled(*arguments: Any, **options: Any) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(training_batches(*arguments, **options), 1):
            if step == MIDDLE and options["rank"] == in_process:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_batches", signalled)
        with pytest.raises(TrainingStopped, match=f"after step {MIDDLE}"):
            train(config)


def train_by_two(folder: Path) -> None:
    """All that two processes do in this file: starting them is what takes long."""
    for strategy in ("ddp", "fsdp2"):
        train(config_in(folder, strategy, strategy=strategy, gradient_accumulation_steps=2))
        resumed = config_in(
            folder, f"{strategy}-resumed", strategy=strategy, gradient_accumulation_steps=2
        )
        train_stopping(resumed, in_process=1)
        _copied_by_one(folder, f"{strategy}-resumed", f"{strategy}-stopped")
        train(resumed)
    train(config_in(folder, "from-one", strategy="ddp"))
    _copied_by_one(folder, "ddp-stopped", "from-ddp")
    train(config_in(folder, "from-ddp", strategy="fsdp2"))
    train(config_in(folder, "by-two", part="refiner", max_steps=1))
    export._MAX_FILE_BYTES = 10_000
    # Compiling takes minutes; that the blocks are found takes nothing.
    torch.nn.Module.compile = lambda module, **options: None  # type: ignore[method-assign]
    in_files = {"compile_blocks": True, "gradient_checkpointing": True, "max_steps": 1}
    train(config_in(folder, "fsdp2-in-files", strategy="fsdp2", **in_files))


def _copied_by_one(folder: Path, run: str, copy: str) -> None:
    if dist.get_rank() == 0:
        shutil.copytree(folder / run, folder / copy)
    dist.barrier()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_codec(folder / "codec")
    forget_accelerate()
    with pytest.MonkeyPatch.context() as patch:
        use_made_up_world(patch)
        train(config_in(folder, "one"))
        stopped = config_in(folder, "one-stopped")
        train_stopping(stopped, in_process=0)
        shutil.copytree(stopped.output_dir, folder / "from-one")
        train(config_in(folder, "by-one", part="refiner", max_steps=1))
        assert run_together(2, train_by_two, folder) == [0, 0]
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, reference: Path, *, first: int = 1) -> None:
    """Losses and gradients of the whole batches agree; later ones show that weights do, too.

    Muon orthogonalises in bfloat16: where sums are taken in another order, it rounds otherwise.
    """
    expected = {row["step"]: row for row in rows(reference)}
    made = {row["step"]: row for row in rows(run)}
    assert sorted(made) == sorted(expected)
    for step in range(first, len(expected) + 1):
        tolerance = 1e-5 if step == first else 0.02
        assert made[step]["clips"] == expected[step]["clips"]
        for name in ("loss", "gradient_norm"):
            assert made[step][name] == pytest.approx(expected[step][name], rel=tolerance)


def test_the_runs_have_batches_that_two_cannot_share_evenly(tmp_path: Path) -> None:
    config = config_in(tmp_path, "")
    sizes = [plan_step(config, step).bucket.batch_size for step in range(STEPS)]
    assert set(sizes) == {1, 2, 3}
    assert {1, 3} & set(sizes[MIDDLE:])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(runs: Path, strategy: str) -> None:
    assert_same_training(runs / strategy, runs / "one")


@pytest.mark.slow
def test_two_processes_train_the_refiner_as_one(runs: Path) -> None:
    assert_same_training(runs / "by-two", runs / "by-one")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_stopping_and_resuming_changes_nothing(runs: Path, strategy: str) -> None:
    for group in ("model", "ema", "optimizer"):
        straight = saved_tensors(runs / strategy, STEPS, group)
        resumed = saved_tensors(runs / f"{strategy}-resumed", STEPS, group)
        assert straight.keys() == resumed.keys()
        assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(runs: Path) -> None:
    config = config_in(runs, "killed", checkpoint_steps=1)
    rng = random.Random(0)
    for step in range(1, STEPS - 1):
        (process,) = start_together(1, train, config)
        wait_for(Path(config.output_dir) / f"step-{step:07d}" / COMPLETE, process)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
    assert run_together(1, train, config) == [0]
    for group in ("model", "ema", "optimizer"):
        straight = saved_tensors(runs / "one", STEPS, group)
        killed = saved_tensors(config.output_dir, STEPS, group)
        assert [name for name in straight if not torch.equal(straight[name], killed[name])] == []


def wait_for(path: Path, process: BaseProcess) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        if not process.is_alive():
            assert path.exists(), f"ended with {process.exitcode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_go_on_with_what_one_has_saved(runs: Path) -> None:
    assert_same_training(runs / "from-one", runs / "one", first=MIDDLE + 1)


@pytest.mark.slow
def test_one_goes_on_with_what_two_have_saved(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_made_up_world(monkeypatch)
    forget_accelerate()
    config = config_in(tmp_path, "one", codec=str(runs / "codec"))
    shutil.copytree(runs / "fsdp2-stopped", config.output_dir)
    train(config)
    assert_same_training(Path(config.output_dir), runs / "fsdp2", first=MIDDLE + 1)


@pytest.mark.slow
def test_shards_go_on_with_what_copies_have_saved(runs: Path) -> None:
    assert_same_training(runs / "from-ddp", runs / "ddp", first=MIDDLE + 1)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ddp", "fsdp2"])
def test_the_export_is_the_averaged_weights(runs: Path, run: str) -> None:
    model = PixelDanceTransformer3DModel.from_pretrained(runs / run / "export")
    made = model.state_dict()
    ema = saved_tensors(runs / run, STEPS, "ema")
    assert made.keys() == ema.keys()
    assert all(torch.equal(made[name].bfloat16(), ema[name].bfloat16()) for name in ema)
    assert made["blocks.0.attn1.to_q.weight"].count_nonzero() > 0


@pytest.mark.slow
def test_a_large_export_is_several_files(runs: Path) -> None:
    folder = runs / "fsdp2-in-files" / "export"
    names = {path.name for path in folder.iterdir()}
    files = {name for name in names if name.endswith(".safetensors")}
    assert len(files) == 2
    assert names - files == {"config.json", "diffusion_pytorch_model.safetensors.index.json"}
    model = PixelDanceTransformer3DModel.from_pretrained(folder)
    ema = saved_tensors(runs / "fsdp2-in-files", 1, "ema")
    assert all(torch.equal(v.bfloat16(), ema[k].bfloat16()) for k, v in model.state_dict().items())
    held = [set(load_file(folder / name)) for name in files]
    assert sum(map(len, held)) == len(ema)


def test_processes_that_did_not_find_each_other_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_accelerate()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2 but RANK, LOCAL_RANK, .* is not set"):
        start_processes("no")
