"""Reading clips and the recipes in them. What is read is untrusted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

from pixeldance.errors import DataError, InputError
from pixeldance.video.animations import read_picture_comment
from pixeldance.video.recipe import MAX_COMMENT_BYTES, MAX_SIDECAR_BYTES
from pixeldance.video.schema import PICTURES_IN_SIDECAR, SCHEMA, parse_recipe

__all__ = [
    "ClipFile",
    "ClipFrame",
    "has_own_sidecar",
    "read_clip",
    "read_comment",
    "read_frame",
    "read_recipe",
    "sidecar_path",
]

MAX_CLIP_BYTES = 2 * 1024**3
"""Decoded frames above this are refused."""

# AVColorSpace of the file -> matrix for the conversion.
_MATRICES = {
    1: Colorspace.ITU709,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    9: Colorspace.BT2020,
}
# Without these flags FFmpeg rounds down on the way to RGB: pictures get darker by 1 or 2 levels.
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Endings that are not read as MP4 or MOV -> FFmpeg's name of their container.
_CONTAINERS = {".webm": "matroska"}
_PICTURES = (".gif", ".webp")


class ClipFile(NamedTuple):
    """A clip as read from its file."""

    frames: npt.NDArray[np.uint8]
    """``frames height width 3``, full-range RGB."""
    fps: Fraction
    """Frames per second, exact."""
    recipe: dict[str, Any] | None
    """How the clip was made, if the file or the one beside it says so."""


class ClipFrame(NamedTuple):
    """One frame of a clip."""

    picture: npt.NDArray[np.uint8]
    """``height width 3``, full-range RGB."""
    number: int
    """Which one it is, from 0."""
    num_frames: int
    """How many the clip has."""


def read_clip(path: str | os.PathLike[str]) -> ClipFile:
    """Read the frames, the frame rate and the recipe of an MP4, MOV or WebM file.

    The colour matrix and range are those the file names; where it names none, BT.709 from 720
    lines on and BT.601 below, as browsers do. A rotation stored by a camera is not applied.

    Args:
        path: The file.

    Returns:
        The clip. Its recipe is None if there is none.

    Raises:
        InputError: If the file is missing, is no such video, or is too large.
        DataError: If the video is cut short or its recipe is damaged.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        fps = stream.average_rate
        if fps is None:
            raise DataError(f"'{path}' does not say how many frames it shows per second.")
        frames = _decode(path, container, stream)
        comment = _comment(container)
    return ClipFile(frames, Fraction(fps), _find_recipe(path, comment))


def read_frame(path: str | os.PathLike[str], number: int = -1) -> ClipFrame:
    """Read one frame of an MP4 or MOV file, holding no more than that one in memory.

    Colours are treated as by ``read_clip``.

    Args:
        path: The file.
        number: Which frame, from 0; -1 is the last.

    Returns:
        The frame.

    Raises:
        InputError: If the file is missing, is no such video, is too long, or has no such frame.
        DataError: If the video is damaged.
    """
    path = Path(path)
    found, count = None, 0
    with _opened(path) as (container, stream):
        for frame in _frames(path, container, stream):
            if number in (count, -1):
                found = frame
            count += 1
    if found is None:
        raise InputError(f"'{path}' has the frames 0 to {count - 1}; there is no frame {number}.")
    return ClipFrame(_to_rgb(found), count - 1 if number == -1 else number, count)


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read how a clip was made: from its comment, else from the ``.json`` file beside it.

    Args:
        path: The clip (MP4, MOV, WebM, GIF or WebP), or the ``.json`` file itself.

    Returns:
        The checked recipe. Nothing in it is to be opened as a path; its pictures are embedded, see
        ``decode_pictures``.

    Raises:
        InputError: If the file is missing, is no MP4 or MOV video, or holds no recipe.
        DataError: If the recipe is damaged, too large or of a newer version.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        _check_is_file(path)
        recipe = _read_sidecar(path)
    else:
        recipe = _find_recipe(path, read_comment(path))
    if recipe is None:
        raise InputError(
            f"'{path}' holds no pixeldance recipe. It was not made by pixeldance, or its comment "
            "was stripped on the way: put the .json file written with it beside it."
        )
    return recipe


def read_comment(path: str | os.PathLike[str]) -> str | None:
    """Read the comment in a file, whatever it is.

    Args:
        path: The file: MP4, MOV, WebM, GIF or WebP.

    Returns:
        The text, of unknown origin, or None if there is none.

    Raises:
        InputError: If the file is missing or of another kind.
    """
    path = Path(path)
    if path.suffix.lower() in _PICTURES:
        _check_is_file(path)
        return read_picture_comment(path)
    with _opened(path) as (container, _):
        return _comment(container)


