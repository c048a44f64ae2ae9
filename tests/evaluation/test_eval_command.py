"""``pixeldance eval`` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import SmallModel, small_lpips, small_world
from typer.testing import CliRunner, Result

from pixeldance.cli import app
from pixeldance.video import write_clip

SMALL = ("--size", "48x32", "--num-frames", "9", "--num-clips", "2", "--no-fvd")
PEERS = ("--methods", "crossfade, hold-first")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pixeldance.evaluation.evaluate.load_lpips", small_lpips)
    monkeypatch.setattr("pixeldance.evaluation.evaluate.StickerWorld", lambda split: small_world())
    monkeypatch.setattr("pixeldance.api.load", lambda *args, **options: SmallModel())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments])


def test_tables_and_paths_are_all_of_stdout(tmp_path: Path) -> None:
    result = run(*SMALL, *PEERS)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("2 clips of 9 frames, 48x32 (stickers)")
    assert [line.split()[1] for line in lines[4:6]] == ["crossfade", "hold-first"]
    assert [Path(line).as_posix() for line in lines[-2:]] == [
        "pixeldance-eval/eval.json",
        "pixeldance-eval/eval.html",
    ]
    assert "6/6 done, 0:00:00 left" in result.stderr
    assert "warning: 2 clips are an indication" in result.stderr


def test_a_second_run_adds_to_the_folder_or_is_refused(tmp_path: Path) -> None:
    assert run(*SMALL, *PEERS).exit_code == 0
    again = run(*SMALL, *PEERS)
    assert (again.exit_code, "done" in again.stderr) == (0, False)
    other = run(*SMALL[2:], "--size", "32x48", *PEERS)
    assert (other.exit_code, other.stdout) == (2, "")
    assert 'sizes ["48x32"] then, ["32x48"] now' in other.stderr
    assert run(*SMALL[2:], "--size", "32x48", *PEERS, "--overwrite").exit_code == 0


def test_json_names_the_model_and_the_targets() -> None:
    result = run(*SMALL, "--methods", "ours,crossfade", "--sweep", "steps=1,2", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert {row["figure"] for row in printed["targets"] if row["met"] is not None} >= {
        "ratio/lpips/crossfade",
        "mean/seconds",
    }
    report = json.loads(Path(printed["report"]).read_text(encoding="utf-8"))
    assert report["model"]["sha256"] == SmallModel.sha256
    assert [point["value"] for point in report["sweeps"][0]["points"]] == [1, 2]


def test_a_folder_of_videos(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    write_clip(tmp_path / "clips" / "a.mp4", frames, fps=12)
    (tmp_path / "clips" / "b.mp4").write_text("no video")
    result = run("--suite", "clips", *SMALL, *PEERS)
    assert result.exit_code == 0, result.stderr
    assert "1 clips of 9 frames, 48x32 (clips)" in result.stdout
    html = Path("pixeldance-eval/eval.html").read_text(encoding="utf-8")
    assert "b.mp4" in html
    assert "is not an MP4, MOV or WebM video" in html


def test_ctrl_c_leaves_a_folder_to_go_on_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self, request, *, on_step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SmallModel, "generate", stop)
        result = run(*SMALL, "--methods", "crossfade,ours")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "is kept in pixeldance-eval: the same command goes on" in result.stderr
    result = run(*SMALL, "--methods", "crossfade,ours")
    assert result.exit_code == 0
    assert "4/4 done" in result.stderr  # of six, two were there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "48"], "WIDTHxHEIGHT"),
        (["--size", "48x32,50x32"], "width must be a multiple of 16"),
        (["--methods", "ours,film"], "must be some of ours, hold-first"),
        (["--methods", "crossfade,crossfade"], "each once"),
        (["--num-clips", "0"], "at least 1"),
        (["--sweep", "seed=1,2"], "one of steps, guidance, strength"),
        (["--sweep", "steps=2,x"], "needs numbers"),
        (["--sweep", "steps=2"], "at least two different"),
        (["--reference", "50"], "needs numbers"),
        (["--reference", "8,1"], "must differ"),
        (["--suite", "missing"], "no folder"),
    ],
)
def test_wrong_options_are_explained_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_module_is_the_same_command() -> None:
    module = [sys.executable, "-m", "pixeldance.evaluation", "--help"]
    shown = subprocess.run(module, capture_output=True, text=True, check=True).stdout
    command = CliRunner().invoke(app, ["eval", "--help"], prog_name="pixeldance").stdout
    assert shown.split() == command.split()
