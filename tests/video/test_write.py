import os
from fractions import Fraction

import av
import numpy as np
import pytest
from clip_helpers import make_recipe, moving_square

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video import check_clip_path, read_clip, write_clip

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "skin": (224, 172, 105),
}


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("size", [(64, 96), (720, 64)])
def test_flat_colours_come_back(tmp_path, size):
    height, width = size
    for name, colour in COLOURS.items():
        frames = np.full((2, height, width, 3), colour, np.uint8)
        clip = read_clip(write_clip(tmp_path / f"{name}.mp4", frames, fps=12))
        error = np.abs(clip.frames.astype(int) - frames.astype(int)).max()
        assert error <= 2, f"{name} came back as {clip.frames[0, 0, 0]}"


def test_pixels_are_bt709_in_limited_range(tmp_path):
    # Pure red in BT.709, 8 bit, limited range (ITU-R BT.709-6, section 3): Y = 63, Cb = 102,
    # Cr = 240. BT.601 would give Y = 81.
    frames = np.full((1, 32, 32, 3), COLOURS["red"], np.uint8)
    path = write_clip(tmp_path / "red.mp4", frames, fps=12, crf=1)
    with av.open(str(path)) as container:
        planes = [np.asarray(plane) for plane in next(container.decode(video=0)).planes]
    luma, blue, red = (plane[0] if plane.ndim == 1 else plane[0, 0] for plane in planes)
    assert np.abs(np.array([luma, blue, red], int) - (63, 102, 240)).max() <= 1


def test_tags_name_the_colours_that_were_used(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.color_range == 1  # limited
        assert context.colorspace == 1  # bt709
        assert context.color_primaries == 1
        assert context.color_trc == 1
        assert context.pix_fmt == "yuv420p"
        assert context.name == "h264"


@pytest.mark.parametrize("crf", [1, 17, 51])
def test_profile_is_one_that_browsers_play(tmp_path, crf):
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12, crf=crf)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.profile == "High"


def test_index_comes_before_the_pictures(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_square(9), fps=12, recipe=make_recipe())
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), 1, 12, 60, 12.0])
@pytest.mark.parametrize("num_frames", [1, 2, 25])
def test_fps_and_length_are_exact(tmp_path, fps, num_frames):
    clip = read_clip(write_clip(tmp_path / "clip.mp4", moving_square(num_frames), fps=fps))
    assert clip.fps == Fraction(fps)
    assert len(clip.frames) == num_frames


def test_frames_keep_their_order_and_content(tmp_path):
    frames = moving_square(13)
    clip = read_clip(write_clip(tmp_path / "clip.mp4", frames, fps=12, crf=1))
    difference = clip.frames.astype(float) - frames.astype(float)
    psnr = 10 * np.log10(255**2 / (difference**2).mean(axis=(1, 2, 3)))
    assert psnr.min() > 30


def test_equal_frames_give_equal_bytes(tmp_path):
    frames = moving_square(25)
    # Many times: with x264's default settings about one clip in ten comes out otherwise.
    files = {write_clip(tmp_path / f"{i}.mp4", frames, fps=12).read_bytes() for i in range(20)}
    assert len(files) == 1


def test_frames_may_be_a_view(tmp_path):
    frames = moving_square(9)
    write_clip(tmp_path / "view.mp4", frames[::-1, :, ::-1], fps=12)
    write_clip(tmp_path / "copy.mp4", frames[::-1, :, ::-1].copy(), fps=12)
    assert (tmp_path / "view.mp4").read_bytes() == (tmp_path / "copy.mp4").read_bytes()


@pytest.mark.parametrize("crf", [0, -1, 52])
def test_crf_out_of_range_is_refused(tmp_path, crf):
    with pytest.raises(InputError, match=rf"crf must be 1 to 51, got {crf}"):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, crf=crf)
    assert names_in(tmp_path) == []


def test_crf_zero_says_why(tmp_path):
    with pytest.raises(InputError, match="High 4:4:4"):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, crf=0)


@pytest.mark.parametrize("fps", [0, -12, Fraction(-1, 2), 1001, 23.976, float("nan")])
def test_impossible_fps_is_refused(tmp_path, fps):
    with pytest.raises(InputError, match="fps must be"):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=fps)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((5, 33, 32, 3), np.uint8), "even for H.264, got 33 x 32.*Crop to 32 x 32"),
        (np.zeros((5, 32, 33, 3), np.uint8), "even for H.264, got 32 x 33.*Crop to 32 x 32"),
        (np.zeros((5, 32, 32, 3), np.float32), "uint8.*got float32"),
        (np.zeros((32, 32, 3), np.uint8), r"got \(32, 32, 3\)"),
        (np.zeros((5, 3, 32, 32), np.uint8), r"got \(5, 3, 32, 32\)"),
        (np.zeros((5, 32, 32, 4), np.uint8), r"got \(5, 32, 32, 4\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "at least one frame"),
        ([[0]], "uint8.*got list"),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path, frames, message):
    with pytest.raises(InputError, match=message):
        write_clip(tmp_path / "clip.mp4", frames, fps=12)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.gif", ".mp4", "..", ""])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"must end in '\.mp4'"):
        write_clip(tmp_path / name, moving_square(1), fps=12)


