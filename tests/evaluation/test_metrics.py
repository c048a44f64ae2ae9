"""Metrics: answers known on paper, identity, ordering, and a pickle that must not run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.metrics import (
    MAX_PSNR,
    Interval,
    Lpips,
    bootstrap_interval,
    load_lpips,
    psnr,
    ssim,
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


def test_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([2.5] * 7) == Interval(2.5, 2.5, 2.5)
    assert bootstrap_interval([2.5]) == Interval(2.5, 2.5, 2.5)


def test_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    mean, low, high = bootstrap_interval(values, num_resamples=4000)
    half_width = 1.96 * values.std() / 400**0.5
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half_width, abs=0.03)
    assert high == pytest.approx(mean + half_width, abs=0.03)


def test_interval_depends_on_nothing_but_values_and_seed() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "options"), [([], {}), ([1.0], {"level": 1.0}), ([1.0], {"num_resamples": 0})]
)
def test_interval_of_nothing_is_refused(values, options) -> None:
    with pytest.raises(InputError, match="at least"):
        bootstrap_interval(values, **options)
