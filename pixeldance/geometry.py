"""Sizes, aspect ratios, fitting of pictures, and seconds <-> frames <-> latent frames.

Every rule about sizes and frame counts has its one home here. Sizes are written height first in
code (:class:`Size`) and width x height in messages, as people say them.
"""

import math
from difflib import get_close_matches
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

from pixeldance.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "ASPECT_RATIOS",
    "AUTO_ASPECT_RATIO",
    "TEMPORAL_FACTOR",
    "LatentGrid",
    "Size",
    "check_aspect_ratio",
    "check_focus",
    "check_num_frames",
    "duration_of",
    "fit_picture",
    "frames_for_duration",
    "latent_grid",
    "latent_slot",
    "resolve_frame_index",
    "resolve_size",
]

ASPECT_RATIOS: dict[str, tuple[int, int]] = {
    "16:9": (16, 9),
    "9:16": (9, 16),
    "4:3": (4, 3),
    "3:4": (3, 4),
    "1:1": (1, 1),
    "21:9": (21, 9),
    "9:21": (9, 21),
}
"""Aspect ratios that can be asked for, as (width, height)."""

AUTO_ASPECT_RATIO = "auto"
"""The word for "the ratio of the first frame; 16:9 without one"."""

TEMPORAL_FACTOR = 4
"""Pixel frames per latent frame, after the first frame, which has a latent frame to itself."""

_WIDEST = 21 / 9
_SMALLEST_AREA = 0.85  # of the pixel budget; below it a size is used only when nothing else fits
_LARGEST_AREA = 1.1


class Size(NamedTuple):
    """Height and width of a picture or a clip, in pixels."""

    height: int
    width: int


class LatentGrid(NamedTuple):
    """Shape of a clip in latent space: frames, rows and columns."""

    latent_frames: int
    latent_height: int
    latent_width: int


def check_aspect_ratio(aspect_ratio: str) -> str:
    """Return the aspect ratio if it is one that can be asked for.

    Args:
        aspect_ratio: A key of :data:`ASPECT_RATIOS`, or "auto".

    Returns:
        The same string.

    Raises:
        InputError: If it is anything else; the message lists what is allowed.
    """
    allowed = [AUTO_ASPECT_RATIO, *ASPECT_RATIOS]
    if aspect_ratio in allowed:
        return aspect_ratio
    close = get_close_matches(aspect_ratio, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"aspect_ratio must be one of {', '.join(allowed)}, got {aspect_ratio[:40]!r}.{hint}"
    )


