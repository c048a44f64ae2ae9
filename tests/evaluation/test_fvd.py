"""FVD: distances of distributions known on paper, and the network as published."""

import numpy as np
import pytest

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.fvd import I3d, frechet_distance, fvd_floor, load_i3d


@pytest.fixture(scope="module")
def i3d() -> I3d:
    try:
        return load_i3d()
    except DataError as error:
        pytest.skip(f"the weights of I3D are missing: {error}")


def whitened(num_clips: int, num_features: int, seed: int = 0) -> np.ndarray:
    """Features with mean 0 and covariance exactly 1."""
    features = np.random.default_rng(seed).normal(size=(num_clips, num_features))
    features -= features.mean(axis=0)
    orthogonal, _ = np.linalg.qr(features)
    return orthogonal * np.sqrt(num_clips - 1)


def test_equal_sets_are_at_distance_zero() -> None:
    features = np.random.default_rng(0).normal(size=(12, 40)) * 30  # fewer clips than features
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-8)


def test_a_shift_costs_its_square() -> None:
    features = whitened(50, 4)
    assert frechet_distance(features, features + np.array([3, 0, 4, 0])) == pytest.approx(25)


def test_a_scale_costs_the_square_of_the_change_of_the_deviation() -> None:
    features = whitened(50, 2)
    assert frechet_distance(features, features * [3, 0.5]) == pytest.approx(2**2 + 0.5**2)


def test_a_turn_is_told_from_none() -> None:
    # Covariances diag(9, 1) and diag(1, 9): 20 - 2 tr sqrt(diag(9, 9)) = 20 - 12.
    features = whitened(50, 2)
    assert frechet_distance(features * [3, 1], features * [1, 3]) == pytest.approx(8)


def test_covariances_that_do_not_commute() -> None:
    # tr sqrt(A B) of 2 x 2 matrices: sqrt(tr(A B) + 2 sqrt(det(A B))).
    mix = np.array([[1.0, 0.0], [2.0, 1.0]])
    features = whitened(60, 2)
    first, second = features * [2, 1], features @ mix
    a, b = np.diag([4.0, 1.0]), mix.T @ mix
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(first, second) == pytest.approx(np.trace(a) + np.trace(b) - 2 * root)


def test_sets_of_different_numbers_of_clips() -> None:
    assert frechet_distance(whitened(50, 3), whitened(20, 3, seed=1) + 1) == pytest.approx(3)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least 2 clips"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "finite"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "got 3 and 4"),
        (np.zeros(5), np.zeros(5), "one row each"),
    ],
)
def test_features_that_do_not_match_are_refused(first, second, message: str) -> None:
    with pytest.raises(InputError, match=message):
        frechet_distance(first, second)


def test_the_floor_falls_with_the_number_of_clips_and_follows_the_seed() -> None:
    features = np.random.default_rng(0).normal(size=(400, 5))
    few, many = fvd_floor(features[:40]), fvd_floor(features)
    assert 0 < many < few / 3
    assert fvd_floor(features) == many
    assert fvd_floor(features, seed=1) != many


def test_the_floor_is_the_distance_of_two_halves() -> None:
    # Both halves of whatever split have two clips, one at 0 and one at 1, or are twice the same.
    same = np.repeat([[0.0], [1.0]], 2, axis=0)
    distances = {round(fvd_floor(same, seed=seed), 6) for seed in range(20)}
    assert distances == {0.0, 1.0}


def pattern(num_frames: int) -> np.ndarray:
    """A bright bar that moves over coloured stripes."""
    rows, columns = np.mgrid[:48, :64]
    clip = np.zeros((num_frames, 48, 64, 3))
    for number, frame in enumerate(clip):
        frame[..., 0] = 127 + 100 * np.sin(rows / 3)
        frame[..., 1] = 127 + 100 * np.sin(columns / 5)
        frame[:, 4 * number : 4 * number + 12] = 240
    return clip.astype(np.uint8)


@pytest.mark.slow
def test_logits_are_those_of_the_published_network(i3d: I3d) -> None:
    # Made with another port of the same weights, which agrees with the original code in JAX.
    logits = i3d.features([pattern(9)])
    assert logits.shape == (1, 400)
    found = logits[0, [0, 100, 200, 300, 399]]
    assert found == pytest.approx([3.5615, 2.3534, -3.7189, -1.7274, 4.9183], abs=1e-3)


@pytest.mark.parametrize(
    ("clip", "message"),
    [(pattern(8), "at least 9 frames, got 8"), (pattern(9) / 255, "uint8")],
)
def test_clips_that_the_network_cannot_see_are_refused(clip, message: str) -> None:
    with pytest.raises(InputError, match=message):
        I3d({}).features([clip])


def test_no_clips_have_no_features() -> None:
    assert I3d({}).features([]).shape == (0, 400)
