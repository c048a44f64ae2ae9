"""The commands story, loop and morph."""

import json
from pathlib import Path
from typing import Any

import pytest
from story_helpers import tiny_model
from tiny import picture, tiny_pipeline
from typer.testing import CliRunner, Result

from pixeldance.api import Model
from pixeldance.cli import app
from pixeldance.models.loading import weights_sha256
from pixeldance.stories import ClipCache
from pixeldance.video import read_clip

STORY = """
model: tiny
width: 48
height: 32
num_inference_steps: 1
clip_frames: 13
shots:
- prompt: a red fox
  first_frame: a.png
  num_frames: 5
- name: jump
  num_frames: 4
"""
SMALL = ("--model", "tiny", "--height", "32", "--width", "48", "--steps", "1", "--duration", "0.7")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_pipeline().save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(autouse=True)
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> list[str]:
    """A folder with a story; the names of the models that are loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(weights))
    Path("story.yaml").write_text(STORY)
    for number, name in enumerate("abc"):
        picture(number).save(f"{name}.png")
    names: list[str] = []

    def load(name: str, **options: object) -> Model:
        names.append(name)
        model = tiny_model()
        return Model(name=name, pipeline=model.pipeline, sha256=weights_sha256(weights / "tiny"))

    monkeypatch.setattr("pixeldance.api.load", load)
    return names


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_dry_run_prints_the_plan_and_makes_nothing(loads: list[str]) -> None:
    done = run("story", "story.yaml", "-o", "film.mp4", "--dry-run")
    assert done.exit_code == 0
    first, second, whole = done.stdout.splitlines()
    assert "cut" in first
    assert "shot-1  1 of 1 clips to make" in first
    assert "continue  jump  1 of 1 clips to make" in second
    assert "9 frames, 48x32 pixels" in whole
    shots = json.loads(run("story", "story.yaml", "--dry-run", "--json").stdout)["plan"]["shots"]
    assert [(shot["name"], shot["start"], shot["num_made"]) for shot in shots] == [
        ("shot-1", 0, 0),
        ("jump", 5, 0),
    ]
    assert not loads
    assert not Path("film.clips").exists()


def test_a_film_is_made_once_and_a_shot_again(loads: list[str]) -> None:
    done = run("story", "story.yaml", "-o", "film.mp4")
    assert (done.exit_code, done.stdout) == (0, "film.mp4\n")
    assert "jump, clip 1 of 1 (2 of 2 to make)" in done.stderr
    assert len(read_clip("film.mp4").frames) == 9
    again = run("story", "film.json", "-o", "again.mp4", "--clips", "film.clips", "--json")
    recorded = json.loads(Path("film.json").read_text())["film"]["sha256"]
    assert json.loads(again.stdout)["film"]["sha256"] == recorded
    assert loads == ["tiny"]
    redone = run("story", "story.yaml", "-o", "film.mp4", "--redo", "jump", "--overwrite")
    assert redone.exit_code == 0
    assert "jump: seed " in redone.stderr
    assert "jump, clip 1 of 1 (1 of 1 to make)" in redone.stderr


def test_a_stopped_film_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second clip keeps the first."""
    keep = ClipCache.keep

    def stop_after(self: ClipCache, *arguments: Any, **options: Any) -> None:
        keep(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ClipCache, "keep", stop_after)
        done = run("story", "story.yaml", "-o", "film.mp4")
    assert done.exit_code == 130
    assert "Finished clips are in film.clips" in done.stderr
    assert not Path("film.mp4").exists()
    assert "(1 of 1 to make)" in run("story", "story.yaml", "-o", "film.mp4").stderr


def test_what_is_wrong_is_found_before_the_model_is_loaded(loads: list[str]) -> None:
    Path("film.mp4").touch()
    for arguments, message in (
        (("story", "story.yaml", "-o", "film.mp4"), "'film.mp4' already exists"),
        (("story", "none.yaml"), "cannot be read"),
        (("story", "story.yaml", "--redo", "x"), "There is no shot 'x'"),
        (("morph", "a.png", *SMALL), "needs at least 2 pictures, got 1"),
        (("loop", "none.png", *SMALL), "Picture 'none.png' does not exist"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
    assert not loads


def test_loop_says_how_much_moves_and_how_big_the_seam_is() -> None:
    done = run("loop", "a.png", "jumps", "-o", "l.mp4", *SMALL, "--strength", "0.5", "--json")
    film = json.loads(done.stdout)["film"]
    assert film["num_frames"] == 8
    assert 0 <= film["motion"] <= 1
    assert film["seam"] > 0
    assert json.loads(Path("l.json").read_text())["story"]["shots"][0]["last_frame_strength"] == 0.5


def test_morph_goes_through_all_pictures() -> None:
    done = run("morph", "a.png", "b.png", "c.png", "-o", "m.mp4", *SMALL)
    assert (done.exit_code, done.stdout) == (0, "m.mp4\n")
    assert len(read_clip("m.mp4").frames) == 17


def test_generate_takes_key_frames_at_seconds() -> None:
    """The frame nearest to it; two that fall on one frame are an error."""
    small = ("--model", "tiny", "--height", "32", "--width", "48", "--steps", "1")
    at = ("--num-frames", "13", "--keyframe", "0.5s=a.png", "--keyframe", "12=b.png")
    assert run("generate", *small, *at, "--output", "c.mp4").exit_code == 0
    request = json.loads(Path("c.json").read_text())["request"]
    assert list(request["keyframes"]) == ["6", "12"]
    twice = run("generate", *small, "--keyframe", "0.5s=a.png", "--keyframe", "6=b.png")
    assert "--keyframe gives frame 6 twice" in twice.stderr
