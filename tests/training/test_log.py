"""The log of a run: numbers known on paper, one process and two, resumed and interrupted."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import BUCKETS, make_codec, make_config
from torch import Tensor

from pixeldance.errors import ConfigError
from pixeldance.training.flops import training_flops
from pixeldance.training.log import RunLog, StepRecord

FIRST, SECOND = BUCKETS  # 3 clips of 27 tokens, 2 clips of 36


class Rank:
    """One process of several; the main one gathers last."""

    device = torch.device("cpu")

    def __init__(self, number: int = 0, sent: list[Tensor] | None = None) -> None:
        self.is_main_process = number == 0
        self.sent = [] if sent is None else sent

    def gather(self, tensor: Tensor) -> Tensor:
        if not self.is_main_process:
            self.sent.append(tensor)
            return tensor
        others = list(self.sent)
        self.sent.clear()
        return torch.cat([tensor, *others])


@pytest.fixture(autouse=True)
def _codec(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only when it is told to."""
    now = SimpleNamespace(seconds=100.0)
    stand_in = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr("pixeldance.training.log.time", stand_in)
    return now


def record(step: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "step": step,
        "bucket": FIRST,
        "losses": torch.tensor([1.0, 2.0, 3.0]),
        "sigmas": torch.tensor([0.1, 0.6, 0.7]),
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "wait_s": 0.25,
        "compute_s": 1.0,
        "checkpoint_s": 0.0,
    }
    return StepRecord(**(values | changes))


def open_log(tmp_path: Path, rank: Rank | None = None, start: int = 0, **changes: Any) -> RunLog:
    config = make_config(tmp_path, **({"log_steps": 2, "max_steps": 5} | changes))
    accelerator: Any = rank or Rank()
    return RunLog(tmp_path / "run", config, accelerator=accelerator, start_step=start)


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "run" / "log.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_a_line_says_what_the_steps_since_the_last_one_were(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    log = open_log(tmp_path, peak_tflops=1e-6)
    log.record(record(1))
    clock.seconds += 4
    second = {"losses": torch.tensor([5.0, 9.0]), "sigmas": torch.tensor([1.0, 0.0])}
    norm = torch.tensor(1.5)
    log.record(record(2, bucket=SECOND, gradient_norm=norm, checkpoint_s=0.5, **second))
    (row,) = lines(tmp_path)
    assert (row["step"], row["loss"], row["gradient_norm"]) == (2, 4.0, 1.0)
    assert row["loss_by_bucket"] == {"48x48x9": 2.0, "64x48x9": 7.0}
    assert row["loss_by_sigma"] == {
        "0-0.25": {"loss": 5.0, "count": 2},
        "0.25-0.5": {"loss": None, "count": 0},
        "0.5-0.75": {"loss": 2.5, "count": 2},
        "0.75-1": {"loss": 5.0, "count": 1},
    }
    assert (row["clips"], row["clips_per_s"]) == (5, 5 / 4)
    assert row["tokens_per_s"] == (3 * 27 + 2 * 36) / 4
    flops = 3 * training_flops(log.config, FIRST) + 2 * training_flops(log.config, SECOND)
    assert row["tflops_per_s"] == pytest.approx(flops / 4 / 1e12)
    assert row["mfu"] == pytest.approx(flops / 4 / 1e6)
    assert (row["wait_share"], row["checkpoint_s"]) == (0.5 / 4, 0.5)
    assert (row["compute_s"], row["slowest_rank"]) == ([2.0], {"rank": 0, "ratio": 1.0})
    assert row["remaining_s"] == 4 / 2 * 3
    assert (row["learning_rate"], row["skipped_steps"], row["peak_memory_gib"]) == (1e-3, 0, None)


def test_lines_come_every_few_steps_and_at_the_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    log = open_log(tmp_path)
    for step in range(1, 6):
        clock.seconds += 1
        log.record(record(step, losses=torch.full((3,), float(step))))
    log.close()
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [row["remaining_s"] for row in lines(tmp_path)] == [3, 1, 0]


def test_the_utilisation_of_an_unknown_device_is_not_made_up(tmp_path: Path) -> None:
    log = open_log(tmp_path, log_steps=1)
    log.record(record(1))
    assert lines(tmp_path)[0]["mfu"] is None
    assert lines(tmp_path)[0]["tflops_per_s"] > 0


def test_nothing_waits_for_the_device_between_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
            patch.setattr(Tensor, name, lambda *_: pytest.fail("read a tensor"))
        log.record(record(1, gradient_norm=torch.tensor(2.0)))
    log.record(record(2))
    assert lines(tmp_path)[0]["gradient_norm"] == 1.25


def test_means_weigh_samples_and_not_ranks(tmp_path: Path, clock: SimpleNamespace) -> None:
    main, other = Rank(), Rank(1)
    other.sent = main.sent
    logs = [open_log(tmp_path, rank, log_steps=1, peak_tflops=1.0) for rank in (main, other)]
    clock.seconds += 2
    few = {"losses": torch.tensor([8.0]), "sigmas": torch.tensor([0.1]), "compute_s": 3.0}
    logs[1].record(record(1, wait_s=1.0, checkpoint_s=0.7, **few))
    logs[0].record(record(1, losses=torch.tensor([2.0, 2.0]), sigmas=torch.tensor([0.1, 0.9])))
    (row,) = lines(tmp_path)
    assert (row["loss"], row["gradient_norm"]) == (4.0, 0.5)
    assert row["loss_by_sigma"]["0-0.25"] == {"loss": 5.0, "count": 2}
    assert row["clips"] == 3  # the batch of all ranks, not of each
    assert (row["wait_share"], row["checkpoint_s"]) == (0.5, 0.7)
    assert (row["compute_s"], row["slowest_rank"]) == ([1.0, 3.0], {"rank": 1, "ratio": 3.0})
    per_second = 3 * training_flops(logs[0].config, FIRST) / 2
    assert row["mfu"] == pytest.approx(per_second / 2e12)  # of two devices


