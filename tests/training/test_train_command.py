"""``pixeldance train``: results on stdout, the log on stderr, an exit code for every outcome."""

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pixeldance.cli import app
from pixeldance.errors import CheckpointError
from pixeldance.training import loop
from pixeldance.training.config import TrainConfig
from pixeldance.training.loop import TrainingStopped


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose run ends at once."""

    def trained(config: TrainConfig) -> Path:
        logging.getLogger("pixeldance.training.loop").info("resuming from step 3")
        return Path(config.output_dir) / "export"

    monkeypatch.setattr(loop, "train", trained)
    path = tmp_path / "config.yaml"
    path.write_text("{output_dir: runs/here, max_steps: 7}")
    return path


def test_it_prints_where_the_result_is(config: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(config)])
    assert (done.exit_code, done.stdout) == (0, "runs/here/export\n")
    assert done.stderr.endswith(" resuming from step 3\n")
    assert "warning" not in done.stderr


def test_it_prints_one_json_object(config: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(config), "--json"])
    expected = {"part": "transformer", "steps": 7, "export": "runs/here/export"}
    assert json.loads(done.stdout) == expected


def test_only_the_main_process_prints(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert CliRunner().invoke(app, ["train", str(config)]).stdout == ""


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (TrainingStopped("Stopped after step 3."), 143, "Stopped after step 3.\n"),
        (CheckpointError("step-3 is damaged."), 1, "error: step-3 is damaged.\n"),
    ],
)
def test_how_it_ends_is_told(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    exit_code: int,
    message: str,
) -> None:
    def failing(config: TrainConfig) -> Path:
        raise error

    monkeypatch.setattr(loop, "train", failing)
    done = CliRunner().invoke(app, ["train", str(config)])
    assert (done.exit_code, done.stdout, done.stderr) == (exit_code, "", message)


def test_a_mistake_in_the_config_is_wrong_input(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_step: 3")
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 2
    assert done.stderr == "error: Unknown key 'max_step'. Did you mean 'max_steps'?\n"


def test_a_dry_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixeldance.training.dry_run.describe_run", lambda run, gpus: f"{gpus} GPU")
    monkeypatch.setattr("pixeldance.training.dry_run.run_facts", lambda run, gpus: {"gpus": gpus})
    path = tmp_path / "config.yaml"
    path.write_text("")
    told = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert (told.exit_code, told.stdout) == (0, "1 GPU\n")
    facts = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--num-gpus", "16", "--json"])
    assert json.loads(facts.stdout) == {"gpus": 16}
