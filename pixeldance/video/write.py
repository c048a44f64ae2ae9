"""Writing clips: H.264 that every player shows in the right colours."""

import itertools
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy.typing as npt
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.read import has_own_sidecar, sidecar_path
from pixeldance.video.recipe import check_frames, recipe_texts

__all__ = [
    "check_clip_path",
    "check_even",
    "exact_fps",
    "mux_frames",
    "write_clip",
    "write_frames",
]

# Equal frames shall give equal bytes. x264's output depends on the number of threads, so that is
# fixed; and without "cpu-independent" it varies between processors and even between two runs (about
# one small clip in ten with x264 core 165).
ENCODER_OPTIONS = {"preset": "slow", "threads": "2", "x264-params": "cpu-independent=1"}
MAX_FPS = 1000


def check_clip_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Check that a clip may be written at a path, before it is generated.

    Args:
        path: Where the clip shall go; its recipe goes to the same name ending in ``.json``.
        overwrite: Whether a clip and recipe that are already there may be replaced.

    Returns:
        The path as a ``Path``.

    Raises:
        InputError: If the ending is not ``.mp4``, the folder is missing or read-only, or the clip
            or its recipe file exists and must not be overwritten.
    """
    return check_output_path(path, suffix=".mp4", overwrite=overwrite, companion=".json")


def write_clip(
    path: str | os.PathLike[str],
    frames: npt.NDArray[Any],
    *,
    fps: Fraction | float | int,
    crf: int = 17,
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    sidecar: bool = True,
) -> Path:
    """Write a clip as H.264 (4:2:0, BT.709, limited range, index first), complete or not at all.

    The same frames and recipe give the same bytes with the same PyAV wheel. Reading back gives
    the frames but for the losses of compression and halved colour resolution.

    Args:
        path: Where the clip goes, ending in ``.mp4``, in a folder that exists.
        frames: ``frames height width 3``, uint8, sRGB; even height and width.
        fps: Frames per second, kept exactly: fractional rates as ``Fraction(24000, 1001)``.
        crf: x264's constant rate factor, 1 (best) to 51; 6 more halve the file, roughly.
        recipe: Recipe from ``build_recipe``, stored in the clip's comment.
        overwrite: Whether a clip and a recipe file that are already there may be replaced. Without
            a new recipe file, an old one of ours is removed: it would describe another clip.
        sidecar: Whether the recipe is also written beside the clip, to the same name in ``.json``.

    Returns:
        The path of the clip.

    Raises:
        InputError: If an argument is not as described or a file would be overwritten.
        PixelDanceError: If encoding or writing fails; nothing is left behind.
    """
    path = check_clip_path(path, overwrite=overwrite)
    check_frames(frames)
    check_even(*frames.shape[1:3], codec="H.264")
    texts = (None, None) if recipe is None else recipe_texts(recipe, sidecar=sidecar)
    comment, beside = texts if sidecar else (texts[0], None)
    return write_frames(
        path, frames, fps=fps, crf=crf, comment=comment, beside=beside, overwrite=overwrite
    )


def write_frames(
    path: str | os.PathLike[str],
    frames: Iterable[npt.NDArray[Any]],
    *,
    fps: Fraction | float | int,
    crf: int = 17,
    comment: str | None = None,
    beside: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write frames that come one after another, as ``write_clip`` does; few are in memory.

    Args:
        path: Where they go, ending in ``.mp4``, in a folder that exists.
        frames: At least one, all ``height width 3`` of one even size, uint8, sRGB.
        fps: Frames per second, kept exactly: fractional rates as ``Fraction(24000, 1001)``.
        crf: x264's constant rate factor, 1 (best) to 51.
        comment: Text for the file's comment.
        beside: Text for the same name ending in ``.json``.
        overwrite: Whether files that are already there may be replaced. Without a new text beside
            it, a recipe of ours that is there is removed: it would describe another clip.

    Returns:
        The path of the file.

    Raises:
        InputError: If an argument is not as described or a file would be overwritten.
        PixelDanceError: If encoding or writing fails; nothing is left behind.
    """
    path = check_clip_path(path, overwrite=overwrite)
    rate = exact_fps(fps)
    _check_crf(crf)
    targets = [path] if beside is None else [sidecar_path(path), path]
    with new_files(*targets, overwrite=overwrite) as temporaries:
        try:
            _encode(temporaries[-1], frames, rate=rate, crf=crf, comment=comment)
        except av.FFmpegError as error:
            raise PixelDanceError(f"Could not encode '{path}': {error}.") from error
        if beside is not None:
            temporaries[0].write_text(beside, encoding="utf-8")
    if beside is None and has_own_sidecar(path):
        sidecar_path(path).unlink()
    return path


