"""Who goes where: squares on grey, so that every answer is known on paper."""

import pytest
import torch
from torch import Tensor

from pixeldance.models.carrying import Motion
from pixeldance.models.reading import Said
from pixeldance.models.subjects import connected, follow_subjects

ROWS, COLUMNS = 16, 24  # of the motion's grid: pictures of 64 x 96 pixels
HALF = torch.tensor([48.0, 32.0])
RED, GREEN = (0.9, -0.8, -0.8), (-0.8, 0.9, -0.8)

Square = tuple[int, int, tuple[float, float, float]]  # first column and row on the grid, colour


def scene(*squares: list[Square], side: int = 4) -> tuple[Motion, Tensor]:
    """Pictures with squares, and motion that knows what is in front, but not where it goes."""
    pictures = torch.zeros(1, 2, 3, 4 * ROWS, 4 * COLUMNS)
    front = torch.zeros(1, 2, 1, ROWS, COLUMNS)
    for end, seen in enumerate(squares):
        for column, row, colour in seen:
            rows = slice(max(row, 0), row + side)
            columns = slice(max(column, 0), column + side)
            front[0, end, 0, rows, columns] = 1.0
            pixels = (
                slice(4 * rows.start, 4 * rows.stop),
                slice(4 * columns.start, 4 * columns.stop),
            )
            pictures[0, end][:, *pixels] = torch.tensor(colour)[:, None, None]
    motion = Motion(
        torch.zeros(1, 2, 2, ROWS, COLUMNS), front, torch.zeros(1, 2, 3, 2, ROWS, COLUMNS)
    )
    return motion, pictures


def saying(*paths: list[tuple[float, float]]) -> Said:
    """A text that names a subject for each path: its shifts after the quarters of the way."""
    subjects, named = torch.zeros(1, 3, 2, 4, 4), torch.full((1, 3), -9.0)
    for number, path in enumerate(paths):
        onwards = torch.tensor([(0.0, 0.0), *path])
        subjects[0, number, 0, :, :2] = onwards[1:]
        subjects[0, number, 1, :, :2] = (onwards - onwards[-1]).flip(0)[1:]
        named[0, number] = 9.0
    none = torch.zeros(1, 0, 1)
    return Said(
        none, torch.zeros(1, 2, 4, 4), subjects, named, none, none.long(), none, none.bool()
    )


def straight(across: float, down: float = 0.0) -> list[tuple[float, float]]:
    return [(across * part / 4, down * part / 4) for part in (1, 2, 3, 4)]


def followed(said: Said, motion: Motion, pictures: Tensor) -> Motion:
    return follow_subjects(motion, said, pictures, torch.tensor([[True, True]]))


def shift_of(motion: Motion, end: int, square: Square) -> tuple[float, float]:
    """How far a square goes, in places of the grid; all of it alike."""
    column, row, _ = square
    flow = motion.flow[0, end, :, row : row + 4, column : column + 4] / 4
    assert torch.allclose(flow, flow[:, :1, :1].expand_as(flow), atol=1e-5)
    across, down = flow[:, 0, 0].tolist()
    return across, down


def test_what_is_in_front_in_both_pictures_goes_from_one_place_to_the_other() -> None:
    here, there = (2, 4, RED), (14, 8, RED)
    motion = followed(saying(straight(0.6)), *scene([here], [there]))
    assert shift_of(motion, 0, here) == pytest.approx((12, 4), abs=1e-4)
    assert shift_of(motion, 1, there) == pytest.approx((-12, -4), abs=1e-4)
    assert motion.flow.any(2).sum() == 2 * 16  # nothing else moves


def test_what_has_become_larger_grows_around_its_centre() -> None:
    small, pictures = scene([(4, 6, RED)], [(14, 6, RED)], side=4)
    large, larger = scene([(4, 6, RED)], [(14, 6, RED)], side=8)
    front = torch.stack([small.front[:, 0], large.front[:, 1]], dim=1)
    pictures = torch.stack([pictures[:, 0], larger[:, 1]], dim=1)
    motion = followed(saying(straight(0.8)), small._replace(front=front), pictures)
    # 4 x 4 places become 8 x 8: outer ones lie 1.5 from the centre, then 3; centres 12 and 2 apart
    corners = motion.flow[0, 0, :, (6, 9), (4, 7)] / 4
    torch.testing.assert_close(corners, torch.tensor([[10.5, 13.5], [0.5, 3.5]]))


