"""Bands of rows: decoded together they are what one process decodes."""

import pytest
import torch
import torch.nn.functional as F
from parallel_helpers import (
    among,
    decode_alone_then_together,
    decode_fewer_rows_than_processes,
)
from processes import run_together

from pixeldance.parallel import share_rows


def test_two_processes_decode_the_clip_of_one() -> None:
    assert run_together(2, decode_alone_then_together) == [0, 0]


@pytest.mark.slow
def test_more_processes_than_rows() -> None:
    assert run_together(3, decode_fewer_rows_than_processes) == [0, 0, 0]


def test_convolutions_that_are_not_foreseen_are_refused() -> None:
    """A seam would show, and nobody would be told."""
    weight = torch.zeros(1, 1, 5, 5)
    with pytest.raises(NotImplementedError, match=r"height, stride and padding \(5, 1, 2\)"):
        share_rows(
            among(1, 2),
            lambda rows: F.conv2d(rows, weight, padding=2),
            torch.zeros(1, 1, 4, 4),
            scale=1,
        )
