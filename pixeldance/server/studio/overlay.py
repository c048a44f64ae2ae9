"""What the model will see of a picture: the part that is kept, or the borders that are added."""

from typing import Literal, NamedTuple

from pixeldance.geometry import Size

__all__ = ["Frame", "aspects_differ", "contained", "covered", "picture_and_frame"]

MAX_ASPECT_DIFFERENCE = 0.02
"""Pictures whose ratios differ by more than this part look as if the picture had jumped."""


class Frame(NamedTuple):
    """A rectangle as parts of the sides of another: 0 is left or top, 1 right or bottom."""

    left: float
    top: float
    width: float
    height: float


def covered(picture: Size, clip: Size, focus: tuple[float, float] = (0.5, 0.5)) -> Frame:
    """The part of a picture that is left when it fills a clip.

    Args:
        picture: Size of the picture.
        clip: Size of the clip.
        focus: Point (x, y) of the picture to keep, each from 0 to 1.

    Returns:
        The part, measured by the picture.
    """
    ratio = (clip.width / clip.height) / (picture.width / picture.height)
    width, height = min(1.0, ratio), min(1.0, 1.0 / ratio)
    return Frame(_start(focus[0], width), _start(focus[1], height), width, height)


def contained(picture: Size, clip: Size) -> Frame:
    """Where a picture lies in a clip that shows it whole.

    Args:
        picture: Size of the picture.
        clip: Size of the clip.

    Returns:
        Its place, measured by the clip.
    """
    ratio = (picture.width / picture.height) / (clip.width / clip.height)
    width, height = min(1.0, ratio), min(1.0, 1.0 / ratio)
    return Frame((1.0 - width) / 2, (1.0 - height) / 2, width, height)


def picture_and_frame(
    picture: Size, clip: Size, *, fit: Literal["cover", "contain"], focus: tuple[float, float]
) -> tuple[float, Frame, Frame]:
    """How to draw a picture together with the frame of the clip.

    Args:
        picture: Size of the picture.
        clip: Size of the clip.
        fit: How the picture is fitted.
        focus: Point to keep when it is cropped.

    Returns:
        Width to height of the drawing; where the picture is in it; where the clip's frame is.
    """
    whole = Frame(0.0, 0.0, 1.0, 1.0)
    if fit == "contain":
        return clip.width / clip.height, contained(picture, clip), whole
    return picture.width / picture.height, whole, covered(picture, clip, focus)


def aspects_differ(one: Size, other: Size) -> bool:
    """Whether two pictures differ in their ratio of width to height by more than 2 %.

    Args:
        one: Size of a picture.
        other: Size of another.

    Returns:
        True if they do.
    """
    ratios = sorted((one.width / one.height, other.width / other.height))
    return ratios[1] / ratios[0] - 1.0 > MAX_ASPECT_DIFFERENCE


def _start(focus: float, shown: float) -> float:
    return min(max(focus - shown / 2, 0.0), 1.0 - shown)
