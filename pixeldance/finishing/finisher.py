"""More frames and more pixels for a clip, with the cost known beforehand and the recipe kept."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pixeldance.errors import InputError
from pixeldance.finishing.rife import PADDED_MULTIPLE, RIFE_SHA256, Between, load_rife
from pixeldance.finishing.upscaling import (
    UPSCALE_FACTORS,
    UPSCALER_SHA256,
    Upscaler,
    load_upscaler,
    upscale_frames,
)
from pixeldance.models.devices import choose_device
from pixeldance.video import frames_sha256
from pixeldance.video.recipe import check_frames

__all__ = [
    "FPS_FACTORS",
    "Estimate",
    "FinishedSize",
    "Finisher",
    "finished_size",
    "load_finisher",
    "with_finishing",
]

FPS_FACTORS = (2, 4)
MAX_SIDE = 8192
MAX_FINISHED_BYTES = 2 * 1024**3

# Measured peak memory (torch 2.13, CPU), rounded up.
_PROCESS_BYTES = 350 * 1024**2
_RIFE_BYTES_PER_PIXEL = 1100
_UPSCALER_BYTES_PER_PIXEL = 1800
_PROBE_SIDE = 128
_NUM_PROBES = 3


class FinishedSize(NamedTuple):
    """What comes out of finishing a clip."""

    num_frames: int
    height: int
    width: int
    fps: Fraction


class Estimate(NamedTuple):
    """What finishing a clip will take."""

    seconds: float
    """From a probe on this machine; the larger the pictures, the more it is too low."""
    memory_bytes: int
    """Peak, of memory where the networks run and of the frames."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finisher:
    """Loaded networks.

    Attributes:
        fps_factor: How many times as many frames per second; 1 for as many.
        upscale: How many times as high and wide; 1 for as large.
        between: Computes frames in between, if there shall be more.
        upscaler: Enlarges, if they shall be larger.
    """

    fps_factor: int = 1
    upscale: int = 1
    between: Between | None = None
    upscaler: Upscaler | None = None

    def estimate(self, frames: npt.NDArray[np.uint8]) -> Estimate:
        """Find out what finishing a clip will take, by a probe on small pictures.

        Args:
            frames: The clip, ``frames height width 3``, uint8, sRGB.

        Returns:
            The time and the memory.
        """
        num_frames, height, width = frames.shape[:3]
        size = finished_size(frames.shape, 1, fps_factor=self.fps_factor, upscale=self.upscale)
        seconds, network_bytes = 0.0, 0
        probe = np.zeros((_PROBE_SIDE, _PROBE_SIDE, 3), np.uint8)
        if self.between is not None:
            pixels = _padded(height) * _padded(width)
            between = self.between
            per_pixel = _seconds_of(lambda: between(probe, probe, 0.5)) / _PROBE_SIDE**2
            seconds += (size.num_frames - num_frames) * pixels * per_pixel
            network_bytes = pixels * _RIFE_BYTES_PER_PIXEL
        if self.upscaler is not None:
            upscaler = self.upscaler
            per_pixel = (
                _seconds_of(lambda: upscale_frames(upscaler, probe[None], self.upscale))
                / _PROBE_SIDE**2
            )
            seconds += size.num_frames * height * width * per_pixel
            network_bytes = max(network_bytes, height * width * _UPSCALER_BYTES_PER_PIXEL)
        frame_bytes = frames.nbytes + size.num_frames * height * width * 3
        frame_bytes += size.num_frames * size.height * size.width * 3
        return Estimate(seconds, _PROCESS_BYTES + network_bytes + frame_bytes)

    def run(
        self,
        frames: npt.NDArray[np.uint8],
        *,
        on_frame: Callable[[int, int], object] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Finish a clip: first more frames, then more pixels.

        Args:
            frames: The clip, ``frames height width 3``, uint8, sRGB.
            on_frame: Called with the frames computed so far and in all.

        Returns:
            The finished clip. Without enlarging, the frames given are among its frames, unchanged
            and at their times.

        Raises:
            InputError: If the frames are no clip, or too few or too large.
        """
        size = finished_size(frames.shape, 1, fps_factor=self.fps_factor, upscale=self.upscale)
        report = on_frame or (lambda *_: None)
        num_between = size.num_frames - len(frames)
        total = num_between + (size.num_frames if self.upscaler is not None else 0)
        if self.between is not None:
            frames = self._with_between(frames, lambda done: report(done, total))
        if self.upscaler is not None:
            large = np.empty((size.num_frames, size.height, size.width, 3), np.uint8)
            for i in range(size.num_frames):
                large[i] = upscale_frames(self.upscaler, frames[i : i + 1], self.upscale)[0]
                report(num_between + i + 1, total)
            frames = large
        return frames

    def _with_between(
        self, frames: npt.NDArray[np.uint8], on_frame: Callable[[int], object]
    ) -> npt.NDArray[np.uint8]:
        assert self.between is not None
        factor = self.fps_factor
        dense = np.empty(((len(frames) - 1) * factor + 1, *frames.shape[1:]), np.uint8)
        dense[::factor] = frames
        done = 0
        for i in range(len(frames) - 1):
            for part in range(1, factor):
                dense[i * factor + part] = self.between(frames[i], frames[i + 1], part / factor)
                done += 1
                on_frame(done)
        return dense


def finished_size(
    shape: tuple[int, ...], fps: Fraction | int, *, fps_factor: int, upscale: int
) -> FinishedSize:
    """What finishing will make of a clip.

    Args:
        shape: Frames, height, width and 3.
        fps: Frames per second.
        fps_factor: 1, 2 or 4. N frames become ``factor * (N - 1) + 1``: nothing comes after the
            last one.
        upscale: 1, 2 or 4.

    Returns:
        Its size.

    Raises:
        InputError: If a factor is another, or the result would be too large.
    """
    if fps_factor not in (1, *FPS_FACTORS):
        raise InputError(f"The frame rate can be multiplied by 2 or 4, got {fps_factor}.")
    if upscale not in (1, *UPSCALE_FACTORS):
        raise InputError(f"A clip can be enlarged 2 or 4 times, got {upscale}.")
    num_frames, height, width = shape[:3]
    if fps_factor > 1 and num_frames < 2:
        raise InputError("A clip of one frame has no frames in between. Leave fps_factor at 1.")
    size = FinishedSize(
        fps_factor * (num_frames - 1) + 1,
        upscale * height,
        upscale * width,
        fps * Fraction(fps_factor),
    )
    if max(size.height, size.width) > MAX_SIDE:
        raise InputError(
            f"The finished clip would have {size.width} x {size.height} pixels, at most {MAX_SIDE} "
            "a side are allowed. Enlarge it less."
        )
    if size.num_frames * size.height * size.width * 3 > MAX_FINISHED_BYTES:
        raise InputError(
            f"The finished clip would have {size.num_frames} frames of {size.width} x {size.height}"
            f" pixels, more than {MAX_FINISHED_BYTES // 1024**2} MiB. Use smaller factors, or cut "
            "the clip."
        )
    return size


def load_finisher(*, fps_factor: int = 1, upscale: int = 1, device: str = "auto") -> Finisher:
    """Load the networks that finishing needs.

    Args:
        fps_factor: 1, 2 or 4 times as many frames per second.
        upscale: 1, 2 or 4 times as high and wide.
        device: Where they run; ``auto`` takes a CUDA device if there is one.

    Returns:
        The networks, ready.

    Raises:
        DataError: If a package is missing; the message says how to install it.
        InputError: If a factor or the device cannot be used.
    """
    finished_size((2, 2, 2, 3), 1, fps_factor=fps_factor, upscale=upscale)
    chosen = choose_device(device)
    return Finisher(
        fps_factor=fps_factor,
        upscale=upscale,
        between=load_rife(device=chosen) if fps_factor > 1 else None,
        upscaler=load_upscaler(device=chosen) if upscale > 1 else None,
    )


def with_finishing(
    recipe: Mapping[str, Any],
    *,
    source: npt.NDArray[np.uint8],
    finished: npt.NDArray[np.uint8],
    fps: Fraction,
    fps_factor: int,
    upscale: int,
    clip_format: str,
) -> dict[str, Any]:
    """Add to a clip's recipe what was done to it.

    The rest of the recipe still describes the clip as it was generated, so that it can be made
    again; what the file holds now is the last entry of ``finishing``.

    Args:
        recipe: Recipe of the clip that was finished.
        source: Its frames as they were read.
        finished: The new frames.
        fps: Of the new frames.
        fps_factor: What was asked for.
        upscale: What was asked for.
        clip_format: In which form they are written.

    Returns:
        A new recipe.
    """
    check_frames(finished)
    weights = {}
    if fps_factor > 1:
        weights["rife"] = RIFE_SHA256
    if upscale > 1:
        weights["real-esrgan"] = UPSCALER_SHA256
    num_frames, height, width = finished.shape[:3]
    step = {
        "source_sha256": frames_sha256(source),
        "fps_factor": fps_factor,
        "upscale": upscale,
        "format": clip_format,
        "weights": weights,
        "frames": {
            "sha256": frames_sha256(finished),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": str(fps),
        },
    }
    return {**recipe, "finishing": [*recipe.get("finishing", []), step]}


def _padded(side: int) -> int:
    return -(-side // PADDED_MULTIPLE) * PADDED_MULTIPLE


def _seconds_of(compute: Callable[[], object]) -> float:
    """How long something takes once it is warm."""
    compute()
    durations = []
    for _ in range(_NUM_PROBES):
        start = time.perf_counter()
        compute()
        durations.append(time.perf_counter() - start)
    return min(durations)