def _encode(
    path: Path,
    frames: Iterable[npt.NDArray[Any]],
    *,
    rate: Fraction,
    crf: int,
    comment: str | None,
) -> None:
    """Encode to one file; the path has no ending, so the container format is named."""
    # bitexact leaves the muxer's version out of the file.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        encoder_options = ENCODER_OPTIONS | {"crf": str(crf)}
        stream = container.add_stream("libx264", rate=rate, options=encoder_options)
        mux_frames(container, stream, frames, rate=rate)


def mux_frames(
    container: OutputContainer,
    stream: VideoStream,
    frames: Iterable[npt.NDArray[Any]],
    *,
    rate: Fraction,
    pixel_format: str = "yuv420p",
) -> None:
    """Encode frames as YUV, BT.709, limited range, tagged so, and put them into a container.

    Args:
        container: Where they go.
        stream: A new stream of the container.
        frames: At least one, each ``height width 3``, uint8, full-range RGB, of one size.
        rate: Frames per second.
        pixel_format: FFmpeg's name of the YUV format; by default 4:2:0 with 8 bits.
    """
    remaining = iter(frames)
    first = next(remaining)
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = pixel_format
    context = stream.codec_context
    context.time_base = 1 / rate
    context.color_range = ColorRange.MPEG
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    for i, frame in enumerate(itertools.chain([first], remaining)):
        picture = _to_yuv(frame, pixel_format)
        picture.pts, picture.time_base = i, 1 / rate
        # ProRes takes its tags from here, not from the stream
        picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))


def _to_yuv(frame: npt.NDArray[Any], pixel_format: str) -> av.VideoFrame:
    """Full-range RGB to limited-range BT.709.

    The matrix must be named: by default it is BT.601, which players take for granted only in
    small pictures, so that reds and greens shift in large ones.
    """
    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
        format=pixel_format,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def check_even(height: int, width: int, *, codec: str) -> None:
    """Check that frames have sides that a codec with halved colour resolution takes.

    Args:
        height: Pixels.
        width: Pixels.
        codec: Its name, for the message.

    Raises:
        InputError: If a side is odd.
    """
    if height % 2 or width % 2:
        raise InputError(
            f"height and width must be even for {codec}, got {height} x {width} (height x width). "
            f"Crop to {height - height % 2} x {width - width % 2} or generate at an even size."
        )


def exact_fps(fps: Fraction | float | int) -> Fraction:
    """Check a frame rate.

    Args:
        fps: Frames per second.

    Returns:
        The same, exact.

    Raises:
        InputError: If it is a float with a fraction, or out of range.
    """
    if isinstance(fps, float) and not fps.is_integer():
        raise InputError(
            f"fps must be exact, got the float {fps}. Use a Fraction, such as Fraction(24000, 1001)"
            " for 23.976."
        )
    rate = Fraction(fps)
    if not 0 < rate <= MAX_FPS or rate.numerator > 10**6 or rate.denominator > 10**6:
        raise InputError(f"fps must be above 0 and at most {MAX_FPS}, got {fps}.")
    return rate


def _check_crf(crf: int) -> None:
    if crf <= 0:
        raise InputError(
            f"crf must be 1 to 51, got {crf}. At 0 x264 switches to the lossless profile "
            "High 4:4:4, which browsers and most players refuse. Use 1 for the best quality."
        )
    if crf > 51:
        raise InputError(f"crf must be 1 to 51, got {crf}. Larger is worse; 17 is a good value.")
