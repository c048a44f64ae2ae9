"""Exports: what other programs read out of them."""

import io
import json
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_helpers import make_recipe
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.video import export_clip


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


def test_another_ending_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.webm, \.gif, \.zip"):
        export_clip(tmp_path / "a.avi", frames_of(), fps=12)
    (tmp_path / "a.gif").write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        export_clip(tmp_path / "a.gif", frames_of(), fps=12)
    assert (tmp_path / "a.gif").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