@pytest.mark.parametrize("is_swap", [False, True])
def test_the_text_says_who_goes_where(is_swap: bool) -> None:
    left, right = (3, 6, RED), (17, 6, RED)
    way = 14 / 12 if is_swap else 0.0
    said = saying(straight(way), straight(-way))
    motion = followed(said, *scene([left, right], [left, right]))
    assert shift_of(motion, 0, left) == pytest.approx((14 if is_swap else 0, 0), abs=1e-4)
    assert shift_of(motion, 0, right) == pytest.approx((-14 if is_swap else 0, 0), abs=1e-4)


def test_colours_say_who_goes_where_if_the_text_does_not() -> None:
    before, after = [(3, 2, RED), (3, 10, GREEN)], [(17, 2, GREEN), (17, 10, RED)]
    motion = followed(saying(straight(1.1), straight(1.1)), *scene(before, after))
    assert shift_of(motion, 0, before[0]) == pytest.approx((14, 8), abs=1e-4)
    assert shift_of(motion, 0, before[1]) == pytest.approx((14, -8), abs=1e-4)


def test_what_leaves_goes_until_nothing_of_it_is_seen() -> None:
    leaving, staying = (12, 2, RED), (4, 10, GREEN)
    said = saying(straight(1.2), straight(0.0))
    motion = followed(said, *scene([leaving, staying], [staying]))
    # 12 places would do, but it is told to go 1.2 x 12
    assert shift_of(motion, 0, leaving) == pytest.approx((14.4, 0), abs=1e-4)
    assert shift_of(motion, 0, staying) == (0, 0)
    # coming in from the left it has been 16 places away, although 14.4 are told
    back = followed(said, *scene([staying], [leaving, staying]))
    assert shift_of(back, 1, leaving) == pytest.approx((-16, 0), abs=1e-4)


def test_a_motion_that_lands_on_the_same_part_is_believed() -> None:
    here, there = (2, 6, RED), (14, 6, RED)
    motion, pictures = scene([here], [there])
    motion.flow[0, 0, 0, 6:10, 2:6] = 4 * 12.4  # better known than from centres
    motion.flow[0, 0, 0, 6, 2] = 0.0  # but here it is wrong
    assert shift_of(followed(saying(straight(1.0)), motion, pictures), 0, here) == pytest.approx(
        (12.4, 0), abs=1e-4
    )


def test_the_places_of_a_part_go_as_one() -> None:
    here, there = (4, 6, RED), (14, 6, RED)  # turned by a quarter on the way
    motion, pictures = scene([here], [there])
    for row in range(6, 10):
        for column in range(4, 8):
            x, y = column - 5.5, row - 7.5
            across, down = (15.5 - y) - column, (7.5 + x) - row
            motion.flow[0, 0, :, row, column] = 4 * torch.tensor([across, down])
    expected = motion.flow[0, 0, :, 6:10, 4:8].clone()
    motion.flow[0, 0, :, 6:8, 4:6] += 12.0  # a corner of it is wrong
    made = followed(saying(straight(1.0)), motion, pictures).flow[0, 0, :, 6:10, 4:8]
    torch.testing.assert_close(made, expected, atol=0.2, rtol=0)


def test_a_jump_rises_as_ever_and_a_turn_of_the_way_is_stretched() -> None:
    here, there = (2, 6, RED), (14, 6, RED)  # 1 of the picture's half
    jump = [(0.2, -0.3), (0.4, -0.4), (0.6, -0.3), (0.8, 0.0)]
    bent = followed(saying(jump), *scene([here], [there])).detour[0, :, :, :, 7, 3] / HALF
    torch.testing.assert_close(bent[0], torch.tensor([[0.0, -0.3], [0.0, -0.4], [0.0, -0.3]]))
    here, there = (2, 2, RED), (14, 10, RED)  # 1 across, 1 down
    corner = [(0.4, 0.0), (0.8, 0.0), (0.8, 0.25), (0.8, 0.5)]  # told shorter than it is
    bent = followed(saying(corner), *scene([here], [there])).detour[0, :, :, :, 3, 3] / HALF
    torch.testing.assert_close(bent[0], torch.tensor([[0.25, -0.25], [0.5, -0.5], [0.25, -0.25]]))


