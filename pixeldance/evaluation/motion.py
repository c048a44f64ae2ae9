"""What moves in a clip, measured by optical flow: the camera as a whole, or one character.

Works on any clip; the words and the thresholds are those of the sticker world, whose axes are kept:
x to the right and y down.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pixeldance.errors import InputError
from pixeldance.evaluation.optical_flow import Flow, dense_flow, load_opencv
from pixeldance.evaluation.peers import Frames, Picture, check_clip

Mask = npt.NDArray[np.bool_]
"""Pixels that belong to something: ``height width``."""

Points = npt.NDArray[np.float32]
"""``points 2``: x and y in pixels."""

SMALLEST_PAN = 0.125
SMALLEST_TILT = 0.1
SMALLEST_ZOOM = 0.3
SMALLEST_ROLL = 0.15
"""The smallest camera motions of the sticker world over a whole clip: shares of the width and of
the height, logarithm of the scale, radians."""

SMALLEST_LEFT = 0.25
SMALLEST_UP = 0.2
SMALLEST_TOWARD = 0.35
"""The smallest motions of its characters over a whole clip: shares of the width and of the height,
logarithm of the scale."""

LOST = 0.7
"""Median error of a path from which the object is no longer there: it has dissolved or become
something else, and where the tracker went means nothing."""

NOTICED = 0.4
"""What share of the smallest motion is still told from rest."""

_MIN_POINTS = 12
_GRID_STEP = 4
_MIN_CORNER = 1e-5
_OUTLIER = 0.004
"""Share of the picture's height by which a point may miss a motion that it is part of."""

_MAX_OBJECT_POINTS = 1200
_MAX_LOG_SCALE = 1.2
_SEARCH_HEIGHT = 96
_AROUND = 12
_MIN_CONTRAST = 20.0
_REACH = 8
"""How far an object may go in one step, in pixels of a picture reduced to a height of 96."""


@dataclass(frozen=True)
class CameraMotion:
    """What the camera does in each step between frames, on average.

    Attributes:
        pan: Turn to the right, as a share of the width.
        tilt: Turn downwards, as a share of the height.
        zoom: Logarithm of the scale, positive inwards.
        roll: Turn to the right in degrees (the picture turns to the left).
        num_steps: Number of steps between frames.
    """

    pan: float
    tilt: float
    zoom: float
    roll: float
    num_steps: int


