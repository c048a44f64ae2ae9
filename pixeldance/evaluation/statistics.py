"""How sure the numbers are: bootstrap intervals of means and of paired ratios, Wilson's of shares.

Clips are what is drawn again, so an interval says what other clips of the same suite might give;
it says nothing about other suites.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pixeldance.errors import InputError

__all__ = [
    "Interval",
    "bootstrap_interval",
    "bootstrap_ratio",
    "wilson_interval",
]

LEVEL = 0.95
NUM_RESAMPLES = 10_000

Values = Sequence[float] | npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A number and where it may lie."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Values, *, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
        values: One number for each clip, at least one.
        level: Confidence level in (0, 1).
        num_resamples: How often to draw as many values again, at least 1.
        seed: Decides the draws.

    Returns:
        The mean of the values and the interval.

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3.
    """
    array = _numbers(values)
    draws = _draws(len(array), level, num_resamples, seed)
    low, high = np.quantile(array[draws].mean(axis=1), _tails(level))
    return Interval(float(array.mean()), float(low), float(high))


def bootstrap_ratio(
    values: Values,
    others: Values,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of mean / mean, both of the same clips.

    Each draw takes a clip's two numbers together: how much the clips differ among themselves
    cancels out.

    Args:
        values: One number for each clip, at least one.
        others: The numbers to compare with, of the same clips in the same order, above 0.
        level: Confidence level in (0, 1).
        num_resamples: How often to draw as many clips again, at least 1.
        seed: Decides the draws.

    Returns:
        The ratio of the means and the interval.

    Raises:
        InputError: If the lists differ in length, or a number that is divided by is not above 0.

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", sections 10.3 and 13.3.
    """
    above, below = _numbers(values), _numbers(others)
    if len(above) != len(below) or below.min() <= 0:
        raise InputError(
            f"A paired ratio needs two lists of equal length and numbers above 0 to divide by, got "
            f"{len(above)} and {len(below)} numbers, the smallest divisor {below.min():g}."
        )
    draws = _draws(len(above), level, num_resamples, seed)
    ratios = above[draws].mean(axis=1) / below[draws].mean(axis=1)
    low, high = np.quantile(ratios, _tails(level))
    return Interval(float(above.mean() / below.mean()), float(low), float(high))


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % interval of a share; unlike the bootstrap's it has a width at 0 and 1 too.

    Args:
        successes: How many were right, 0 to ``trials``.
        trials: How many there were, at least 1.

    Returns:
        The share and the interval.

    Raises:
        InputError: If the counts are out of range.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= trials or trials < 1:
        raise InputError(
            f"A share needs 0 <= successes <= trials, trials >= 1, got {successes} of {trials}."
        )
    share = successes / trials
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z
        * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
        / (1 + z * z / trials)
    )
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def _numbers(values: Values) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError(
            f"values must be a list of at least one finite number, got shape {array.shape}."
        )
    return array


def _draws(count: int, level: float, num_resamples: int, seed: int) -> npt.NDArray[np.int64]:
    if not 0 < level < 1 or num_resamples < 1:
        raise InputError(
            "level must be between 0 and 1 and num_resamples at least 1, "
            f"got {level} and {num_resamples}."
        )
    return np.random.default_rng(seed).integers(0, count, (num_resamples, count))


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
