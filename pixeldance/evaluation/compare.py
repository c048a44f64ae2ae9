"""Two clip files against each other: brought to one shape if asked for, measured frame by frame."""

import math
import statistics
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from PIL import Image

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.metrics import psnr, ssim
from pixeldance.evaluation.peers import Frames
from pixeldance.video import ClipFile

__all__ = ["Comparison", "compare_frames", "match_clip"]

MIN_SSIM_SIDE = 11
MIN_LPIPS_SIDE = 32


class Comparison(NamedTuple):
    """How alike two clips are."""

    per_frame: Mapping[str, list[float]]
    """``psnr`` in dB, ``ssim``, ``lpips``: a value per frame. Those that cannot be computed here
    are missing."""
    missing: Mapping[str, str]
    """Why, by the name of the metric."""

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the frames of each metric."""
        return {name: statistics.fmean(values) for name, values in self.per_frame.items()}


def compare_frames(first: Frames, second: Frames) -> Comparison:
    """Measure two clips of one shape frame by frame.

    Args:
        first: One clip.
        second: The other.

    Returns:
        PSNR always, SSIM and LPIPS where their packages are installed and the frames large enough.
    """
    per_frame = {"psnr": _of_each(psnr, first, second)}
    missing = {}
    side = min(first.shape[1:3])
    if side < MIN_SSIM_SIDE:
        missing["ssim"] = f"needs sides of at least {MIN_SSIM_SIDE} pixels"
    else:
        try:
            per_frame["ssim"] = _of_each(ssim, first, second)
        except DataError as error:
            missing["ssim"] = str(error)
    if side < MIN_LPIPS_SIDE:
        missing["lpips"] = f"needs sides of at least {MIN_LPIPS_SIDE} pixels"
    else:
        from pixeldance.evaluation.lpips import load_lpips

        try:
            per_frame["lpips"] = _of_each(load_lpips(), first, second)
        except DataError as error:
            missing["lpips"] = str(error)
    return Comparison(per_frame, missing)


def match_clip(
    first: ClipFile, second: ClipFile, *, convert: bool
) -> tuple[Frames, Frames, list[str]]:
    """Bring two clips to one shape, if they do not have it and that is asked for.

    Args:
        first: The clip whose size and frame rate count.
        second: The clip that is converted: each time of the first shows the frame that the second
            shows then; its size by Lanczos.
        convert: Whether that is allowed.

    Returns:
        The frames of both, and what was done, in words.

    Raises:
        InputError: If they differ and ``convert`` is False.
    """
    if not convert:
        for name, one, other in (
            ("frames per second", first.fps, second.fps),
            ("frames", len(first.frames), len(second.frames)),
            ("sizes", _size(first), _size(second)),
        ):
            if one != other:
                raise InputError(
                    f"The clips have different {name}, {one} and {other}. Add --convert to bring "
                    "the second one to the first one's size and times."
                )
        return first.frames, second.frames, []
    done = []
    frames = second.frames
    if first.fps != second.fps:
        frames = frames[_times(len(frames), second.fps, first.fps)]
        done.append(f"the second from {second.fps} to {first.fps} frames per second")
    count = min(len(first.frames), len(frames))
    if len(first.frames) != len(frames):
        done.append(f"both cut to {count} frames")
    frames = frames[:count]
    if _size(first) != _size(second):
        frames = _resized(frames, *first.frames.shape[1:3])
        done.append(f"the second from {_size(second)} to {_size(first)} pixels")
    return first.frames[:count], frames, done


def _of_each(
    metric: Callable[[Frames, Frames], float], first: Frames, second: Frames
) -> list[float]:
    return [float(metric(first[i : i + 1], second[i : i + 1])) for i in range(len(first))]


def _size(clip: ClipFile) -> str:
    return f"{clip.frames.shape[2]} x {clip.frames.shape[1]}"


def _times(num_frames: int, fps: Fraction, new_fps: Fraction) -> list[int]:
    """Which frame is on the screen at each time of another frame rate."""
    count = math.ceil(num_frames * new_fps / fps)
    return [int(i * fps / new_fps) for i in range(count)]


def _resized(frames: Frames, height: int, width: int) -> Frames:
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
            for frame in frames
        ]
    )