@dataclass(frozen=True)
class ObjectPath:
    """Where an object is in each frame, relative to the first one.

    Attributes:
        x: Shift to the right, as a share of the width, ``(frames,)``.
        y: Shift down, as a share of the height.
        log_scale: Logarithm of its size.
        error: How much its pixels have changed: root mean square, 1 = as much as they differ from
            what is around it in the first frame.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    log_scale: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]

    def part(self, first: int, last: int) -> "ObjectPath":
        """The path between two frames.

        Args:
            first: Number of the frame that it starts in.
            last: Number of the frame that it ends in.

        Returns:
            ``last - first + 1`` frames.
        """
        frames = slice(first, last + 1)
        return ObjectPath(
            self.x[frames], self.y[frames], self.log_scale[frames], self.error[frames]
        )


def fit_camera(frames: Frames) -> CameraMotion:
    """Measure the camera: a robust similarity is fitted to the flow of each step.

    Only points with texture count. A scene without any (fewer than 12 points) is at rest.

    Args:
        frames: A clip of at least 2 frames, sides of at least 16 pixels.

    Returns:
        The motion of most of the picture; what moves on its own is left out.
    """
    _check(frames)
    height, width = frames.shape[1:3]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    total = np.zeros(4)
    for first, second in itertools.pairwise(frames):
        points = _textured_points(first)
        similarity = _fit_similarity(points, _moved(points, dense_flow(first, second)), height)
        if similarity is not None:
            total += _parts(similarity, centre)
    x, y, log_scale, angle = total / (len(frames) - 1)
    return CameraMotion(
        pan=-x / width,
        tilt=-y / height,
        zoom=log_scale,
        roll=float(np.degrees(angle)),
        num_steps=len(frames) - 1,
    )


def classify_camera(motion: CameraMotion) -> str:
    """The word of the sticker world for a camera motion.

    Each part is measured in the smallest motion of its kind that the world makes; the largest one
    decides if it reaches :data:`NOTICED` of that.

    Args:
        motion: Of a whole clip.

    Returns:
        One of :data:`pixeldance.worlds.stickers.CAMERAS`.
    """
    steps = motion.num_steps
    return _largest(
        {
            ("pan right", "pan left"): motion.pan * steps / SMALLEST_PAN,
            ("tilt down", "tilt up"): motion.tilt * steps / SMALLEST_TILT,
            ("zoom in", "zoom out"): motion.zoom * steps / SMALLEST_ZOOM,
            ("roll right", "roll left"): np.radians(motion.roll) * steps / SMALLEST_ROLL,
        },
        rest="static",
    )


def track_object(frames: Frames, mask: Mask) -> ObjectPath:
    """Follow what a mask covers in the first frame.

    Its size follows from a robust similarity fitted to the flow of its pixels in each step. At that
    size the first frame's object is looked for near its last place, where the squared difference of
    its pixels is least. (Flow alone takes thin objects for the background behind them and then
    stays there; the difference alone prefers small objects to big ones that have changed.)

    Args:
        frames: A clip of at least 2 frames, sides of at least 16 pixels.
        mask: The object in the first frame, at least 12 pixels.

    Returns:
        The path of its centre. An object that leaves the picture is followed to the edge.

    Raises:
        InputError: If the mask does not fit.
    """
    _check(frames)
    height, width = frames.shape[1:3]
    if mask.shape != (height, width) or mask.dtype != np.bool_ or mask.sum() < _MIN_POINTS:
        raise InputError(
            f"mask must be bool of shape {(height, width)} with at least {_MIN_POINTS} pixels, got "
            f"{mask.dtype} of shape {mask.shape} with {int(mask.sum())}."
        )
    template = _template(frames[0], mask)
    place = _Place(template.x, template.y, log_scale=0.0, error=0.0)
    path = [place]
    for first, second in itertools.pairwise(frames):
        points = _points_of(template, place, height, width)
        similarity = _fit_similarity(points, _moved(points, dense_flow(first, second)), height)
        growth = 0.0 if similarity is None else _parts(similarity, np.zeros(2))[2]
        log_scale = min(max(place.log_scale + growth, -_MAX_LOG_SCALE), _MAX_LOG_SCALE)
        place = _search(second, template, place._replace(log_scale=log_scale))
        path.append(place)
    x, y, log_scales, errors = (np.array(part) for part in zip(*path, strict=True))
    return ObjectPath((x - x[0]) / width, (y - y[0]) / height, log_scales, errors)


def classify_direction(path: ObjectPath, *, amount: float = 1.0) -> str:
    """The word of the sticker world for the way from the first to the last frame.

    Args:
        path: Of an object.
        amount: Size of the motions to be told from rest; 0.7 for the parts of a sequence.

    Returns:
        ``"left"``, ``"right"``, ``"up"``, ``"down"``, ``"toward"``, ``"away"``, ``"still"``, or
        ``"lost"`` if the object is no longer there for more than half of the time.
    """
    if np.median(path.error[1:]) > LOST:
        return "lost"
    return _largest(
        {
            ("right", "left"): (path.x[-1] - path.x[0]) / (amount * SMALLEST_LEFT),
            ("down", "up"): (path.y[-1] - path.y[0]) / (amount * SMALLEST_UP),
            ("toward", "away"): (path.log_scale[-1] - path.log_scale[0])
            / (amount * SMALLEST_TOWARD),
        },
        rest="still",
    )


def _largest(parts: dict[tuple[str, str], float], *, rest: str) -> str:
    """The word for the largest part: the first of its pair if positive, else the second."""
    words = max(parts, key=lambda pair: abs(parts[pair]))
    value = parts[words]
    if abs(value) < NOTICED:
        return rest
    return words[0] if value > 0 else words[1]


def _check(frames: Frames) -> None:
    check_clip(frames)
    if len(frames) < 2 or min(frames.shape[1:3]) < 16:
        raise InputError(
            "Motion is measured in clips of at least 2 frames, sides of at least 16 pixels; got "
            f"shape {frames.shape}."
        )


def _textured_points(picture: Picture) -> Points:
    """Points of a grid around which the picture varies in both directions."""
    cv2 = load_opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    corners = cv2.cornerMinEigenVal(grey.astype(np.float32) / 255, 7, ksize=3)
    grid = corners[_GRID_STEP // 2 :: _GRID_STEP, _GRID_STEP // 2 :: _GRID_STEP]
    rows, columns = np.nonzero(grid > _MIN_CORNER)
    return (np.stack([columns, rows], axis=1) * _GRID_STEP + _GRID_STEP // 2).astype(np.float32)


def _moved(points: Points, flow: Flow) -> Points:
    """Where the flow takes points inside the picture."""
    columns, rows = points.round().astype(int).T
    moved: Points = points + flow[rows, columns]
    return moved


def _fit_similarity(points: Points, moved: Points, height: int) -> Any:
    """Scale, rotation and shift (2 x 3) that most of the points agree on, or None."""
    if len(points) < _MIN_POINTS:
        return None
    cv2 = load_opencv()
    similarity, _ = cv2.estimateAffinePartial2D(
        points,
        moved,
        method=cv2.RANSAC,
        ransacReprojThreshold=max(0.5, _OUTLIER * height),
        maxIters=500,
    )
    return similarity


def _parts(similarity: Any, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Shift of the centre (pixels), logarithm of the scale, and angle (radians)."""
    linear = similarity[:, :2]
    shift = linear @ centre + similarity[:, 2] - centre
    scale = np.hypot(linear[0, 0], linear[1, 0])
    angle = np.arctan2(linear[1, 0], linear[0, 0])
    return np.array([shift[0], shift[1], np.log(scale), angle])