def sidecar_path(path: Path) -> Path:
    """Where the recipe of a clip lies beside it.

    Args:
        path: The clip.

    Returns:
        The same name ending in ``.json``.
    """
    return path.with_suffix(".json")


def has_own_sidecar(path: Path) -> bool:
    """Whether the ``.json`` file beside a clip exists and is a recipe, not somebody's own file.

    Args:
        path: The clip.

    Returns:
        True if it is a recipe of this package.
    """
    try:
        return _read_sidecar(sidecar_path(path)) is not None
    except DataError:
        return False


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"'{path}' is a folder. Give the clip itself.")
    if not path.is_file():
        raise InputError(f"'{path}' does not exist. Check the name.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    _check_is_file(path)
    try:
        # The format is named and the path absolute, so that neither a playlist under the name of
        # a clip nor a name such as 'concat:a' makes FFmpeg open other files.
        container = av.open(
            str(path.resolve()),
            format=_CONTAINERS.get(path.suffix.lower(), "mp4"),
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is not an MP4, MOV or WebM video that can be read, or it is damaged. "
            "Give a clip written by pixeldance."
        ) from error
    with container:
        if not container.streams.video:
            raise InputError(f"'{path}' holds no pictures, only other streams.")
        yield container, container.streams.video[0]


def _comment(container: InputContainer) -> str | None:
    metadata = container.metadata
    return metadata.get("comment") or metadata.get("COMMENT")  # as WebM writes it


def _decode(path: Path, container: InputContainer, stream: VideoStream) -> npt.NDArray[np.uint8]:
    pictures = [_to_rgb(frame) for frame in _frames(path, container, stream)]
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise DataError(f"'{path}' changes its size on the way, which is not supported.")
    return np.stack(pictures)


def _frames(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """All frames in turn; at the end it is an error if some were missing."""
    num_frames = 0
    num_packets = 0
    num_bytes = 0
    try:
        for packet in container.demux(stream):
            num_packets += packet.size > 0
            for frame in packet.decode():
                num_bytes += frame.width * frame.height * 3
                if num_bytes > MAX_CLIP_BYTES:
                    raise InputError(
                        f"'{path}' is too long: its frames take more than "
                        f"{MAX_CLIP_BYTES // 1024**2} MiB. Cut it first."
                    )
                num_frames += 1
                yield frame
    except av.FFmpegError as error:
        raise DataError(f"'{path}' is damaged after {num_frames} frames: {error}.") from error
    if num_packets < stream.frames or not num_frames:
        raise DataError(
            f"'{path}' is cut short: {num_frames} of {stream.frames} frames could be read. "
            "Copy it again."
        )


def _to_rgb(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    guess = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    is_full = frame.color_range == ColorRange.JPEG
    picture = frame.reformat(
        format="rgb24",
        src_colorspace=_MATRICES.get(int(frame.colorspace), guess),
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG if is_full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_EXACT,
    )
    return picture.to_ndarray().astype(np.uint8, copy=False)


def _find_recipe(path: Path, comment: str | None) -> dict[str, Any] | None:
    """The recipe in the comment; what the comment leaves out or has lost is beside the clip."""
    if comment is None or SCHEMA not in comment:
        return _read_sidecar(sidecar_path(path))
    if len(comment.encode(errors="replace")) > MAX_COMMENT_BYTES:
        raise DataError(f"The comment of '{path}' is larger than {MAX_COMMENT_BYTES} bytes.")
    recipe = parse_recipe(comment, source=f"'{path}'")
    if recipe["pictures"] == PICTURES_IN_SIDECAR:
        beside = _read_sidecar(sidecar_path(path))
        # Only the pictures of this very clip: another clip's file may lie under the same name.
        if beside is not None and beside["frames"] == recipe["frames"]:
            recipe["pictures"] = beside["pictures"]
    return recipe


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    """The recipe in a .json file; None if there is no file or it is not one of ours."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(MAX_SIDECAR_BYTES + 1)
    if SCHEMA.encode() not in data:
        return None
    if len(data) > MAX_SIDECAR_BYTES:
        raise DataError(f"'{path}' is larger than {MAX_SIDECAR_BYTES} bytes.")
    return parse_recipe(data.decode("utf-8", errors="replace"), source=f"'{path}'")
