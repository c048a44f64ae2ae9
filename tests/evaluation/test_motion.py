"""Motion: pictures moved by a known amount, and what cannot be measured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pixeldance.errors import InputError
from pixeldance.evaluation.motion import (
    CameraMotion,
    ObjectPath,
    classify_camera,
    classify_direction,
    fit_camera,
    track_object,
)
from pixeldance.evaluation.optical_flow import dense_flow, sample_backwards
from pixeldance.evaluation.peers import Frames

cv2 = pytest.importorskip("cv2", reason="optical flow needs the extra eval")

SIDE = 96
NUM_FRAMES = 7


def cloud(seed: int = 0, side: int = 3 * SIDE) -> torch.Tensor:
    """Smooth coloured noise, ``1 3 side side`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, side // 6, side // 6, generator=generator)
    return F.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)


def filmed(
    *, x: float = 0, y: float = 0, log_scale: float = 0, angle: float = 0, num_frames=NUM_FRAMES
) -> Frames:
    """A big picture through a camera; all parts are those from the first to the last frame.

    ``x`` and ``y`` are shares of the width and the height, ``angle`` is in radians.
    """
    plane = cloud()
    frames = []
    for part in np.linspace(0, 1, num_frames):
        zoom, turn = np.exp(-log_scale * part) / 3, angle * part
        cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
        theta = [[cos, -sin, 2 * x * part / 3], [sin, cos, 2 * y * part / 3]]
        grid = F.affine_grid(torch.tensor([theta]).float(), [1, 3, SIDE, SIDE], align_corners=False)
        view = F.grid_sample(plane, grid, align_corners=False)
        frames.append((view[0].permute(1, 2, 0) * 255).byte().numpy())
    return np.stack(frames)


def still() -> Frames:
    return np.repeat(filmed()[:1], NUM_FRAMES, axis=0)


def moving_square(path: list[tuple[int, int]], sides: list[int]) -> tuple[Frames, np.ndarray]:
    """A square of another texture on a background at rest, and its mask in the first frame."""
    frames = np.repeat(filmed()[:1] // 2, len(path), axis=0)
    pattern = (cloud(7)[0].permute(1, 2, 0) * 255).byte().numpy()
    mask = np.zeros((SIDE, SIDE), bool)
    for number, ((x, y), side) in enumerate(zip(path, sides, strict=True)):
        box = slice(y - side // 2, y - side // 2 + side), slice(x - side // 2, x - side // 2 + side)
        frames[number][box] = cv2.resize(pattern[:40, :40], (side, side))
        if number == 0:
            mask[box] = True
    return frames, mask


def test_flow_of_a_shift_is_the_shift() -> None:
    first, second = filmed(x=-3 / SIDE, y=2 / SIDE, num_frames=2)
    inner = dense_flow(first, second)[16:-16, 16:-16]
    assert np.median(inner, axis=(0, 1)) == pytest.approx([3, -2], abs=0.2)


def test_sampling_backwards_undoes_a_shift() -> None:
    picture = filmed()[0]
    flow = np.zeros((SIDE, SIDE, 2))
    flow[..., 0] = 5
    moved = sample_backwards(picture, flow)
    np.testing.assert_array_equal(moved[:, :-5], picture[:, 5:])
    np.testing.assert_array_equal(moved[:, -1], picture[:, -1])  # the edge is repeated


@pytest.mark.parametrize(
    ("motion", "part", "expected", "word"),
    [
        ({"x": 0.2}, "pan", 0.2, "pan right"),
        ({"x": -0.2}, "pan", -0.2, "pan left"),
        ({"y": 0.2}, "tilt", 0.2, "tilt down"),
        ({"y": -0.2}, "tilt", -0.2, "tilt up"),
        ({"log_scale": 0.4}, "zoom", 0.4, "zoom in"),
        ({"log_scale": -0.4}, "zoom", -0.4, "zoom out"),
        ({"angle": -0.3}, "roll", np.degrees(0.3), "roll right"),
        ({"angle": 0.3}, "roll", -np.degrees(0.3), "roll left"),
    ],
)
def test_camera_is_measured_and_named(motion, part: str, expected: float, word: str) -> None:
    measured = fit_camera(filmed(**motion))
    assert getattr(measured, part) * measured.num_steps == pytest.approx(expected, rel=0.1)
    assert classify_camera(measured) == word


def test_a_still_clip_is_static_and_so_is_one_without_texture() -> None:
    plain = np.full((5, 64, 64, 3), 90, np.uint8)
    plain[-1] = 120  # it only gets brighter
    assert classify_camera(fit_camera(still())) == "static"
    assert fit_camera(plain) == CameraMotion(0, 0, 0, 0, num_steps=4)


def test_the_camera_is_that_of_the_greater_part() -> None:
    frames, _ = moving_square([(28 + 6 * n, 40) for n in range(NUM_FRAMES)], [40] * NUM_FRAMES)
    assert classify_camera(fit_camera(frames)) == "static"


@pytest.mark.parametrize(("share", "word"), [(0.35, "static"), (0.45, "pan right")])
def test_a_camera_counts_from_two_fifths_of_the_smallest_motion(share: float, word: str) -> None:
    assert classify_camera(CameraMotion(0.125 * share / 8, 0, 0, 0, num_steps=8)) == word


@pytest.mark.parametrize(
    ("step", "word"),
    [((5, 0), "right"), ((-5, 0), "left"), ((0, 4), "down"), ((0, -4), "up"), ((0, 0), "still")],
)
def test_objects_are_followed(step: tuple[int, int], word: str) -> None:
    places = [(48 + (n - 3) * step[0], 48 + (n - 3) * step[1]) for n in range(NUM_FRAMES)]
    frames, mask = moving_square(places, [30] * NUM_FRAMES)
    path = track_object(frames, mask)
    assert path.x * SIDE == pytest.approx([n * step[0] for n in range(NUM_FRAMES)], abs=1.5)
    assert path.y * SIDE == pytest.approx([n * step[1] for n in range(NUM_FRAMES)], abs=1.5)
    assert classify_direction(path) == word
    assert classify_direction(track_object(frames[:1].repeat(5, axis=0), mask)) == "still"


@pytest.mark.parametrize(
    ("sides", "word"), [(range(24, 45, 3), "toward"), (range(42, 21, -3), "away")]
)
def test_growing_and_shrinking_are_told(sides: range, word: str) -> None:
    frames, mask = moving_square([(48, 48)] * NUM_FRAMES, list(sides))
    path = track_object(frames, mask)
    assert path.log_scale[-1] == pytest.approx(np.log(sides[-1] / sides[0]), rel=0.3)
    assert classify_direction(path) == word


def test_an_object_is_not_lost_where_the_flow_does_not_see_it() -> None:
    # A thin bar is less than the flow's patches: they follow what is behind it, which rests.
    frames = still() // 2
    for number, frame in enumerate(frames):
        frame[30 - 4 * number : 60 - 4 * number, 40:44] = (250, 200, 40)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30:60, 40:44] = True
    assert track_object(frames, mask).y[-1] == pytest.approx(-24 / SIDE, abs=0.02)


def test_an_object_that_dissolves_is_lost() -> None:
    frames, mask = moving_square([(30 + 5 * n, 48) for n in range(NUM_FRAMES)], [30] * NUM_FRAMES)
    background = still()[0] // 2
    assert classify_direction(track_object(frames, mask)) == "right"
    frames[2:] = background
    assert classify_direction(track_object(frames, mask)) == "lost"


def test_a_path_has_parts() -> None:
    there_and_back = np.array([0, 0.2, 0.4, 0.2, 0.0])
    path = ObjectPath(there_and_back, *np.zeros((3, 5)))
    words = [classify_direction(p) for p in (path, path.part(0, 2), path.part(2, 4))]
    assert words == ["still", "right", "left"]


def test_what_cannot_be_measured_is_refused() -> None:
    clip = still()
    with pytest.raises(InputError, match="at least 2 frames"):
        fit_camera(clip[:1])
    with pytest.raises(InputError, match="at least 16 pixels"):
        fit_camera(clip[:, :12])
    with pytest.raises(InputError, match="at least 12 pixels"):
        track_object(clip, np.zeros((SIDE, SIDE), bool))
    with pytest.raises(InputError, match=r"bool of shape \(96, 96\)"):
        track_object(clip, np.ones((SIDE, 5), bool))