class _Place(NamedTuple):
    """Centre (pixels), logarithm of the size, and how much the object there differs."""

    x: float
    y: float
    log_scale: float
    error: float


class _Template(NamedTuple):
    """An object in the rectangle around it, the centre of that, and its contrast."""

    pixels: Picture
    mask: Mask
    x: float
    y: float
    contrast: float


def _template(picture: Picture, mask: Mask) -> _Template:
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    box = slice(top, bottom + 1), slice(left, right + 1)
    return _Template(
        pixels=picture[box],
        mask=mask[box],
        x=float(left + right) / 2,
        y=float(top + bottom) / 2,
        contrast=_contrast(picture, mask),
    )


def _contrast(picture: Picture, mask: Mask) -> float:
    """Root mean square difference of an object from the typical colour around it."""
    cv2 = load_opencv()
    reach = np.ones((2 * _AROUND + 1, 2 * _AROUND + 1), np.uint8)
    around = cv2.dilate(mask.astype(np.uint8), reach).astype(bool) & ~mask
    typical = np.median(picture[around if around.any() else mask], axis=0)
    differences = picture[mask] - typical
    return max(_MIN_CONTRAST, float(np.sqrt((differences**2).mean())))


def _points_of(template: _Template, place: _Place, height: int, width: int) -> Points:
    """Some evenly chosen pixels of an object at its place, those inside the picture."""
    rows, columns = np.nonzero(template.mask)
    every = -(-len(rows) // _MAX_OBJECT_POINTS)
    centre = (np.array(template.mask.shape[::-1]) - 1) / 2
    offsets = np.stack([columns, rows], axis=1)[::every] - centre
    points = offsets * math.exp(place.log_scale) + (place.x, place.y)
    inside = ((points >= 0) & (points <= (width - 1, height - 1))).all(axis=1)
    return points[inside].astype(np.float32)


def _search(picture: Picture, template: _Template, near: _Place) -> _Place:
    """Where an object of known size is found again best, near a place."""
    cv2 = load_opencv()
    height, width = picture.shape[:2]
    factor = min(1.0, _SEARCH_HEIGHT / height)
    scale = factor * math.exp(near.log_scale)
    rows, columns = (max(2, round(length * scale)) for length in template.mask.shape)
    small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    pixels = cv2.resize(template.pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(
        template.mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
    )
    left = round((near.x + 0.5) * factor - columns / 2) - _REACH
    top = round((near.y + 0.5) * factor - rows / 2) - _REACH
    region = _region(small, left, top, columns + 2 * _REACH, rows + 2 * _REACH)
    errors = cv2.matchTemplate(
        region.astype(np.float32), pixels.astype(np.float32), cv2.TM_SQDIFF, mask=_rgb(mask)
    )
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    x = (left + int(column) + columns / 2) / factor - 0.5
    y = (top + int(row) + rows / 2) / factor - 0.5
    squared = max(0.0, float(errors[row, column])) / (3 * float(mask.sum()))
    return near._replace(
        x=min(max(x, 0.0), width - 1.0),
        y=min(max(y, 0.0), height - 1.0),
        error=math.sqrt(squared) / template.contrast,
    )


def _rgb(mask: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mask for each colour; rooted, for OpenCV squares it together with the difference."""
    return np.repeat(np.sqrt(mask)[..., None], 3, axis=2)


def _region(picture: Picture, left: int, top: int, width: int, height: int) -> Picture:
    """A rectangle of a picture; beyond its edges they are repeated."""
    rows = np.arange(top, top + height).clip(0, picture.shape[0] - 1)
    columns = np.arange(left, left + width).clip(0, picture.shape[1] - 1)
    region: Picture = picture[rows[:, None], columns]
    return region
