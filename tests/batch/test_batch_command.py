"""The command: what it prints, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import CountingModel, write_manifest
from typer.testing import CliRunner, Result

from pixeldance.cli import app


@pytest.fixture
def command(
    tmp_path: Path, tiny_folder: Path, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr("pixeldance.cli.batch.load_model", lambda name, **options: model(options))
    out = str(tmp_path / "out")

    def invoke(*options: str) -> Result:
        manifest = str(tmp_path / "jobs.jsonl")
        fixed = ["--output-dir", out, "--model", str(tiny_folder)]
        return CliRunner().invoke(app, ["batch", manifest, *fixed, *options])

    return invoke


def test_paths_on_stdout_all_else_on_stderr(command: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"id": "b"}, {"id": "a"}])
    result = command()
    assert result.exit_code == 0
    assert result.stdout.split() == [str(tmp_path / "out" / f"{name}.mp4") for name in "ba"]
    assert "2/2 clips" in result.stderr
    assert "2 clips are there, 2 of them made by this process" in result.stderr


def test_failed_rows_are_named_and_the_exit_code_is_1(command: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"id": "a"}, {"id": "b", "prompt": "fail"}])
    result = command("--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["num_clips"], summary["num_made"], summary["num_failed"]) == (1, 1, 1)
    error = "RuntimeError: the model broke"
    assert summary["failed"] == [{"id": "b", "line": 2, "error": error}]
    assert f"failed: b (line 2): {error}" in result.stderr
    status = command("--status", "--json")
    assert status.exit_code == 0
    counts = {"done": 1, "failed": 1, "missing": 0, "conflict": 0, "invalid": 0}
    assert json.loads(status.stdout)["counts"] == counts
    assert f"b (line 2): {error}" in command("--status").stdout


def test_bad_rows_are_all_reported_with_their_lines(command: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"fps": 0}, {"id": "good"}, {"first_frame": "no.png"}])
    for options in ((), ("--dry-run",)):
        result = command(*options)
        assert result.exit_code == 2
        assert "jobs.jsonl:1: fps must be at least 1, got 0" in result.stderr
        assert "jobs.jsonl:3: Picture " in result.stderr
    assert not (tmp_path / "out").exists()
    result = command("--skip-invalid")
    assert result.exit_code == 0
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 2


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    command: Any, tmp_path: Path, model: CountingModel
) -> None:
    pair = {"first_frame": "1.png", "last_frame": "2.png"}
    write_manifest(tmp_path, [pair, {"num_frames": 9}])
    result = command("--dry-run")
    assert result.exit_code == 0
    assert "2, 1 with a first and a last frame" in result.stdout
    assert "1 of 48x32, 9 frames" in result.stdout
    assert "2 missing" in result.stdout
    assert "time " in result.stdout
    plan = json.loads(command("--dry-run", "--json").stdout)
    assert (plan["num_clips"], plan["num_pairs"]) == (2, 1)
    assert model.prompts == []
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(command: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"id": "a", "num_frames": 9}, {"id": "b", "prompt": "stop"}])
    result = command()
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert (tmp_path / "out" / "a.json").exists()


def test_shards_of_a_job_array(command: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"id": str(i)} for i in range(4)])
    assert len(command("--shard", "1/2").stdout.split()) == 2
    assert len(command("--shard", "2/2").stdout.split()) == 2
    assert "4 done" in command("--status").stdout
    assert command("--shard", "0/2").exit_code == 2
