"""Drafts: a plain picture with a square in front, whose motion is known."""

import pytest
import torch
from torch import Tensor

from pixeldance.models.carrying import FINE, Motion
from pixeldance.models.draft import carried_pictures, shown_share, stand_ins

HEIGHT, WIDTH, SIDE, STEP = 64, 128, 24, 48  # the square goes STEP pixels to the right
BACKGROUND, FOREGROUND = -0.5, 0.75


def scene(left: int) -> Tensor:
    """A square on a plain picture, ``3 height width``."""
    made = torch.full((3, HEIGHT, WIDTH), BACKGROUND)
    made[:, 20 : 20 + SIDE, left : left + SIDE] = FOREGROUND
    return made


def moving_square() -> tuple[Tensor, Motion]:
    """Both ends, and the true motion between them."""
    pictures = torch.stack([scene(16), scene(16 + STEP)])[None]
    front = (pictures[:, :, :1] == FOREGROUND).float()[..., ::FINE, ::FINE]
    flow = torch.zeros(1, 2, 2, HEIGHT // FINE, WIDTH // FINE)
    flow[:, 0, 0] = STEP * front[:, 0, 0]
    flow[:, 1, 0] = -STEP * front[:, 1, 0]
    return pictures, Motion(flow, front, torch.zeros(1, 2, 3, *flow.shape[2:]))


def drafted(times: list[float], present: tuple[bool, bool] = (True, True)) -> Tensor:
    """Frames ``q 3 height width`` of the moving square."""
    pictures, motion = moving_square()
    made = carried_pictures(pictures, torch.tensor([present]), motion, torch.tensor([times]))
    return made[0].transpose(0, 1)


def inner(left: float) -> tuple[slice, slice]:
    """The square's rows and columns without its edges, which the coarse grid blurs."""
    return slice(26, 38), slice(int(left) + 6, int(left) + SIDE - 6)


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True)])
def test_at_its_time_a_picture_is_itself(present: tuple[bool, bool]) -> None:
    frames, (pictures, _) = drafted([0.0, 1.0], present), moving_square()
    for number, is_given in enumerate(present):
        if is_given:  # the other picture counts for 1 in 2500 there
            torch.testing.assert_close(frames[number], pictures[0, number], atol=2e-3, rtol=0)


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("time", [0.25, 0.5, 0.75])
def test_what_is_in_front_is_on_its_way_and_nowhere_else(
    time: float, present: tuple[bool, bool]
) -> None:
    (frame,) = drafted([time], present)
    rows, columns = inner(16 + time * STEP)
    square = frame[:, rows, columns]
    torch.testing.assert_close(square, torch.full_like(square, FOREGROUND), atol=1e-3, rtol=0)
    is_far = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    is_far[12:52, int(16 + time * STEP) - 8 : int(16 + time * STEP) + SIDE + 8] = False
    away = frame[:, is_far]
    torch.testing.assert_close(away, torch.full_like(away, BACKGROUND), atol=1e-3, rtol=0)


def test_an_absent_picture_leaves_no_trace() -> None:
    pictures, motion = moving_square()
    times, present = torch.tensor([[0.3, 0.9]]), torch.tensor([[True, False]])
    expected = carried_pictures(pictures, present, motion, times)
    pictures[:, 1] = 1.0
    assert carried_pictures(pictures, present, motion, times).equal(expected)


def test_the_nearer_picture_counts_for_more() -> None:
    _, motion = moving_square()
    motion = Motion(*(torch.zeros_like(part) for part in motion[:3]))
    pictures = torch.stack([torch.zeros(3, HEIGHT, WIDTH), torch.ones(3, HEIGHT, WIDTH)])[None]
    present, times = torch.tensor([[True, True]]), torch.tensor([[0.25, 0.5, 0.75]])
    made = carried_pictures(pictures, present, motion, times)[0, 0, :, 0, 0]
    # shares of the squared nearness: 1 : 9, 1 : 1 and 9 : 1
    torch.testing.assert_close(made, torch.tensor([0.1, 0.5, 0.9]))


def test_what_is_hidden_for_sure_is_not_shown() -> None:
    agreement, elapsed = torch.tensor([0.0, 0.5, 1.0]), torch.tensor(0.5)
    torch.testing.assert_close(shown_share(agreement, elapsed), torch.tensor([0.0, 2 / 3, 1.0]))
    assert shown_share(agreement, torch.tensor(0.0)).eq(1).all()


@pytest.mark.parametrize(("time", "shift"), [(0.25, 8), (0.5, 16), (0.75, 24)])
def test_what_lies_beyond_one_picture_comes_from_the_other(time: float, shift: int) -> None:
    """A pan: each end shows a part of a wide picture that the other one does not."""
    wide = torch.rand(3, HEIGHT, WIDTH + 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = torch.stack([wide[:, :, :WIDTH], wide[:, :, 32:]])[None]
    flow = torch.zeros(1, 2, 2, HEIGHT // FINE, WIDTH // FINE)
    flow[:, 0, 0], flow[:, 1, 0] = -32.0, 32.0
    grid = flow.shape[2:]
    motion = Motion(flow, torch.zeros(1, 2, 1, *grid[1:]), torch.zeros(1, 2, 3, *grid))
    made = carried_pictures(pictures, torch.tensor([[True, True]]), motion, torch.tensor([[time]]))
    torch.testing.assert_close(made[0, :, 0], wide[:, :, shift : shift + WIDTH], atol=0.03, rtol=0)


def covered(shape: tuple[int, int], left: int, right: int) -> Tensor:
    """Something in front from the top to two thirds of the height, ``1 2 1 h w``."""
    front = torch.zeros(1, 2, 1, shape[0] // FINE, shape[1] // FINE)
    front[..., : front.shape[3] * 2 // 3, left // FINE : right // FINE] = 1.0
    return front


@pytest.mark.parametrize("shape", [(64, 128), (48, 208), (144, 64)])
def test_a_horizon_goes_on_behind_what_is_in_front(shape: tuple[int, int]) -> None:
    height, width = shape
    picture = torch.full((1, 2, 3, height, width), 0.8)
    picture[..., height // 2 :, :] = -0.6
    hidden = picture.clone()
    front = covered(shape, width // 2 - 8, width // 2 + 8)
    hidden[..., : height * 2 // 3, width // 2 - 8 : width // 2 + 8] = 0.1
    made = stand_ins(hidden, front)
    rows = torch.ones(height, dtype=torch.bool)
    rows[height // 2 - 8 : height // 2 + 8] = False  # blurred at the horizon itself
    difference = (made - picture)[..., rows, :].abs()
    assert difference.max() < 0.35
    assert difference.mean() < 0.02


def test_what_is_not_covered_stays_and_what_is_gets_nothing_from_itself() -> None:
    picture = torch.rand(1, 2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    front = covered((64, 128), 40, 60)
    far = [slice(None), slice(None), slice(None), slice(None), slice(80, None)]
    made = stand_ins(picture, front)
    torch.testing.assert_close(made[tuple(far)], picture[tuple(far)])
    other = picture.clone()
    other[..., :40, 40:60] = -1.0
    torch.testing.assert_close(stand_ins(other, front), made)


def test_with_everything_covered_nothing_stands_in() -> None:
    made = stand_ins(torch.ones(1, 2, 3, 32, 32), torch.ones(1, 2, 1, 8, 8))
    assert (made == 0).all()
