"""Exports: what other programs read out of them."""

import io
import json
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_helpers import make_recipe, moving_square, noise_picture
from PIL import Image

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video import export_clip, read_clip, read_recipe


def frames_of(num_frames: int = 6) -> np.ndarray:
    """A square moving over a smooth background."""
    frames = np.zeros((num_frames, 32, 48, 3), np.uint8)
    frames[..., 0] = np.linspace(20, 200, 48, dtype=np.uint8)
    for i in range(num_frames):
        frames[i, 8:24, 4 * i : 4 * i + 12] = (200, 30, 30)
    return frames


def test_a_zip_holds_every_frame_without_loss(tmp_path: Path) -> None:
    frames = frames_of(3)
    recipe = make_recipe(frames=frames)
    with zipfile.ZipFile(export_clip(tmp_path / "a.zip", frames, fps=12, recipe=recipe)) as archive:
        assert archive.namelist() == [f"frame-000{i}.png" for i in range(3)] + ["clip.json"]
        for i in range(3):
            with Image.open(io.BytesIO(archive.read(f"frame-000{i}.png"))) as picture:
                assert np.array_equal(np.asarray(picture), frames[i])
        assert json.loads(archive.read("clip.json")) == recipe


def test_a_webm_is_tagged_vp9_with_all_frames(tmp_path: Path) -> None:
    frames = frames_of()
    recipe = make_recipe(frames=frames)
    path = export_clip(tmp_path / "a.webm", frames, fps=Fraction(12), recipe=recipe)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) in {("vp9", 12), ("libvpx-vp9", 12)}
        assert json.loads(container.metadata["COMMENT"])["frames"] == recipe["frames"]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert int(stream.codec_context.colorspace) == 1  # BT.709
    assert len(decoded) == 6
    assert np.abs(np.stack(decoded)[:, 12:20, 44:].astype(int) - frames[:, 12:20, 44:]).mean() < 8


def test_a_gif_plays_at_the_right_pace_and_in_the_right_colours(tmp_path: Path) -> None:
    frames = frames_of()
    with Image.open(export_clip(tmp_path / "a.gif", frames, fps=12)) as gif:
        assert gif.n_frames == 6
        assert gif.info["loop"] == 0
        starts = []
        for i in range(6):
            gif.seek(i)
            starts.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown[12:20, 4 * i + 2 : 4 * i + 10] - (200, 30, 30)).max() <= 12
    assert sum(starts[:5]) == pytest.approx(5000 / 12, abs=10)


def test_a_gif_does_not_play_faster_than_browsers_show_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at most 50 .* 60"):
        export_clip(tmp_path / "a.gif", frames_of(), fps=60)
    assert not list(tmp_path.iterdir())


def test_a_webp_plays_at_the_right_pace_and_in_the_right_colours(tmp_path: Path) -> None:
    frames = frames_of()
    with Image.open(export_clip(tmp_path / "a.webp", frames, fps=12)) as picture:
        durations = []
        for i in range(6):
            picture.seek(i)
            shown = np.asarray(picture.convert("RGB")).astype(int)
            durations.append(picture.info["duration"])
            assert np.abs(shown[12:20, 4 * i + 4 : 4 * i + 8] - (200, 30, 30)).max() <= 12
    assert durations == [83, 84, 83, 83, 84, 83]


@pytest.mark.parametrize(
    ("name", "clip_format", "codec", "pixels", "colour_error"),
    [
        ("a.mov", None, "prores", "yuv422p10le", 2),
        ("a.webm", "av1", "libdav1d", "yuv420p10le", 6),
        ("a.mp4", "av1", "libdav1d", "yuv420p10le", 6),
        ("a.mp4", None, "h264", "yuv420p", 6),
    ],
)
def test_videos_are_tagged_and_keep_their_colours(
    tmp_path: Path, name: str, clip_format: str | None, codec: str, pixels: str, colour_error: float
) -> None:
    frames = moving_square(6, height=64, width=96)
    recipe = make_recipe(frames=frames, pictures={"first_frame": noise_picture(150, 150)})
    path = export_clip(
        tmp_path / name, frames, fps=Fraction(24000, 1001), clip_format=clip_format, recipe=recipe
    )
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        list(container.decode(video=0))  # ProRes has its tags in each frame, too
        assert (context.name, context.pix_fmt) == (codec, pixels)
        assert int(context.color_range) == 1  # limited
        tags = (context.color_primaries, context.color_trc, context.colorspace)
        assert tuple(map(int, tags)) == (1, 1, 1)  # BT.709
    clip = read_clip(path)
    assert clip.fps == Fraction(24000, 1001)
    assert clip.recipe == recipe  # more than 64 KiB of it
    assert np.abs(clip.frames[:, 40:, 8:-8].astype(int) - frames[:, 40:, 8:-8]).mean() < 2
    square = clip.frames[3, 20:28, 12:18].mean((0, 1))
    assert square == pytest.approx([240, 200, 40], abs=colour_error)