def resolve_size(
    aspect_ratio: str,
    *,
    pixel_budget: int,
    multiple: int,
    first_frame: Size | None = None,
) -> Size:
    """Choose the size of a clip: near the ratio first, near the pixel budget second.

    Among the sizes whose area is between 0.85 and 1.1 of the budget, the one whose ratio is
    nearest (in log distance) wins. The first frame counts for "auto" only: its own ratio is taken,
    no wider than 21:9 and no taller than 9:21; "auto" without a first frame is 16:9.

    Args:
        aspect_ratio: A key of :data:`ASPECT_RATIOS`, or "auto".
        pixel_budget: Pixels per frame that the model was made for.
        multiple: Both sides are multiples of this many pixels.
        first_frame: Size of the first picture, if there is one.

    Returns:
        The size in pixels.

    Raises:
        InputError: If the ratio is unknown, or the budget is below one ``multiple`` square.
    """
    check_aspect_ratio(aspect_ratio)
    if multiple < 1 or pixel_budget < multiple * multiple:
        raise InputError(
            f"pixel_budget must be at least {multiple} x {multiple} pixels (the multiple that "
            f"sides are rounded to), got {pixel_budget}. Raise the budget."
        )
    ratio = _wanted_ratio(aspect_ratio, first_frame)
    largest = int(pixel_budget * _LARGEST_AREA)
    candidates = [
        Size(rows * multiple, columns * multiple)
        for rows in range(1, largest // multiple**2 + 1)
        for columns in range(1, largest // (rows * multiple**2) + 1)
    ]
    smallest = pixel_budget * _SMALLEST_AREA
    near_budget = [size for size in candidates if size.height * size.width >= smallest]

    def distance(size: Size) -> tuple[float, float]:
        ratio_error = abs(math.log(size.width / size.height / ratio))
        return round(ratio_error, 9), abs(size.height * size.width - pixel_budget)

    return min(near_budget or candidates, key=distance)


def _wanted_ratio(aspect_ratio: str, first_frame: Size | None) -> float:
    if aspect_ratio != AUTO_ASPECT_RATIO:
        width, height = ASPECT_RATIOS[aspect_ratio]
        return width / height
    if first_frame is None:
        return 16 / 9
    if min(first_frame) < 1:
        raise InputError(
            f"first_frame must have at least 1 pixel per side, got {_text(first_frame)}. "
            "Give another picture."
        )
    return min(max(first_frame.width / first_frame.height, 1 / _WIDEST), _WIDEST)


def check_focus(focus: tuple[float, float]) -> tuple[float, float]:
    """Return the focus point if it lies in the picture.

    Args:
        focus: (x, y), each from 0 (left, top) to 1 (right, bottom).

    Returns:
        The same pair.

    Raises:
        InputError: If a coordinate is outside 0 to 1 or not a number.
    """
    if len(focus) == 2 and all(0.0 <= value <= 1.0 for value in focus):
        return focus
    raise InputError(
        "focus must be two numbers from 0 to 1 (x from the left, y from the top), "
        f"got {focus}. Use 0.5,0.5 for the middle."
    )


def fit_picture(
    picture: "PIL.Image.Image",
    size: Size,
    *,
    fit: Literal["cover", "contain"] = "cover",
    focus: tuple[float, float] = (0.5, 0.5),
    fill: tuple[int, int, int] = (0, 0, 0),
) -> "PIL.Image.Image":
    """Bring a picture to a size without ever stretching it: one scale for both axes.

    "cover" fills the whole size and crops what sticks out, keeping the focus point as near to
    the middle as the picture allows; when no scaling is needed the result is an exact crop.
    "contain" shows the picture whole in the middle and fills the borders; to keep the scale equal
    on both axes it may trim less than one output pixel.

    Args:
        picture: An RGB picture, as ``load_picture`` returns it.
        size: Size of the result in pixels.
        fit: "cover" or "contain".
        focus: Point (x, y) to keep when cropping, each from 0 (left, top) to 1 (right, bottom);
            only for "cover".
        fill: RGB colour of the borders, 0 to 255 each; only for "contain".

    Returns:
        A new RGB picture of exactly ``size``.

    Raises:
        InputError: If the picture is not RGB, an option is out of range or without effect, or the
            picture is too narrow to be contained.
    """
    check_focus(focus)
    if picture.mode != "RGB":
        raise InputError(
            f"fit_picture takes RGB pictures, got mode {picture.mode}. Use load_picture first."
        )
    if min(size) < 1:
        raise InputError(f"size must be at least 1x1 pixels, got {_text(size)}.")
    if fit == "cover":
        if fill != (0, 0, 0):
            raise InputError('fill only applies to fit="contain"; leave it out or change fit.')
        return _cover(picture, size, focus)
    if fit == "contain":
        if focus != (0.5, 0.5):
            raise InputError('focus only applies to fit="cover"; leave it out or change fit.')
        return _contain(picture, size, fill)
    raise InputError(f"fit must be 'cover' or 'contain', got {fit!r}.")


def _cover(picture: "PIL.Image.Image", size: Size, focus: tuple[float, float]) -> "PIL.Image.Image":
    # The part of the picture that is shown; integers decide which side fits exactly.
    shown_width, shown_height = float(picture.width), float(picture.height)
    if size.width * picture.height >= size.height * picture.width:
        shown_height = min(shown_height, size.height * picture.width / size.width)
    else:
        shown_width = min(shown_width, size.width * picture.height / size.height)
    left = _start(focus[0], shown_width, picture.width)
    top = _start(focus[1], shown_height, picture.height)
    return _scaled(picture, (left, top, left + shown_width, top + shown_height), size)


def _start(focus: float, shown: float, available: int) -> float:
    return min(max(focus * available - shown / 2, 0.0), available - shown)


def _contain(
    picture: "PIL.Image.Image", size: Size, fill: tuple[int, int, int]
) -> "PIL.Image.Image":
    from PIL import Image

    if any(not 0 <= value <= 255 for value in fill):
        raise InputError(f"fill must be three numbers from 0 to 255, got {fill}.")
    if size.width * picture.height <= size.height * picture.width:
        inner = Size(size.width * picture.height // picture.width, size.width)
    else:
        inner = Size(size.height, size.height * picture.width // picture.height)
    if min(inner) < 1:
        raise InputError(
            f"A picture of {picture.width}x{picture.height} pixels is too narrow to be shown whole "
            f'in {_text(size)}. Use fit="cover" or crop it.'
        )
    result = Image.new("RGB", (size.width, size.height), fill)
    corner = ((size.width - inner.width) // 2, (size.height - inner.height) // 2)
    result.paste(_cover(picture, inner, (0.5, 0.5)), corner)
    return result


def _scaled(
    picture: "PIL.Image.Image", box: tuple[float, float, float, float], size: Size
) -> "PIL.Image.Image":
    from PIL import Image

    left, top, right, bottom = box
    if (right - left, bottom - top) == (size.width, size.height):
        left, top = round(left), round(top)  # whole pixels: an exact crop
        return picture.crop((left, top, left + size.width, top + size.height))
    box = (left, top, min(right, picture.width), min(bottom, picture.height))
    return picture.resize(
        (size.width, size.height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0
    )


def check_num_frames(num_frames: int, temporal_factor: int = TEMPORAL_FACTOR) -> int:
    """Return the number of frames if a clip can have it.

    Args:
        num_frames: Frames of the clip, one more than a multiple of ``temporal_factor``.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        The same number.

    Raises:
        InputError: If it is not legal; the message names the two nearest legal values.
    """
    is_integer = isinstance(num_frames, int) and not isinstance(num_frames, bool)
    if is_integer and num_frames >= 1 and (num_frames - 1) % temporal_factor == 0:
        return num_frames
    examples = ", ".join(str(1 + step * temporal_factor) for step in range(3))
    remedy = "Use 1."
    if is_integer and num_frames >= 1:
        lower = num_frames - (num_frames - 1) % temporal_factor
        remedy = f"Use {lower} or {lower + temporal_factor}."
    raise InputError(
        f"num_frames must be {temporal_factor}k + 1 ({examples}, ...), got {num_frames!r}. {remedy}"
    )


def _frame_rate(fps: Fraction | int | float) -> Fraction:
    if isinstance(fps, bool) or not math.isfinite(fps) or fps <= 0:
        raise InputError(f"fps must be a number above 0 (frames per second), got {fps!r}. Use 12.")
    return Fraction(fps)


def frames_for_duration(
    duration_s: float, fps: Fraction | int | float, temporal_factor: int = TEMPORAL_FACTOR
) -> int:
    """Convert seconds to the legal number of frames whose duration is nearest.

    Args:
        duration_s: Wanted duration in seconds, above 0.
        fps: Frames per second, above 0.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        A legal number of frames, at least ``temporal_factor + 1`` (shorter is a picture, not a
        clip); between two equally near ones the longer.

    Raises:
        InputError: If a number is not finite or not above 0.
    """
    if isinstance(duration_s, bool) or not math.isfinite(duration_s) or duration_s <= 0:
        raise InputError(
            f"duration must be a number of seconds above 0, got {duration_s!r}. Use 2."
        )
    wanted = Fraction(duration_s) * _frame_rate(fps)
    steps = math.floor((wanted - 1) / temporal_factor + Fraction(1, 2))
    return max(steps, 1) * temporal_factor + 1


def duration_of(num_frames: int, fps: Fraction | int | float) -> float:
    """Return how long a clip plays.

    Args:
        num_frames: Frames of the clip.
        fps: Frames per second, above 0.

    Returns:
        Seconds.

    Raises:
        InputError: If ``num_frames`` is below 1 or ``fps`` is not above 0.
    """
    if num_frames < 1:
        raise InputError(f"num_frames must be at least 1, got {num_frames}.")
    return float(num_frames / _frame_rate(fps))


def resolve_frame_index(index: int, num_frames: int) -> int:
    """Turn a frame index that may be -1 (the last frame) into a plain one.

    Args:
        index: Pixel frame, 0 to ``num_frames - 1``, or -1 for the last one.
        num_frames: Frames of the clip.

    Returns:
        Pixel frame, 0 to ``num_frames - 1``.

    Raises:
        InputError: If there is no such frame.
    """
    if index == -1:
        return num_frames - 1
    if 0 <= index < num_frames:
        return index
    raise InputError(
        f"Frame {index} does not exist: a clip of {num_frames} frames has frames 0 to "
        f"{num_frames - 1}, and -1 is the last one. Change the index or num_frames."
    )


def latent_grid(
    num_frames: int, size: Size, *, spatial_factor: int, temporal_factor: int = TEMPORAL_FACTOR
) -> LatentGrid:
    """Return the shape of a clip in latent space.

    Args:
        num_frames: Frames of the clip, one more than a multiple of ``temporal_factor``.
        size: Size of the clip, multiples of ``spatial_factor``.
        spatial_factor: Pixels per latent cell along a side.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        Latent frames, rows and columns.

    Raises:
        InputError: If the number of frames or a side does not fit the grid.
    """
    check_num_frames(num_frames, temporal_factor)
    for name, side in zip(("height", "width"), size, strict=True):
        if side < spatial_factor or side % spatial_factor:
            lower = max(side // spatial_factor, 1) * spatial_factor
            raise InputError(
                f"{name} must be a multiple of {spatial_factor} pixels, got {side}. "
                f"Use {lower} or {lower + spatial_factor}."
            )
    return LatentGrid(
        (num_frames - 1) // temporal_factor + 1,
        size.height // spatial_factor,
        size.width // spatial_factor,
    )


def latent_slot(frame: int, temporal_factor: int = TEMPORAL_FACTOR) -> tuple[int, int | None]:
    """Say in which latent frame a pixel frame lies.

    Args:
        frame: Pixel frame, at least 0.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        The latent frame, and the place inside it (0 to ``temporal_factor - 1``). Frame 0 has a
        latent frame to itself: (0, None).

    Raises:
        InputError: If ``frame`` is negative; resolve -1 first.
    """
    if frame < 0:
        raise InputError(
            f"frame must be at least 0, got {frame}. Use resolve_frame_index to resolve -1."
        )
    if frame == 0:
        return 0, None
    return 1 + (frame - 1) // temporal_factor, (frame - 1) % temporal_factor


def _text(size: Size) -> str:
    return f"{size.width}x{size.height} pixels"
