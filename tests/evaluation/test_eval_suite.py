"""Suites: held-out clips by seed, and somebody's folder of videos."""

import os
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import SIZE, small_settings, small_world

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.suite import folder_suite, sticker_suite
from pixeldance.video import build_recipe, write_clip
from pixeldance.worlds.captions import describe


def moving_bar(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    for frame in range(num_frames):
        frames[frame, :, 2 * frame : 2 * frame + 8] = 220
    return frames


# ---- stickers


def test_clips_depend_on_their_seed_alone() -> None:
    world = small_world()
    suite = sticker_suite(small_settings(), world)
    assert [clip.seed for clip in suite.clips] == [0, 1, 2]
    frames = suite.clips[2].load()
    assert (frames.shape, frames.dtype) == ((9, 32, 48, 3), np.uint8)
    (third,) = sticker_suite(small_settings(num_clips=1, seed_offset=2), world).clips
    assert (third.key, third.prompt) == (suite.clips[2].key, suite.clips[2].prompt)
    np.testing.assert_array_equal(third.load(), frames)
    assert third.prompt == describe(world.sample_scene(2, aspect=1.5), 2)


def test_groups_say_what_is_shown() -> None:
    world = small_world()
    clip = sticker_suite(small_settings(), world).clips[0]
    shot = world.sample_scene(0, aspect=1.5).shots[0]
    assert clip.groups["camera"] == shot.camera.motion.split()[0]
    assert clip.groups["motion"] == shot.actors[0].actions[0].motion.split()[0]


def test_further_clips_are_others() -> None:
    suite = sticker_suite(small_settings(), small_world())
    assert len(suite.further) == 3
    assert not {clip.key for clip in suite.further} & {clip.key for clip in suite.clips}


# ---- a folder


def test_a_folder_gives_its_usable_clips_and_lists_the_others(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4", moving_bar(12), fps=12)
    (tmp_path / "good.txt").write_text("a bar  moves\nright", encoding="utf-8")
    write_clip(tmp_path / "short.mp4", moving_bar(8), fps=12)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "other.webm").touch()
    (tmp_path / "picture.png").touch()
    suite = folder_suite(small_settings(), tmp_path)
    (clip,) = suite.clips
    assert (clip.name, clip.prompt) == ("good.mp4", "a bar moves right")
    assert clip.load().shape == (9, *SIZE, 3)
    reasons = {each.name: each.reason for each in suite.skipped}
    assert list(reasons) == ["other.webm", "short.mp4", "text.mp4"]
    assert "Only MP4 and MOV" in reasons["other.webm"]
    assert "has 8 frames, 9 are needed" in reasons["short.mp4"]
    assert "is not an MP4, MOV or WebM video" in reasons["text.mp4"]
    assert str(tmp_path) not in " ".join(reasons.values())


def test_the_first_frames_are_taken_and_cropped_around_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((11, 32, 96, 3), np.uint8)
    wide[:9, :, 24:72] = 200
    write_clip(tmp_path / "wide.mp4", wide, fps=30, crf=1)
    frames = folder_suite(small_settings(), tmp_path).clips[0].load()
    assert frames.shape == (9, *SIZE, 3)
    assert frames[:, 4:-4, 4:-4].min() > 180


def test_the_prompt_of_a_recipe_wins(tmp_path: Path) -> None:
    frames = moving_bar(9)
    recipe = build_recipe(
        {"prompt": "from the recipe"},
        seed=7,
        frames=frames,
        fps=12,
        model={"name": "x", "sha256": "ab" * 32},
        versions={},
        timings={},
        pictures={},
    )
    write_clip(tmp_path / "clip.mp4", frames, fps=12, recipe=recipe)
    (tmp_path / "clip.txt").write_text("from the text")
    assert folder_suite(small_settings(), tmp_path).clips[0].prompt == "from the recipe"


def test_keys_follow_the_content_not_the_place(tmp_path: Path) -> None:
    write_clip(tmp_path / "b.mp4", moving_bar(9), fps=12)
    before = folder_suite(small_settings(), tmp_path).clips[0]
    write_clip(tmp_path / "a.mp4", moving_bar(9)[:, :, ::-1].copy(), fps=12)
    first, second = folder_suite(small_settings(), tmp_path).clips
    assert (second.key, second.seed) == (before.key, before.seed)
    assert first.key != second.key
    (tmp_path / "b.txt").write_text("another prompt")
    assert folder_suite(small_settings(), tmp_path).clips[1].key != before.key


def test_a_strange_file_name_stays_one_line_of_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\nb\xff.mp4")
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("the file system refuses such names")
    write_clip(tmp_path / "good.mp4", moving_bar(9), fps=12)
    (skipped,) = folder_suite(small_settings(), tmp_path).skipped
    assert skipped.name == r"a\nb\udcff.mp4"
    skipped.reason.encode("utf-8")


def test_a_prompt_that_is_no_text_is_a_reason(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", moving_bar(9), fps=12)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    suite = folder_suite(small_settings(), tmp_path)
    assert [clip.name for clip in suite.clips] == ["b.mp4"]
    assert "not UTF-8" in suite.skipped[0].reason


def test_no_usable_clip_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"1 looked at.*text\.mp4"):
        folder_suite(small_settings(), tmp_path)
    with pytest.raises(InputError, match="no folder"):
        folder_suite(small_settings(), tmp_path / "missing")
