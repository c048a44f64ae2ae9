import os

import numpy as np
import pytest
from PIL import Image

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video import contact_sheet, write_contact_sheet
from pixeldance.video.sheet import sheet_frames


def numbered(num_frames, height=32, width=48):
    """Frame i is a flat grey of value 10 i + 5."""
    values = (10 * np.arange(num_frames) + 5).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (num_frames, height, width, 3)).copy()


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "expected"),
    [
        (1, 10, [0]),
        (25, 1, [0]),
        (25, 2, [0, 24]),
        (25, 5, [0, 6, 12, 18, 24]),
        (4, 10, [0, 1, 2, 3]),
        (10, 10, list(range(10))),
    ],
)
def test_frames_shown_on_paper(num_frames, max_frames, expected):
    assert sheet_frames(num_frames, max_frames) == expected


def test_first_and_last_are_shown_and_none_twice():
    for num_frames in range(2, 60):
        for max_frames in range(2, 20):
            shown = sheet_frames(num_frames, max_frames)
            assert shown[0] == 0
            assert shown[-1] == num_frames - 1
            assert len(shown) == min(num_frames, max_frames)
            gaps = np.diff(shown)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1


def test_layout_without_labels():
    sheet = contact_sheet(numbered(7), columns=3, max_frames=7, labels=False)
    # 3 columns of 48 and 3 rows of 32 pixels, with 4 pixels around each.
    assert sheet.mode == "RGB"
    assert sheet.size == (3 * 48 + 4 * 4, 3 * 32 + 4 * 4)
    pixels = np.asarray(sheet)
    for i in range(7):
        top, left = 4 + i // 3 * 36, 4 + i % 3 * 52
        tile = pixels[top : top + 32, left : left + 48]
        assert (tile == 10 * i + 5).all()
    assert (pixels[76:, 56:] == 24).all()  # the places of an 8th and 9th frame


def test_labels_are_under_the_frames_and_tell_them_apart():
    plain = np.asarray(contact_sheet(numbered(3), labels=False))
    labelled = np.asarray(contact_sheet(numbered(3), labels=True))
    assert labelled.shape == (plain.shape[0] + 16, *plain.shape[1:])
    assert (labelled[:36] == plain[:36]).all()
    strips = [labelled[36:52, 4 + 52 * i : 52 + 52 * i] for i in range(3)]
    assert all((strip > 150).any() for strip in strips)
    assert (strips[0] != strips[1]).any()
    assert (strips[1] != strips[2]).any()


def test_one_frame_makes_one_tile():
    assert contact_sheet(numbered(1), labels=False).size == (48 + 8, 32 + 8)


def test_large_frames_are_reduced_in_proportion():
    frames = np.full((2, 400, 768, 3), 77, np.uint8)
    sheet = contact_sheet(frames, labels=False)
    assert sheet.size == (2 * 384 + 3 * 4, 200 + 2 * 4)
    assert np.asarray(sheet)[100, 200].tolist() == [77, 77, 77]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
    ],
)
def test_impossible_layouts_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(numbered(3), **options)


def test_floats_are_refused():
    with pytest.raises(InputError, match="uint8"):
        contact_sheet(np.zeros((3, 8, 8, 3), np.float32))


def test_written_sheet_is_the_sheet(tmp_path):
    path = write_contact_sheet(tmp_path / "sheet.png", numbered(5), columns=2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        expected = contact_sheet(numbered(5), columns=2)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_sheet_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"sheet\.png' already exists.*--overwrite"):
        write_contact_sheet(path, numbered(5))
    with pytest.raises(InputError, match=r"must end in '\.png'"):
        write_contact_sheet(tmp_path / "sheet.jpg", numbered(5))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(PixelDanceError, match="No space left on device"):
            write_contact_sheet(path, numbered(5), overwrite=True)
    assert path.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]
    write_contact_sheet(path, numbered(5), overwrite=True)
    with Image.open(path) as image:
        assert image.format == "PNG"
