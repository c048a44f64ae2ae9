"""Contact sheets: a clip in one picture."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pixeldance.errors import InputError
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.recipe import check_frames

__all__ = ["contact_sheet", "sheet_frames", "write_contact_sheet"]

GAP = 4
LABEL_HEIGHT = 16
MAX_TILE_SIDE = 384
BACKGROUND = (24, 24, 24)
INK = (230, 230, 230)


def sheet_frames(num_frames: int, max_frames: int) -> list[int]:
    """Which frames a contact sheet shows: evenly spread, the first and the last among them.

    Args:
        num_frames: Length of the clip, at least 1.
        max_frames: How many to show at most, at least 1; with 1 it is the first.

    Returns:
        Strictly increasing frame numbers from 0.

    Raises:
        InputError: If a number is below 1.
    """
    for name, value in (("num_frames", num_frames), ("max_frames", max_frames)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}.")
    count = min(num_frames, max_frames)
    if count == 1:
        return [0]
    return [round(i * (num_frames - 1) / (count - 1)) for i in range(count)]


def contact_sheet(
    frames: npt.NDArray[Any], *, columns: int = 5, max_frames: int = 10, labels: bool = True
) -> Image.Image:
    """Lay evenly chosen frames of a clip out in rows, left to right, top to bottom.

    Args:
        frames: ``frames height width 3``, uint8.
        columns: Frames per row, at least 1.
        max_frames: How many frames to show at most; the first and the last always are.
        labels: Whether each frame's number is written under it.

    Returns:
        One RGB picture. Frames larger than 384 pixels are reduced, never enlarged.

    Raises:
        InputError: If the frames are not a uint8 clip or a number is below 1.
    """
    check_frames(frames)
    if columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}.")
    shown = sheet_frames(len(frames), max_frames)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    height, width = frames.shape[1:3]
    scale = min(1.0, MAX_TILE_SIDE / max(height, width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    row_height = tile[1] + (LABEL_HEIGHT if labels else 0)
    size = (columns * (tile[0] + GAP) + GAP, rows * (row_height + GAP) + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=LABEL_HEIGHT - 5)
    for place, number in enumerate(shown):
        left = GAP + place % columns * (tile[0] + GAP)
        top = GAP + place // columns * (row_height + GAP)
        picture = Image.fromarray(np.ascontiguousarray(frames[number]))
        if picture.size != tile:
            picture = picture.resize(tile, Image.Resampling.LANCZOS)
        sheet.paste(picture, (left, top))
        if labels:
            centre = (left + tile[0] // 2, top + tile[1] + LABEL_HEIGHT // 2)
            draw.text(centre, str(number), fill=INK, font=font, anchor="mm")
    return sheet


def write_contact_sheet(
    path: str | os.PathLike[str],
    frames: npt.NDArray[Any],
    *,
    columns: int = 5,
    max_frames: int = 10,
    labels: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the contact sheet of a clip as PNG, complete or not at all.

    Args:
        path: Where it goes, ending in ``.png``, in a folder that exists.
        frames: ``frames height width 3``, uint8.
        columns: Frames per row, at least 1.
        max_frames: How many frames to show at most.
        labels: Whether each frame's number is written under it.
        overwrite: Whether a picture that is already there may be replaced.

    Returns:
        The path of the picture.

    Raises:
        InputError: If an argument is not as described or a file would be overwritten.
        PixelDanceError: If writing fails; nothing is left behind.
    """
    path = check_output_path(path, suffix=".png", overwrite=overwrite)
    sheet = contact_sheet(frames, columns=columns, max_frames=max_frames, labels=labels)
    with new_files(path, overwrite=overwrite) as (temporary,):
        sheet.save(temporary, format="PNG")
    return path
