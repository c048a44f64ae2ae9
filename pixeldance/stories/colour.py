"""Holding the colours of clips that go on from each other to those of an anchor.

What is generated from what was generated drifts. How far is told from places that show in both
pictures what they showed before: the typical difference of pixels that are still alike. So neither
a character that moves nor a camera that shows something new is taken for a drift; where too little
is alike, nothing is done.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Picture", "colour_shift", "hold_colours", "to_oklab"]

Picture = npt.NDArray[np.uint8]
"""``height width 3``, sRGB."""

Colours = npt.NDArray[np.float32]
"""Colours or differences of colours in Oklab, along the last axis."""

ALIKE = 0.05
"""Oklab distance below which two places may show the same thing; .02 is just noticeable. With it a
drift of .012 is found whole under still cameras and moving ones; without a drift, 8 moving cameras
of the sticker world are taken for one of .004 on average."""
FEWEST_ALIKE = 0.25
"""Share of the picture that must be alike for a shift to mean anything."""
LARGEST_SHIFT = 0.03
"""Most that one clip is shifted in each channel."""

_CELL = 4

# Ottosson 2020: linear sRGB to cone responses, and their cube roots to Oklab.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_FROM_OKLAB = np.linalg.inv(_TO_OKLAB)
_FROM_CONES = np.linalg.inv(_TO_CONES)


def to_oklab(picture: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> Colours:
    """Colours of a picture in Oklab, in which equal distances look about equally different.

    Args:
        picture: sRGB from 0 to 255, colours along the last axis.

    Returns:
        Lightness (0 to 1), green to red, blue to yellow.

    References:
        Ottosson 2020, "A perceptual color space for image processing",
        https://bottosson.github.io/posts/oklab/.
    """
    encoded = np.asarray(picture, np.float32) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    oklab: Colours = np.cbrt(linear.astype(np.float32) @ _TO_CONES.T) @ _TO_OKLAB.T
    return oklab


def _from_oklab(colours: Colours) -> Picture:
    linear = ((colours @ _FROM_OKLAB.T) ** 3 @ _FROM_CONES.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    picture: Picture = (encoded * 255).round().astype(np.uint8)
    return picture


def colour_shift(picture: Picture, anchor: Picture) -> Colours:
    """How the colours of a picture must be shifted to be those of the anchor again.

    Args:
        picture: A frame.
        anchor: A frame of the same size that shows, in part, the same.

    Returns:
        Median difference in Oklab over the cells of 4 x 4 pixels that are alike, each channel at
        most ``LARGEST_SHIFT``; zero where too few are.
    """
    differences = _cells(anchor) - _cells(picture)
    is_alike = np.linalg.norm(differences, axis=-1) < ALIKE
    if is_alike.mean() < FEWEST_ALIKE:
        return np.zeros(3, np.float32)
    shift: Colours = np.median(differences[is_alike], axis=0).astype(np.float32)
    return shift.clip(-LARGEST_SHIFT, LARGEST_SHIFT)


def _cells(picture: Picture) -> Colours:
    """Mean colours of the whole cells, in a list."""
    rows, columns = (side // _CELL for side in picture.shape[:2])
    whole = picture[: rows * _CELL, : columns * _CELL].astype(np.float32)
    means = whole.reshape(rows, _CELL, columns, _CELL, 3).mean(axis=(1, 3), dtype=np.float32)
    return to_oklab(means.reshape(-1, 3))


def hold_colours(
    frames: npt.NDArray[np.uint8], anchor: Picture, *, strength: float
) -> npt.NDArray[np.uint8]:
    """Bring the colours of a clip back to those of the anchor, more and more towards its end.

    The first frame is hardly changed, so that the clip still goes on from the one before it.

    Args:
        frames: The new frames of a clip, ``frames height width 3``.
        anchor: A frame of the same size.
        strength: 0 (nothing) to 1 (the last frame has the anchor's colours).

    Returns:
        The new frames; those given where there is nothing to do.
    """
    shift = strength * colour_shift(frames[-1], anchor)
    if not shift.any():
        return frames
    parts = np.arange(1, len(frames) + 1, dtype=np.float32) / len(frames)
    return np.stack(
        [
            _from_oklab(to_oklab(frame) + part * shift)
            for frame, part in zip(frames, parts, strict=True)
        ]
    )
