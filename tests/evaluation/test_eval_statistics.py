"""Intervals whose answers are known on paper."""

import pytest

from pixeldance.errors import InputError
from pixeldance.evaluation.statistics import bootstrap_interval, bootstrap_ratio, wilson_interval


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25, 0.25)


def test_two_values_give_three_possible_means() -> None:
    # Means of two draws are 0, 1 and 2 with chances 1/4, 1/2 and 1/4: both tails are the ends.
    assert bootstrap_interval([0, 2]) == (1, 0, 2)
    assert bootstrap_interval([0, 2], level=0.4) == (1, 1, 1)


def test_a_large_sample_meets_the_normal_interval() -> None:
    mean, low, high = bootstrap_interval([0, 1] * 50)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.01)  # 0.5 -+ 1.96 * 0.5 / sqrt(100)


def test_a_constant_ratio_is_certain_however_much_the_clips_differ() -> None:
    others = [0.1, 0.5, 3.0, 20.0]
    ratio = bootstrap_ratio([0.75 * other for other in others], others)
    assert ratio == pytest.approx((0.75, 0.75, 0.75))


def test_the_ratio_is_that_of_the_means() -> None:
    # Draws of two pairs have the ratios 1/1, 5/3 and 4/2: both tails are the ends.
    assert bootstrap_ratio([1, 4], [1, 2]) == pytest.approx((5 / 3, 1, 2))


def test_equal_seeds_give_equal_draws() -> None:
    values = [0.3, 0.1, 0.9, 0.4, 0.8, 0.2]
    one = bootstrap_interval(values, num_resamples=50, seed=1)
    assert one == bootstrap_interval(values, num_resamples=50, seed=1)
    assert one != bootstrap_interval(values, num_resamples=50, seed=2)


def test_shares_have_a_width_at_the_ends() -> None:
    # At a share of 1 the lower end is 1 / (1 + z^2 / n).
    assert wilson_interval(4, 4) == pytest.approx((1, 0.510109, 1), abs=1e-6)
    assert wilson_interval(0, 4) == pytest.approx((0, 0, 1 - 0.510109), abs=1e-6)
    assert wilson_interval(5, 10) == pytest.approx((0.5, 0.236593, 0.763407), abs=1e-6)


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, float("nan")]])
def test_other_than_a_list_of_numbers_is_refused(values: list) -> None:
    with pytest.raises(InputError, match="at least one finite number"):
        bootstrap_interval(values)


def test_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        bootstrap_interval([1.0], level=1)
    with pytest.raises(InputError, match="at least 1"):
        bootstrap_interval([1.0], num_resamples=0)
    with pytest.raises(InputError, match="2 and 1 numbers"):
        bootstrap_ratio([1, 2], [1])
    with pytest.raises(InputError, match="above 0"):
        bootstrap_ratio([1, 2], [1, 0])
    with pytest.raises(InputError, match="5 of 4"):
        wilson_interval(5, 4)