def test_missing_folder_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(InputError, match=r"does not exist\. Make it \(mkdir -p"):
        write_clip(tmp_path / "no" / "clip.mp4", moving_square(1), fps=12)


def test_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, overwrite=True)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.json"])
def test_nothing_is_overwritten_silently(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=rf"{name}' already exists.*--overwrite"):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, recipe=make_recipe())
    with pytest.raises(InputError, match="already exists"):
        check_clip_path(tmp_path / "clip.mp4")
    assert names_in(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_file_that_appears_during_encoding_is_not_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    fsync = os.fsync

    def fsync_late(descriptor):
        path.write_text("precious")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_late)
    with pytest.raises(InputError, match="already exists"):
        write_clip(path, moving_square(1), fps=12)
    assert names_in(tmp_path) == ["clip.mp4"]
    assert path.read_text() == "precious"


def test_overwrite_replaces_clip_and_sidecar(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, moving_square(1), fps=12, recipe=make_recipe(seed=1))
    write_clip(path, moving_square(5), fps=12, recipe=make_recipe(seed=2), overwrite=True)
    clip = read_clip(path)
    assert len(clip.frames) == 5
    assert clip.recipe["seed"] == 2
    assert names_in(tmp_path) == ["clip.json", "clip.mp4"]


def test_overwriting_leaves_no_recipe_of_the_old_clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, moving_square(1), fps=12, recipe=make_recipe())
    write_clip(path, moving_square(5), fps=12, overwrite=True)
    assert read_clip(path).recipe is None
    assert names_in(tmp_path) == ["clip.mp4"]


def test_overwriting_keeps_a_json_file_of_another_kind(tmp_path):
    (tmp_path / "clip.json").write_text('{"notes": 1}')
    write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, overwrite=True)
    assert (tmp_path / "clip.json").read_text() == '{"notes": 1}'
    assert read_clip(tmp_path / "clip.mp4").recipe is None


def fail_on_call(number, error):
    """A stand-in for os.replace that fails on its nth call."""
    replace, calls = os.replace, []

    def stand_in(source, target):
        calls.append(target)
        if len(calls) == number:
            raise error
        replace(source, target)

    return stand_in


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_rename_leaves_nothing(tmp_path, monkeypatch, number, error):
    monkeypatch.setattr(os, "replace", fail_on_call(number, error))
    with pytest.raises((PixelDanceError, KeyboardInterrupt)):
        write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, recipe=make_recipe())
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("number", [1, 2])
def test_failed_overwrite_keeps_both_old_files(tmp_path, monkeypatch, number):
    path = write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, recipe=make_recipe(seed=1))
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    monkeypatch.setattr(os, "replace", fail_on_call(number, OSError(5, "Input/output error")))
    with pytest.raises(PixelDanceError, match=r"Could not write .*Input/output error"):
        write_clip(path, moving_square(5), fps=12, recipe=make_recipe(seed=2), overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (av.error.InvalidDataError(1, "broken"), PixelDanceError),
        (OSError(28, "No space left on device"), PixelDanceError),
    ],
)
def test_interrupted_encoding_leaves_nothing(tmp_path, monkeypatch, error, caught):
    from_ndarray, seen = av.VideoFrame.from_ndarray, []

    def stop_in_the_middle(*args, **kwargs):
        seen.append(names_in(tmp_path))
        if len(seen) == 3:
            raise error
        return from_ndarray(*args, **kwargs)

    class Frame:
        from_ndarray = staticmethod(stop_in_the_middle)

    monkeypatch.setattr(av, "VideoFrame", Frame)
    with pytest.raises(caught):
        write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12, recipe=make_recipe())
    # While it was being written, no file carried the final name.
    assert "clip.mp4" not in seen[-1]
    assert names_in(tmp_path) == []


def test_file_mode_follows_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    path = write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, recipe=make_recipe())
    expected = (tmp_path / "plain").stat().st_mode
    assert path.stat().st_mode == expected
    assert path.with_suffix(".json").stat().st_mode == expected
