"""The commands finish, sign, verify, compare and sheet: results, messages, exit codes, files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clip_helpers import make_recipe, moving_square
from PIL import Image
from typer.testing import CliRunner, Result

from pixeldance.cli import app
from pixeldance.finishing.finisher import Finisher
from pixeldance.video import frames_sha256, read_clip, read_recipe, write_clip

FRAMES = moving_square(5)


@pytest.fixture(autouse=True)
def _clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with one clip in it."""
    monkeypatch.chdir(tmp_path)
    write_clip("clip.mp4", FRAMES, fps=12, recipe=make_recipe(frames=FRAMES), sidecar=False)


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames in between that are those before them, in place of RIFE."""

    def load(*, fps_factor: int = 1, upscale: int = 1, device: str = "auto") -> Finisher:
        return Finisher(fps_factor=fps_factor, between=lambda first, second, time: first)

    monkeypatch.setattr("pixeldance.finishing.finisher.load_finisher", load)


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.usefixtures("_stand_in")
def test_finish_tells_the_cost_first_and_keeps_the_recipe() -> None:
    before = Path("clip.mp4").read_bytes()
    result = run("finish", "clip.mp4", "-o", "out.mp4", "--fps-factor", "2")
    assert result.stdout == "out.mp4\n"
    plan = result.stderr.splitlines()[0]
    assert plan.startswith("5 frames, 64 x 48, 12 fps -> 9 frames, 64 x 48, 24 fps; about a second")
    assert plan.endswith("GiB of memory")
    clip = read_clip("out.mp4")
    assert (len(clip.frames), clip.fps) == (9, 24)
    assert clip.recipe is not None
    assert clip.recipe["frames"] == make_recipe(frames=FRAMES)["frames"]
    (step,) = clip.recipe["finishing"]
    assert (step["fps_factor"], step["upscale"], step["format"]) == (2, 1, "mp4")
    assert step["source_sha256"] == frames_sha256(read_clip("clip.mp4").frames)
    assert "finished, not as generated" in run("info", "out.mp4").stdout
    assert Path("clip.mp4").read_bytes() == before


@pytest.mark.usefixtures("_stand_in")
def test_a_dry_run_writes_nothing() -> None:
    result = run("finish", "clip.mp4", "-o", "out.mp4", "--fps-factor", "4", "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert (found["path"], found["num_frames"], found["fps"]) == (None, 17, "48")
    assert found["estimated_memory_bytes"] > 0
    assert files() == ["clip.mp4"]


@pytest.mark.parametrize("output", ["out.gif", "out.webp", "out.webm", "out.mov"])
def test_another_form_needs_no_network(output: str) -> None:
    run("finish", "clip.mp4", "-o", output)
    assert read_recipe(output)["finishing"][0]["format"] in {"gif", "webp", "webm", "prores"}
    assert files() == ["clip.mp4", output]


def test_a_folder_of_frames() -> None:
    run("finish", "clip.mp4", "-o", "frames", "--format", "png")
    with Image.open("frames/frame-0004.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), read_clip("clip.mp4").frames[4])


def test_a_foreign_clip_is_finished_without_a_recipe() -> None:
    write_clip("foreign.mp4", FRAMES, fps=12)
    assert "holds no recipe of a clip" in run("finish", "foreign.mp4", "-o", "out.webm").stderr
    assert read_clip("out.webm").recipe is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "out.mp4"), "nothing to do"),
        (("-o", "clip.mp4", "--fps-factor", "2", "--overwrite"), "the clip itself"),
        (("-o", "out.mp4", "--fps-factor", "3"), "by 2 or 4, got 3"),
        (("-o", "out.gif", "--fps-factor", "8"), "by 2 or 4, got 8"),
        (("-o", "out.mov", "--format", "gif"), "takes '.gif'"),
        (("-o", "out.webm", "--format", "av1"), "at least 64 pixels"),
        (("-o", "missing/out.gif"), "does not exist"),
        (("-o", "out.mp4", "--upscale", "2", "--device", "cuda:99"), "cannot be used here"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    options: tuple[str, ...], message: str
) -> None:
    result = run("finish", "clip.mp4", *options, exit_code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert files() == ["clip.mp4"]


def test_a_gif_of_a_fast_clip_is_refused_before_the_network_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_clip("fast.mp4", FRAMES, fps=30)
    never: Callable[..., None] = lambda **_: pytest.fail("loaded")  # noqa: E731
    monkeypatch.setattr("pixeldance.finishing.finisher.load_finisher", never)
    result = run("finish", "fast.mp4", "-o", "a.gif", "--fps-factor", "2", exit_code=2)
    assert "at most 50 frames per second" in result.stderr


def test_equal_clips_compare_as_equal() -> None:
    result = run("compare", "clip.mp4", "clip.mp4", "-o", "side.mp4", "--json")
    found = json.loads(result.stdout)
    assert found["mean"]["psnr"] == 100
    assert found["mean"]["ssim"] == pytest.approx(1)
    assert found["per_frame"]["psnr"] == [100] * 5
    side = read_clip("side.mp4").frames
    assert side.shape == (5, 176, 592, 3)  # three panels of 3 x (48 x 64), gaps, two lines
    assert np.abs(side[:, 20:156, 8:192].astype(int) - side[:, 20:156, 204:388]).mean() < 1
    assert side[:, 20:156, 400:580].max() < 10  # no difference


def test_clips_that_differ_are_converted_only_if_asked() -> None:
    large = FRAMES.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    write_clip("large.mp4", large, fps=24)
    result = run("compare", "clip.mp4", "large.mp4", exit_code=2)
    assert "different frames per second, 12 and 24" in result.stderr
    assert "--convert" in result.stderr
    result = run("compare", "clip.mp4", "large.mp4", "--convert")
    assert "from 24 to 12 frames per second" in result.stderr
    assert "from 128 x 96 to 64 x 48 pixels" in result.stderr
    assert "cut to" not in result.stderr
    assert float(result.stdout.split()[1]) > 30  # PSNR


def test_a_sheet_shows_the_frames() -> None:
    assert run("sheet", "clip.mp4", "-o", "sheet.png", "--columns", "5").stdout == "sheet.png\n"
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 5 * (64 + 4) + 4
    assert "already exists" in run("sheet", "clip.mp4", "-o", "sheet.png", exit_code=2).stderr


def test_sign_and_verify(tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    from certificates import write_certificate

    write_certificate(tmp_path)
    assert run("verify", "clip.mp4", exit_code=1).stdout == "not signed\n"
    keys = ("--certificate", "chain.pem", "--key", "key.pem")
    assert run("sign", "clip.mp4", "-o", "signed.mp4", *keys).stdout == "signed.mp4\n"
    result = run("verify", "signed.mp4", "--json")
    found = json.loads(result.stdout)
    assert (found["signed"], found["state"]) == (True, "Valid")
    assert "WebM" in run("sign", "clip.webm", "-o", "b.webm", *keys, exit_code=2).stderr