def test_a_jump_that_lands_lower_than_told_rises_as_ever() -> None:
    here, there = (2, 2, RED), (14, 10, RED)  # 1 across, 1 down
    jump = [(0.25, -0.3), (0.5, -0.4), (0.75, -0.1), (1.0, 0.4)]
    bent = followed(saying(jump), *scene([here], [there])).detour[0, :, :, :, 3, 3] / HALF
    torch.testing.assert_close(bent[0], torch.tensor([[0.0, -0.4], [0.0, -0.6], [0.0, -0.4]]))


def test_the_larger_part_is_the_subject() -> None:
    large, small = (
        scene([(2, 2, RED)], [(11, 2, RED)]),
        scene([(2, 12, RED)], [(8, 12, RED)], side=2),
    )
    motion, pictures = (
        large[0]._replace(front=large[0].front + small[0].front),
        large[1] + small[1],
    )
    motion = followed(saying(straight(0.5)), motion, pictures)  # just as far as the small one goes
    assert shift_of(motion, 0, (2, 2, RED)) == pytest.approx((9, 0), abs=1e-4)
    assert not motion.flow[0, 0, :, 12, 2].any()


def test_two_that_touch_are_told_apart_by_what_is_found_again() -> None:
    staying, leaving = (8, 6, GREEN), (12, 6, RED)
    said = saying(straight(0.0), straight(1.5))
    motion, pictures = scene([staying, leaving], [staying])
    motion = followed(said, motion, pictures)
    assert shift_of(motion, 0, staying) == (0, 0)
    assert 12 + shift_of(motion, 0, leaving)[0] >= COLUMNS - 1e-4


def test_two_that_touch_are_told_apart_by_where_they_go() -> None:
    before, after = [(8, 6, RED), (12, 6, RED)], [(2, 6, RED), (12, 6, RED)]
    motion, pictures = scene(before, after)
    motion.flow[0, 0, 0, 6:10, 8:12] = -4 * 6.0
    made = followed(saying(straight(-0.5), straight(0.0)), motion, pictures)
    assert shift_of(made, 1, after[0]) == pytest.approx((6, 0), abs=1e-4)  # to one half of both
    assert shift_of(made, 1, after[1]) == pytest.approx((0, 0), abs=1e-4)


@pytest.mark.parametrize(
    ("present", "said"),
    [
        ([True, False], saying(straight(1.0))),  # with one picture the text alone tells
        ([True, True], saying()),  # nobody is named
    ],
)
def test_without_two_pictures_or_subjects_nothing_changes(present: list[bool], said: Said) -> None:
    motion, pictures = scene([(2, 6, RED)], [(14, 6, RED)])
    made = follow_subjects(motion, said, pictures, torch.tensor([present]))
    for part, before in zip(made[:3], motion[:3], strict=True):
        assert torch.equal(part, before)


@pytest.mark.parametrize(("side", "is_somebody"), [(0, False), (1, False), (2, True)])
def test_specks_are_nobody(side: int, is_somebody: bool) -> None:
    front = torch.zeros(1, 2, 1, 20, 60)  # of 1200 places, 3 are 1 of 400
    front[:, :, :, 3 : 3 + side, 3 : 3 + side] = 1.0
    motion = Motion(torch.zeros(1, 2, 2, 20, 60), front, torch.zeros(1, 2, 3, 2, 20, 60))
    motion.flow[:, 0, 0] = 20.0  # lands on nothing
    made = followed(saying(straight(0.0)), motion, torch.zeros(1, 2, 3, 80, 240))
    assert (not torch.equal(made.flow, motion.flow)) == is_somebody


def test_parts_are_connected_over_corners() -> None:
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    parts = connected(mask)
    assert sorted(int(part.sum()) for part in parts) == [2, 2, 2]
    assert torch.equal(torch.stack(parts).any(0), mask)
    assert connected(torch.zeros(3, 3, dtype=torch.bool)) == []
