import av
import numpy as np
import pytest
from clip_helpers import make_recipe, moving_square

from pixeldance.errors import DataError, InputError
from pixeldance.video import read_clip, read_frame, read_recipe, write_clip


@pytest.mark.parametrize("read", [read_clip, read_recipe])
def test_missing_file_and_folder_are_input_errors(tmp_path, read):
    with pytest.raises(InputError, match=r"no\.mp4' does not exist"):
        read(tmp_path / "no.mp4")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_clip, read_recipe])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just text",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
    ],
    ids=["empty", "text", "playlist", "concat"],
)
def test_other_files_named_mp4_are_refused_in_one_line(tmp_path, read, content):
    write_clip(tmp_path / "other.mp4", moving_square(5), fps=12, recipe=make_recipe())
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4' is not an MP4") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_clip_cut_short_is_a_data_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "clip.mp4", noise, fps=12)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        read_clip(path)


def test_clip_without_its_last_frames_is_a_data_error(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_square(25), fps=12)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[20]])
    with pytest.raises(DataError, match=r"cut short: \d+ of 25 frames"):
        read_clip(path)


def test_too_long_a_clip_is_refused(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", moving_square(25), fps=12)
    monkeypatch.setattr("pixeldance.video.read.MAX_CLIP_BYTES", 100_000)
    with pytest.raises(InputError, match="too long"):
        read_clip(path)


def test_clip_without_recipe(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12)
    assert read_clip(path).recipe is None
    with pytest.raises(InputError, match=r"clip\.mp4' holds no pixeldance recipe"):
        read_recipe(path)
    path.with_suffix(".json").write_text('{"somebody": "else"}')
    assert read_clip(path).recipe is None


def write_foreign(path, *, height=64, comment="", **tags):
    """A red clip by another program: BT.601 or 709 as tagged or guessed."""
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, height, tags.pop("pix_fmt", "yuv420p")
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        matrix = tags.get("colorspace", 1 if height >= 720 else 5)
        red = np.full((height, 64, 3), (255, 0, 0), np.uint8)
        frame = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(
            format=stream.pix_fmt,
            src_colorspace=1,
            dst_colorspace=matrix,
            src_color_range=2,
            dst_color_range=tags.get("color_range", 1),
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("height", "tags"),
    [
        (64, {}),
        (720, {}),
        (64, {"colorspace": 1}),
        (720, {"colorspace": 6}),
        (64, {"colorspace": 1, "color_range": 2}),
    ],
)
def test_colours_of_other_writers_follow_their_tags(tmp_path, height, tags):
    write_foreign(tmp_path / "red.mp4", height=height, **tags)
    frame = read_clip(tmp_path / "red.mp4").frames[0].astype(int)
    assert np.abs(frame - (255, 0, 0)).max() <= 3, frame[0, 0]


@pytest.mark.parametrize("comment", ["hello", "{}", '{"workflow": 1}'])
def test_foreign_comments_are_no_recipe(tmp_path, comment):
    write_foreign(tmp_path / "red.mp4", comment=comment)
    assert read_clip(tmp_path / "red.mp4").recipe is None


def test_damaged_recipe_in_a_comment_is_a_data_error(tmp_path):
    write_foreign(tmp_path / "red.mp4", comment='{"schema":"pixeldance.recipe"')
    with pytest.raises(DataError, match=r"red\.mp4' is damaged"):
        read_recipe(tmp_path / "red.mp4")


def test_oversized_comment_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pixeldance.video.read.MAX_COMMENT_BYTES", 100)
    path = write_clip(tmp_path / "clip.mp4", moving_square(1), fps=12, recipe=make_recipe())
    with pytest.raises(DataError, match="larger than 100 bytes"):
        read_recipe(path)


def test_names_that_ffmpeg_would_obey_are_plain_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip("concat:a|b.mp4", moving_square(5), fps=12)
    assert len(read_clip("concat:a|b.mp4").frames) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["concat:a|b.mp4"]


@pytest.mark.parametrize("number", [0, 3, -1])
def test_one_frame_is_the_same_as_in_the_whole_clip(tmp_path, number):
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12)
    frame = read_frame(path, number)
    assert (frame.number, frame.num_frames) == (number % 5, 5)
    assert np.array_equal(frame.picture, read_clip(path).frames[number])


def test_a_frame_behind_the_end_is_an_input_error(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12)
    with pytest.raises(InputError, match="frames 0 to 4; there is no frame 5"):
        read_frame(path, 5)


def test_reading_does_not_darken(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (24, 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(colours, (24, 32, 32, 3)).copy()
    clip = read_clip(write_clip(tmp_path / "a.mp4", frames, fps=12, crf=1))
    error = clip.frames.astype(int) - frames
    assert abs(error.mean()) < 0.3  # FFmpeg's quick conversion takes 1.3 away
    assert np.abs(error).max() <= 3
