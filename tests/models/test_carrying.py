"""Motion carried to times in between, as worked out on paper."""

import pytest
import torch
from torch import Tensor

from pixeldance.models.carrying import Motion, carried, filled_up, still


def constant(x: float, y: float, height: int = 12, width: int = 16) -> Motion:
    """Everything moves by x, y pixels from the first picture to the second."""
    there = torch.tensor([x, y]).view(1, 1, 2, 1, 1).expand(1, 1, 2, height, width)
    flow = torch.cat([there, -there], dim=1)
    detour = torch.zeros(1, 2, 3, 2, height, width)
    return Motion(flow, torch.zeros(1, 2, 1, height, width), detour)


def given(*present: bool) -> Tensor:
    return torch.tensor([present or (True, True)])


@pytest.mark.parametrize("time", [0.0, 0.25, 0.5, 1.0])
def test_what_moves_as_one_is_fetched_from_where_it_was_and_will_be(time: float) -> None:
    flow, front = carried(constant(16.0, -8.0), torch.tensor([[time]]), given())
    assert flow.shape == (1, 2, 1, 2, 12, 16)
    for number, share in ((0, -time), (1, 1 - time)):
        expected = torch.tensor([16.0 * share, -8.0 * share]).view(2, 1, 1).expand(2, 12, 16)
        # also where nothing lands: holes take what is around them
        torch.testing.assert_close(flow[0, number, 0], expected, atol=1e-3, rtol=0)
    assert front.abs().max() < 1e-6


def crossing(order: tuple[int, int] = (2, 8)) -> Motion:
    """A square of 4 cells goes from column 2 to column 8 (24 pixels) before what stands still."""
    motion = constant(0.0, 0.0)
    flow, front = motion.flow.clone(), motion.front.clone()
    distance = 4.0 * (order[1] - order[0])
    for number, (column, sign) in enumerate(zip(order, (1, -1), strict=True)):
        flow[0, number, 0, 4:8, column : column + 4] = sign * distance
        front[0, number, 0, 4:8, column : column + 4] = 1.0
    return motion._replace(flow=flow, front=front)


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    flow, front = carried(crossing(), torch.tensor([[0.5, 1 / 6]]), given())
    for frame, column in enumerate((5, 3)):
        square = front[0, frame, 0] > 0.9
        assert square[4:8, column : column + 4].all()
        assert int(square.sum()) == 16
        assert flow[0, 0, frame, 0, 4:8, column : column + 4].mean() == pytest.approx(
            -24.0 * (column - 2) / 6, abs=0.1
        )
        assert flow[0, 1, frame, 0, 4:8, column : column + 4].mean() == pytest.approx(
            24.0 * (8 - column) / 6, abs=0.1
        )
        assert flow[0, :, frame, :, :3].abs().max() < 1e-3


def test_at_its_own_time_a_picture_stays_where_it_is() -> None:
    motion = crossing()
    flow, front = carried(motion, torch.tensor([[0.0, 1.0]]), given())
    for end in (0, 1):
        shown = motion.front[0, end] > 0.5
        assert flow[0, end, end][:, shown[0]].abs().max() < 1e-3
        assert torch.equal(front[0, end] > 0.5, shown)


def test_without_two_pictures_nothing_moves() -> None:
    flow, front = carried(
        still(torch.zeros(2, 2, 3, 32, 48)), torch.rand(2, 3), given().expand(2, -1)
    )
    assert flow.shape == (2, 2, 3, 2, 8, 12)
    assert not flow.any()
    assert not front.any()


def test_a_detour_is_gone_and_is_over_at_both_ends() -> None:
    motion = constant(16.0, 0.0)
    motion.detour[:, 0, :, 1] = torch.tensor([4.0, 8.0, 4.0])[:, None, None]  # down and back
    motion.detour[:, 1, :, 1] = torch.tensor([4.0, 8.0, 4.0])[:, None, None]
    time = torch.tensor([[0.0, 0.125, 0.25, 0.5, 0.875, 1.0]])
    flow, _ = carried(motion, time, given())
    # the natural cubic spline through 0, 4, 8, 4, 0 is at 12.5 / 7 half way to the first 4
    for frame, down in enumerate((0.0, 12.5 / 7, 4.0, 8.0, 12.5 / 7, 0.0)):
        torch.testing.assert_close(
            flow[0, 0, frame, 1], torch.full((12, 16), -down), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            flow[0, 1, frame, 1], torch.full((12, 16), -down), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("end", [0, 1])
def test_one_picture_alone_is_carried_all_the_way(end: int) -> None:
    motion = crossing()
    motion.flow[:, 1 - end] = 1000.0  # of an absent picture: never looked at
    present = given(end == 0, end == 1)
    flow, front = carried(motion, torch.tensor([[0.5]]), present)
    square = front[0, 0, 0] > 0.9
    assert square[4:8, 5:9].all()
    assert int(square.sum()) == 16
    assert flow[0, end, 0, 0, 4:8, 5:9].mean() == pytest.approx(12.0 if end else -12.0, abs=0.1)
    # where the square was, what is behind it appears: it rests
    assert flow[0, end, 0, :, 4:8, (2 if end == 0 else 10)].abs().max() < 0.5


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 33, 129])
def test_holes_take_the_mean_of_what_is_around_them(size: int) -> None:
    around = torch.rand(2, 3, 6, 40, generator=torch.Generator().manual_seed(size))
    hole = torch.zeros_like(around)
    sums = _windowed_means(around, size)  # as far as the picture goes
    expected = sums[:, :2] / sums[:, 2:]
    torch.testing.assert_close(filled_up(hole, around, [(size, 0.5)]), expected)


def _windowed_means(values: Tensor, size: int) -> Tensor:
    rows, columns = (
        (torch.arange(side)[:, None] - torch.arange(side)).abs() <= size // 2
        for side in values.shape[-2:]
    )
    down, across = (near / near.sum(1, keepdim=True) for near in (rows, columns))
    return down @ values @ across.mT


def test_far_from_everything_a_hole_stays_empty() -> None:
    around = torch.zeros(1, 2, 1, 40)
    around[..., 0] = 3.0e7  # leaves nothing of itself where its window has ended
    made = filled_up(torch.zeros_like(around), around, [(9, 1.0)])
    assert (made[0, 0, 0, :5] == 1).all()
    assert (made[0, 0, 0, 5:] == 0).all()