def test_a_rank_without_samples_changes_no_mean(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.record(record(1))
    log.record(record(2, losses=torch.zeros(0), sigmas=torch.zeros(0)))
    assert lines(tmp_path)[0]["loss"] == 2.0


def test_a_part_without_noise_levels_has_no_losses_by_them(tmp_path: Path) -> None:
    log = open_log(tmp_path, log_steps=1, part="refiner")
    log.record(record(1, sigmas=None))
    (row,) = lines(tmp_path)
    assert row["loss"] == row["loss_by_bucket"]["48x48x9"] == 2.0
    assert {entry["count"] for entry in row["loss_by_sigma"].values()} == {0}


def slow_lines(tmp_path: Path, seconds: list[tuple[float, ...]]) -> None:
    """Lines of three ranks with these seconds of computing."""
    main = Rank()
    ranks = [main, Rank(1, main.sent), Rank(2, main.sent)]
    logs = [open_log(tmp_path, rank, log_steps=1, max_steps=99) for rank in ranks]
    for step, by_rank in enumerate(seconds, 1):
        for number in (1, 2, 0):
            logs[number].record(record(step, compute_s=by_rank[number]))


def test_a_rank_that_stays_slow_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow_lines(tmp_path, [(1.0, 1.0, 1.5)] * 5)
    assert [r.message[:20] for r in caplog.records if r.levelno == logging.WARNING] == [
        "rank 2 takes 1.50 ti"
    ]


@pytest.mark.parametrize(
    "seconds",
    [
        [(1.0, 1.0, 1.5), (1.0, 1.0, 1.1), (1.0, 1.0, 1.5), (1.0, 1.0, 1.5)],
        [(1.0, 1.0, 1.5), (1.0, 1.5, 1.0), (1.5, 1.0, 1.0), (1.0, 1.0, 1.5)],
        [(1.0, 1.0, 1.15)] * 4,
    ],
)
def test_passing_delays_are_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: list[tuple[float, ...]]
) -> None:
    slow_lines(tmp_path, seconds)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_skipped_steps_are_counted_and_spoil_no_mean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path)
    nan = torch.full((3,), torch.nan)
    log.record(record(1, losses=nan, gradient_norm=float("nan"), skipped=True))
    log.record(record(2))
    (row,) = lines(tmp_path)
    assert (row["loss"], row["gradient_norm"], row["skipped_steps"]) == (2.0, 0.5, 1)
    assert row["clips"] == 6
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_a_loss_that_is_not_a_number_is_null_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path)
    log.record(record(1, losses=torch.tensor([1.0, torch.nan, 1.0])))
    log.record(record(2, gradient_norm=float("inf")))
    (row,) = lines(tmp_path)
    assert row["loss"] is None
    assert row["gradient_norm"] is None
    assert "not a finite number" in caplog.text


def test_a_resumed_run_takes_out_the_lines_of_the_lost_stretch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    path.parent.mkdir()
    kept = ['{"step": 2, "loss": 1.25}', '{"step":4}']
    path.write_text("\n".join([*kept, '{"step": 6}', '{"step": 8, "lo']))
    log = open_log(tmp_path, start=5, max_steps=8)
    assert path.read_text().splitlines() == kept
    for step in (6, 7, 8):
        log.record(record(step))
    assert [row["step"] for row in lines(tmp_path)] == [2, 4, 6, 8]
    assert [entry.name for entry in path.parent.iterdir()] == ["log.jsonl"]


def test_only_the_main_process_touches_files(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 9}\n')
    log = open_log(tmp_path, Rank(1), log_steps=1)
    log.record(record(1))
    log.close()
    assert path.read_text() == '{"step": 9}\n'


def test_without_a_terminal_every_line_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: SimpleNamespace
) -> None:
    caplog.set_level(logging.INFO)
    log = open_log(tmp_path)
    log.record(record(1))
    clock.seconds += 3
    log.record(record(2))
    assert "step 2/5" in caplog.text
    assert "loss 2.0000" in caplog.text
    assert caplog.text.rstrip().endswith("4 s left")


def test_on_a_terminal_there_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = open_log(tmp_path, start=2)
    for step in (3, 4):
        log.record(record(step))
    log.close()
    shown = capsys.readouterr().err
    assert "4/5" in shown
    assert "loss 2.0000" in shown


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    log = open_log(tmp_path, log_steps=1, tensorboard=True)
    log.record(record(1))
    log.close()
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in (b"loss_by_bucket/48x48x9", b"loss_by_sigma/0-0.25/loss", b"compute_s/0"):
        assert name in content


def test_a_missing_tensorboard_is_named_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for rank in (Rank(), Rank(1)):
        with pytest.raises(ConfigError, match="pip install tensorboard"):
            open_log(tmp_path, rank, tensorboard=True)
