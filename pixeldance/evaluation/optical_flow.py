"""Dense optical flow between two pictures, and pictures moved along it; by OpenCV."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import DataError

Flow = npt.NDArray[np.float32]
"""Where each pixel goes: ``height width 2``, shifts to the right and down in pixels."""


def dense_flow(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Flow:
    """Where each pixel of one picture is in another.

    Args:
        first: ``height width 3``, sRGB, sides of at least 16 pixels.
        second: Another of the same size.

    Returns:
        The shift of each pixel of ``first``.

    References:
        Kroeger et al. 2016, "Fast optical flow using dense inverse search"; the medium preset, but
        down to full resolution, without which small objects seem to grow too little.
    """
    cv2 = load_opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY) for p in (first, second)]
    flow: Flow = _dense_inverse_search().calc(grey[0], grey[1], None)
    return flow


def sample_backwards(
    picture: npt.NDArray[np.uint8], flow: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.uint8]:
    """Fetch each pixel from where a flow points to (bilinear, edges repeated).

    Args:
        picture: ``height width 3``.
        flow: For each pixel of the result, the shift to its source in ``picture``.

    Returns:
        A picture of the same size.
    """
    cv2 = load_opencv()
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    moved: npt.NDArray[np.uint8] = cv2.remap(
        picture,
        (columns + flow[..., 0]).astype(np.float32),
        (rows + flow[..., 1]).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return moved


def load_opencv() -> Any:
    """Import OpenCV.

    Returns:
        The module ``cv2``.

    Raises:
        DataError: If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise DataError(
            "Optical flow needs opencv-python-headless. Install it: pip install 'pixeldance[eval]'."
        ) from error
    return cv2


@functools.cache
def _dense_inverse_search() -> Any:
    cv2 = load_opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    return search
