"""Metrics: answers known on paper, identity, ordering, and a pickle that must not run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.lpips import Lpips, load_lpips
from pixeldance.evaluation.metrics import (
    MAX_PSNR,
    colour_drift,
    end_jump_ratio,
    loop_seam,
    psnr,
    ssim,
    start_jump_ratio,
    stillness,
)
from pixeldance.evaluation.peers import Frames
from pixeldance.models.perceptual import read_arrays


def blocks(seed: int, num_frames: int = 2, side: int = 64) -> Frames:
    """Random blocks of colour, 8 pixels wide."""
    small = np.random.default_rng(seed).integers(40, 216, (num_frames, side // 8, side // 8, 3))
    return small.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def noisy(frames: Frames, amount: float) -> Frames:
    noise = np.random.default_rng(1).normal(0, amount, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    try:
        return load_lpips()
    except DataError as error:
        pytest.skip(f"the weights of LPIPS are missing: {error}")


def test_psnr_of_a_constant_difference() -> None:
    grey = np.full((3, 4, 5, 3), 100, np.uint8)
    assert psnr(grey, grey + 1) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert psnr(grey + 51, grey) == pytest.approx(13.9794, abs=1e-4)  # 20 log10(5)


def test_psnr_is_the_mean_over_frames_not_of_the_pooled_error() -> None:
    grey = np.full((2, 4, 4, 3), 100, np.uint8)
    other = grey.copy()
    other[0] += 1
    other[1] += 10
    expected = 20 * np.log10(255) - 10  # 0 and 20 dB less: their mean
    assert psnr(grey, other) == pytest.approx(expected)


def test_psnr_of_equal_clips_is_finite() -> None:
    assert psnr(blocks(0), blocks(0)) == MAX_PSNR


def test_ssim_is_one_for_equal_clips_and_falls_with_noise() -> None:
    clip = blocks(0)
    assert ssim(clip, clip) == pytest.approx(1.0)
    assert 1 > ssim(clip, noisy(clip, 5)) > ssim(clip, noisy(clip, 40)) > 0


def test_ssim_of_two_constant_clips() -> None:
    # Without structure only the luminance term is left, with C1 = (0.01 * 255) ** 2.
    dark, bright = np.full((1, 16, 16, 3), 2, np.uint8), np.full((1, 16, 16, 3), 5, np.uint8)
    c1 = 2.55**2
    expected = (2 * 2 * 5 + c1) / (2**2 + 5**2 + c1)
    assert ssim(dark, bright) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_clips_that_do_not_match_are_refused(metric) -> None:
    clip = blocks(0)
    with pytest.raises(InputError, match="one shape"):
        metric(clip, clip[:1])
    with pytest.raises(InputError, match="uint8"):
        metric(clip / 255, clip / 255)


def test_lpips_of_a_network_known_on_paper() -> None:
    # The first convolution looks at the centre pixel: red minus what grey gives, and its negative.
    # After scaling to length 1 a position is (1, 0) or (0, 1), so two clips that differ everywhere
    # are at squared difference (1, 1), which the head counts 0.25 and 0.5.
    weight = torch.zeros(2, 3, 11, 11)
    weight[0, 0, 5, 5], weight[1, 0, 5, 5] = 1.0, -1.0
    network = Lpips(
        convolutions=[(weight, torch.zeros(2))],
        heads=[torch.tensor([0.25, 0.5]).view(1, 2, 1, 1)],
    )
    bright, dark = np.full((2, 35, 35, 3), 200, np.uint8), np.full((2, 35, 35, 3), 20, np.uint8)
    assert network(bright, dark) == pytest.approx(0.75)
    assert network(bright, bright) == 0
    half = np.concatenate([bright[:1], dark[:1]])
    assert network(bright, half) == pytest.approx(0.375)  # mean over the frames


def test_lpips_orders_pictures_as_people_do(lpips: Lpips) -> None:
    clip = blocks(0)
    shifted = np.roll(clip, 1, axis=2)
    distances = [lpips(clip, other) for other in (clip, shifted, noisy(clip, 25), blocks(5))]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] < 0.5 * distances[3]


def test_lpips_is_symmetric(lpips: Lpips) -> None:
    one, other = blocks(0), blocks(5)
    assert lpips(one, other) == pytest.approx(lpips(other, one))


def test_arrays_survive_pickling(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps({"layer": {"bias": np.arange(3.0)}}, protocol=3))
    assert read_arrays(path)["layer"]["bias"].tolist() == [0, 1, 2]


class Malicious:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    path, marker = tmp_path / "weights.ckpt", tmp_path / "marker"
    # One command from outside numpy, one function of numpy's that writes a file.
    for attack in (Malicious(os.mkdir, str(marker)), Malicious(np.save, str(marker), 0)):
        path.write_bytes(pickle.dumps({"layer": attack}))
        with pytest.raises(DataError, match="only numpy arrays are allowed"):
            read_arrays(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({1: np.ones(9)})[:-20]])
def test_a_damaged_pickle_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.ckpt"):
        read_arrays(path)


def test_a_pickle_of_something_else_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="a list"):
        read_arrays(path)


def greys(*levels: int, side: int = 16) -> Frames:
    """Plain frames, one for each grey level."""
    column = np.array(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(column, (len(levels), side, side, 3)).copy()


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((10, 14, 18, 22, 26), 1),  # as big as those before it
        ((50, 50, 50, 50), 1),  # still
        ((10, 14, 18, 22, 34), 12.25 / 4.25),  # three times as big
        ((50, 50, 50, 40), 10.25 / 0.25),  # still, then a jump; changes have no sign
        ((10, 20, 30, 40, 40), 0.25 / 10.25),  # comes to rest
        ((10, 60, 64, 68, 72), 1),  # a cut long before the end is an outlier
        ((10, 20), None),
    ],
)
def test_end_jump_is_the_last_step_over_the_median_before_it(levels, expected) -> None:
    if expected is None:
        with pytest.raises(InputError, match="at least 3 frames, got 2"):
            end_jump_ratio(greys(*levels))
    else:
        assert end_jump_ratio(greys(*levels)) == pytest.approx(expected)
        assert start_jump_ratio(greys(*levels[::-1])) == pytest.approx(expected)


def test_end_jump_looks_back_as_far_as_it_is_told() -> None:
    clip = greys(0, 10, 20, 30, 32, 34, 36, 42)  # steps of 10, then of 2, then of 6
    assert end_jump_ratio(clip, window=3) == pytest.approx(6.25 / 2.25)
    assert end_jump_ratio(clip, window=50) == pytest.approx(6.25 / ((10 + 2) / 2 + 0.25))
    with pytest.raises(InputError, match="at least 1, got 0"):
        end_jump_ratio(clip, window=0)


def test_loop_seam_is_the_way_back_over_the_typical_step() -> None:
    assert loop_seam(greys(0, 5, 10, 5)) == pytest.approx(1)
    assert loop_seam(greys(0, 5, 10, 15)) == pytest.approx(15.25 / 5.25)
    assert loop_seam(greys(7, 7)) == pytest.approx(1)


def test_stillness_is_the_share_of_steps_without_visible_change() -> None:
    assert stillness(greys(9, 9, 9, 9)) == 1
    assert stillness(greys(9, 11, 14, 14, 20)) == 0.5  # a change by 2 is not seen, one by 3 is
    clip = greys(*[90] * 3, side=60)  # the last cells are only 4 pixels wide
    clip[1, -4:, -4:, 2] += 3
    assert stillness(clip) == 0
    assert stillness(noisy(greys(*[90] * 5, side=60)[:, :56, :56], 1.5)) == 1


def test_colour_drift_is_the_published_difference() -> None:
    # sRGB greys 119 and 124: L* 50.03 and 52.03; CIEDE2000 of greys is dL / S_L, about 2 / 1.0.
    drift = colour_drift(greys(119, 119, 124))
    assert drift == pytest.approx((0 + 2.0) / 2, abs=0.02)
    assert colour_drift(greys(80, 80)) == 0


def test_colour_drift_against_the_truth_ignores_what_the_truth_does() -> None:
    truth = greys(20, 60, 200)
    assert colour_drift(truth, truth) == 0
    assert colour_drift(truth) > 20
    made = greys(20, 60, 205)
    assert 0 < colour_drift(made, truth) < 2
    with pytest.raises(InputError, match="one shape"):
        colour_drift(truth, truth[:2])


def test_colour_drift_looks_at_mean_colours() -> None:
    clip = blocks(0)
    assert colour_drift(clip, clip[:, ::-1, ::-1]) == pytest.approx(0, abs=1e-6)
