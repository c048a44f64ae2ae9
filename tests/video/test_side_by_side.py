"""Two clips beside each other: where they are, what the difference shows, what is refused."""

import numpy as np
import pytest

from pixeldance.errors import InputError
from pixeldance.video.side_by_side import side_by_side

LABELS = ("one", "other")


def flat(value: int, width: int = 200) -> np.ndarray:
    return np.full((2, 100, width, 3), value, np.uint8)


def test_the_panels_are_the_clips_and_four_times_their_difference() -> None:
    page = side_by_side(flat(100), flat(110), labels=LABELS, captions=["a", "b"])
    assert page.shape == (2, 132, 616, 3)
    np.testing.assert_array_equal(page[:, 16:116, 4:204], flat(100))
    np.testing.assert_array_equal(page[:, 16:116, 208:408], flat(110))
    np.testing.assert_array_equal(page[:, 16:116, 412:612], flat(40))
    assert not np.array_equal(page[0, 116:], page[1, 116:])  # each frame its caption


def test_large_differences_do_not_wrap_around() -> None:
    page = side_by_side(flat(0), flat(200), labels=LABELS, captions=["", ""])
    np.testing.assert_array_equal(page[:, 16:116, 412:612], flat(255))


def test_small_clips_are_enlarged_and_long_names_cut() -> None:
    names = ("a" * 100 + ".mp4", "b")
    page = side_by_side(flat(9, 10), flat(9, 10), labels=names, captions=["", ""])
    assert page.shape[2] == 3 * 200 + 4 * 4
    assert (page[0, 2:14, 204:208] == page[0, 0, 0]).all()  # nothing runs into the next panel


def test_clips_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        side_by_side(flat(0), flat(0, 202), labels=LABELS, captions=["", ""])
    with pytest.raises(InputError, match="2 captions, got 1"):
        side_by_side(flat(0), flat(0), labels=LABELS, captions=[""])
