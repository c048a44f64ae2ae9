"""Two clips beside each other, and where they differ, as one clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pixeldance.errors import InputError
from pixeldance.video.recipe import check_frames
from pixeldance.video.sheet import BACKGROUND, INK

__all__ = ["DIFFERENCE_GAIN", "side_by_side"]

DIFFERENCE_GAIN = 4
"""How many times a difference is shown: small ones could not be seen."""

GAP = 4
LINE_HEIGHT = 16
FONT_SIZE = 12
MIN_PANEL_WIDTH = 192


def side_by_side(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    *,
    labels: tuple[str, str],
    captions: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """Put two clips and their difference beside each other, frame by frame.

    Args:
        first: ``frames height width 3``, uint8.
        second: Another of the same shape.
        labels: What the two are called, written over them; cut where they are too long.
        captions: A line for each frame, written below.

    Returns:
        ``frames height width 3``, uint8, with even sides: the first clip, the second one, and the
        absolute difference of their pixels, times ``DIFFERENCE_GAIN``. Small clips are enlarged,
        by a whole factor and pixel by pixel.

    Raises:
        InputError: If the clips differ in shape, or there is not one caption per frame.
    """
    check_frames(first)
    check_frames(second)
    if first.shape != second.shape:
        raise InputError(f"The clips must have one shape, got {first.shape} and {second.shape}.")
    if len(captions) != len(first):
        raise InputError(f"There must be {len(first)} captions, got {len(captions)}.")
    factor = -(-MIN_PANEL_WIDTH // first.shape[2])
    height, width = factor * first.shape[1], factor * first.shape[2]
    base = _labelled(height, width, (*labels, f"difference x{DIFFERENCE_GAIN}"))
    font = ImageFont.load_default(size=FONT_SIZE)
    pages = []
    for one, other, caption in zip(first, second, captions, strict=True):
        page = base.copy()
        for place, pixels in enumerate((one, other, _difference(one, other))):
            panel = Image.fromarray(np.ascontiguousarray(pixels))
            panel = panel.resize((width, height), Image.Resampling.NEAREST)
            page.paste(panel, (GAP + place * (width + GAP), LINE_HEIGHT))
        line = (page.width // 2, LINE_HEIGHT + height + LINE_HEIGHT // 2)
        ImageDraw.Draw(page).text(line, caption, fill=INK, font=font, anchor="mm")
        pages.append(np.asarray(page))
    return np.stack(pages)


def _difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    change = np.abs(one.astype(np.int16) - other) * DIFFERENCE_GAIN
    shown: npt.NDArray[np.uint8] = change.clip(0, 255).astype(np.uint8)
    return shown


def _labelled(height: int, width: int, labels: Sequence[str]) -> Image.Image:
    """An empty page with even sides and the labels over its panels."""
    total_width = len(labels) * (width + GAP) + GAP
    total_height = 2 * LINE_HEIGHT + height
    page = Image.new(
        "RGB", (total_width + total_width % 2, total_height + total_height % 2), BACKGROUND
    )
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=FONT_SIZE)
    for place, label in enumerate(labels):
        while len(label) > 1 and draw.textlength(label, font=font) > width:
            label = label[: len(label) - 2] + "…"
        centre = (GAP + place * (width + GAP) + width // 2, LINE_HEIGHT // 2)
        draw.text(centre, label, fill=INK, font=font, anchor="mm")
    return page
