"""Metrics of clips: against the truth, and alone.

Against the truth: PSNR, SSIM (LPIPS has its own module). Alone: jumps at the ends, colour drift,
stillness, loop seam. All take frames as users get them: ``frames height width 3``, uint8.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.peers import Frames, check_clip

MAX_PSNR = 100.0
"""What equal pictures get, in place of infinity, so that means stay finite."""


_STEP_FLOOR = 0.25
_VISIBLE_CHANGE = 2.0
_CELL = 8


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal-to-noise ratio in dB: of each pair of frames, then the mean.

    Args:
        first: One clip.
        second: Another of the same shape.

    Returns:
        Higher is more alike; at most ``MAX_PSNR``.
    """
    check_pair(first, second)
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
    check_pair(first, second)
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


def end_jump_ratio(frames: Frames, *, window: int = 5) -> float:
    """How much bigger the last step between frames is than the typical step just before it.

    A step is the mean absolute change of all pixel values from one frame to the next, in grey
    levels of 255; the typical step is the median of the ``window`` steps before the last one. The
    ratio is ``(last + 0.25) / (typical + 0.25)``: the quarter of a grey level, less than anyone
    sees, gives still clips 1 and keeps noise from being divided by noise.

    Args:
        frames: A clip of at least 3 frames.
        window: Steps that count as just before, at least 1; fewer if there are not as many.

    Returns:
        1 for no jump, more for a jump, less where the motion comes to rest.
    """
    return _jump_ratio(_steps(frames, num_frames=3), window)


def start_jump_ratio(frames: Frames, *, window: int = 5) -> float:
    """How much bigger the first step between frames is than the typical step just after it.

    Args:
        frames: A clip of at least 3 frames.
        window: Steps that count as just after, at least 1; fewer if there are not as many.

    Returns:
        As :func:`end_jump_ratio` of the clip played in reverse.
    """
    return _jump_ratio(_steps(frames, num_frames=3)[::-1], window)


def loop_seam(frames: Frames) -> float:
    """How much bigger the step from the last frame back to the first is than the typical step.

    Args:
        frames: A clip of at least 2 frames.

    Returns:
        ``(seam + 0.25) / (median of all steps + 0.25)``, with steps as in :func:`end_jump_ratio`;
        about 1 for a clip that loops without a seam.
    """
    typical = np.median(_steps(frames, num_frames=2))
    seam = _step(frames[-1], frames[0])
    return float((seam + _STEP_FLOOR) / (typical + _STEP_FLOOR))


def stillness(frames: Frames) -> float:
    """Share of steps between frames in which nothing changes visibly.

    A step is still if no cell of 8x8 pixels (smaller at the edges) changes its mean by more than
    2 grey levels of 255 in any colour: about 1 % of the range, where a change of large areas
    begins to be seen, while the mean hides the noise of single pixels.

    Args:
        frames: A clip of at least 2 frames.

    Returns:
        From 0 (it always moves) to 1 (it never does).
    """
    _check_length(frames, 2)
    cells = [_cell_means(frame) for frame in frames]
    changes = [np.abs(two - one).max() for one, two in itertools.pairwise(cells)]
    return float(np.mean(np.asarray(changes) <= _VISIBLE_CHANGE))


def colour_drift(frames: Frames, reference: Frames | None = None) -> float:
    """Difference of the mean colour (in CIELAB) from what it should be, the mean over the frames.

    Args:
        frames: A clip of at least 2 frames.
        reference: The truth, of the same shape: each frame is compared with its own. Without it,
            the frames after the first are compared with the first, and what comes into the
            picture counts as drift too.

    Returns:
        CIEDE2000; 0 for none, about 1 where it is just noticeable side by side.

    Raises:
        DataError: If scikit-image is not installed.

    References:
        Sharma, Wu and Dalal 2005, "The CIEDE2000 color-difference formula".
    """
    try:
        from skimage import color
    except ImportError as error:
        raise DataError(
            "Colour drift needs scikit-image. Install it: pip install 'pixeldance[eval]'."
        ) from error
    _check_length(frames, 2)
    if reference is not None:
        check_pair(frames, reference)
    rgb2lab: Any = color.rgb2lab  # has no annotations
    differences: Any = color.deltaE_ciede2000

    def means(clip: Frames) -> npt.NDArray[np.float64]:
        return np.stack([rgb2lab(frame).mean(axis=(0, 1)) for frame in clip])

    found = means(frames)
    if reference is None:
        return float(differences(found[1:], found[:1]).mean())
    return float(differences(found, means(reference)).mean())


def check_pair(first: Frames, second: Frames) -> None:
    """Check that two clips can be compared.

    Args:
        first: One clip.
        second: Another.

    Raises:
        InputError: If one is no clip, or their shapes differ.
    """
    check_clip(first)
    check_clip(second)
    if first.shape != second.shape:
        raise InputError(f"The clips must have one shape, got {first.shape} and {second.shape}.")


def _check_length(frames: Frames, num_frames: int) -> None:
    check_clip(frames)
    if len(frames) < num_frames:
        raise InputError(f"The clip must have at least {num_frames} frames, got {len(frames)}.")


def _step(one: Frames, other: Frames) -> float:
    """Mean absolute change, in grey levels."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def _steps(frames: Frames, *, num_frames: int) -> npt.NDArray[np.float64]:
    """All steps between neighbours of a clip of at least ``num_frames``."""
    _check_length(frames, num_frames)
    return np.array([_step(one, other) for one, other in itertools.pairwise(frames)])


def _jump_ratio(steps: npt.NDArray[np.float64], window: int) -> float:
    """The last step against those before it."""
    if window < 1:
        raise InputError(f"window must be at least 1, got {window}.")
    typical = np.median(steps[-1 - window : -1])
    return float((steps[-1] + _STEP_FLOOR) / (typical + _STEP_FLOOR))


def _cell_means(frame: Frames) -> npt.NDArray[np.float64]:
    """Mean colour of each cell."""
    height, width = frame.shape[:2]
    rows, columns = np.arange(0, height, _CELL), np.arange(0, width, _CELL)
    sums = np.add.reduceat(np.add.reduceat(frame, rows, 0, np.float64), columns, 1)
    areas = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    means: npt.NDArray[np.float64] = sums / areas[..., None]
    return means