def test_prores_names_its_profile(tmp_path: Path) -> None:
    path = export_clip(tmp_path / "a.mov", frames_of(), fps=12)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.profile == "HQ"
    assert b"colrnclc\0\x01\0\x01\0\x01" in path.read_bytes()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.webm"])
def test_the_recipe_is_in_every_file(tmp_path: Path, name: str) -> None:
    recipe = make_recipe({"prompt": "ein Fuchs, 狐 🦊"}, frames=frames_of())
    path = export_clip(tmp_path / name, frames_of(), fps=12, recipe=recipe)
    assert read_recipe(path) == recipe
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_files_without_a_recipe_say_so(tmp_path: Path) -> None:
    for name in ("a.gif", "a.webp", "a.webm"):
        with pytest.raises(InputError, match="holds no pixeldance recipe"):
            read_recipe(export_clip(tmp_path / name, frames_of(), fps=12))
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="not a GIF or WebP"):
        read_recipe(tmp_path / "b.gif")


def test_a_folder_holds_every_frame_without_loss(tmp_path: Path) -> None:
    frames = frames_of(3)
    recipe = make_recipe(frames=frames)
    folder = export_clip(tmp_path / "f", frames, fps=12, clip_format="png", recipe=recipe)
    names = [f"frame-000{i}.png" for i in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["clip.json", *names]
    for name, frame in zip(names, frames, strict=True):
        with Image.open(folder / name) as picture:
            assert np.array_equal(np.asarray(picture), frame)
    assert read_recipe(folder / "clip.json") == recipe


def test_only_a_folder_of_frames_is_replaced(tmp_path: Path) -> None:
    folder = export_clip(tmp_path / "f", frames_of(3), fps=12, clip_format="png")
    with pytest.raises(InputError, match="already exists"):
        export_clip(folder, frames_of(2), fps=12, clip_format="png")
    export_clip(folder, frames_of(2), fps=12, clip_format="png", overwrite=True)
    assert len(list(folder.iterdir())) == 2
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        export_clip(folder, frames_of(3), fps=12, clip_format="png", overwrite=True)
    assert len(list(folder.iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_clip(tmp_path / "f", frames_of(3), fps=12, clip_format="png")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(PixelDanceError, match="No space left"):
            export_clip(folder, frames_of(2), fps=12, clip_format="png", overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("name", "clip_format", "message"),
    [
        ("a.avi", None, r"one of \.gif, \.mov, \.mp4, \.webm, \.webp, \.zip"),
        ("frames", None, "needs the format 'png'"),
        ("a.mp4", "gif", r"takes '\.gif', got"),
        ("a.gif", "png", "no ending, it is a folder"),
        ("a.mp4", "vp9", "one of mp4, webm, av1"),
    ],
)
def test_formats_that_do_not_fit_the_path_are_refused(
    tmp_path: Path, name: str, clip_format: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_clip(tmp_path / name, frames_of(), fps=12, clip_format=clip_format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "clip_format", "side", "message"),
    [
        ("a.mov", None, 33, "even for ProRes"),
        ("a.mp4", None, 33, "even for H.264"),
        ("a.webm", "av1", 32, "at least 64 pixels"),
    ],
)
def test_sides_that_a_codec_does_not_take_are_refused(
    tmp_path: Path, name: str, clip_format: str | None, side: int, message: str
) -> None:
    frames = np.zeros((2, side, 64, 3), np.uint8)
    with pytest.raises(InputError, match=message):
        export_clip(tmp_path / name, frames, fps=12, clip_format=clip_format)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        export_clip(tmp_path / "a.gif", frames_of(), fps=12)
    assert (tmp_path / "a.gif").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
