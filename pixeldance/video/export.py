"""Clips in every form: H.264, VP9, AV1, ProRes, GIF, WebP, PNG files in a folder or an archive."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream
from PIL import Image

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video.animations import check_gif_fps, write_gif, write_webp
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.folders import check_folder_path, new_folder
from pixeldance.video.formats import FORMATS, choose_format
from pixeldance.video.recipe import check_frames, recipe_texts
from pixeldance.video.write import (
    check_clip_path,
    check_even,
    exact_fps,
    mux_frames,
    write_clip,
)

__all__ = ["EXPORT_FORMATS", "RECIPE_NAME", "check_export_path", "check_fits", "export_clip"]

EXPORT_FORMATS = tuple(dict.fromkeys(s for form in FORMATS.values() for s in form.suffixes if s))
"""Endings of the files that ``export_clip`` writes."""

RECIPE_NAME = "clip.json"
"""The recipe's name beside the PNG files of a folder or an archive."""

MIN_AV1_SIDE = 64


class _Encoder(NamedTuple):
    """How a codec is used."""

    codec: str
    pixel_format: str
    options: dict[str, str]


_ENCODERS = {
    "webm": _Encoder(
        "libvpx-vp9",
        "yuv420p",
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "threads": "2"},
    ),
    "av1": _Encoder("libsvtav1", "yuv420p10le", {"crf": "24", "preset": "6"}),
    # Profile 3 is 422 HQ; programs of Apple want to see their own vendor.
    "prores": _Encoder("prores_ks", "yuv422p10le", {"profile": "3", "vendor": "apl0"}),
}
_EVEN_SIDES = {"mp4": "H.264", "av1": "AV1", "prores": "ProRes"}
_CONTAINERS = {".webm": "webm", ".mp4": "mp4", ".mov": "mov"}


def check_export_path(
    path: str | os.PathLike[str], *, clip_format: str | None = None, overwrite: bool = False
) -> str:
    """Check that a clip may be written at a path in some form, before any work is done for it.

    Args:
        path: Where it goes.
        clip_format: A name in ``FORMATS``; by default the ending says it.
        overwrite: Whether what is already there may be replaced.

    Returns:
        The name of the format.

    Raises:
        InputError: If it may not.
    """
    name = choose_format(path, clip_format)
    if name == "mp4":
        check_clip_path(path, overwrite=overwrite)
    elif name == "png":
        check_folder_path(path, recipe_name=RECIPE_NAME, overwrite=overwrite)
    else:
        check_output_path(path, suffix=Path(path).suffix.lower(), overwrite=overwrite)
    return name


def export_clip(
    path: str | os.PathLike[str],
    frames: npt.NDArray[Any],
    *,
    fps: Fraction | int,
    clip_format: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a clip in some form, complete or not at all.

    Args:
        path: Where it goes; its ending says in which form.
        frames: ``frames height width 3``, uint8, sRGB. Even sides for MP4, AV1 and ProRes.
        fps: Frames per second. GIF counts in hundredths of a second, so its frames last now a bit
            longer, now a bit shorter, and there are at most 50 of them in a second.
        clip_format: A name in ``FORMATS``, where the ending says too little.
        recipe: Recipe of the clip; kept in the file (unless its pictures make it too large), in a
            folder or an archive as ``clip.json``; an MP4 gets it beside it, too.
        overwrite: Whether what is already there may be replaced; a folder only if it holds nothing
            but such files.

    Returns:
        The path.

    Raises:
        InputError: If an argument is not as described or a file would be overwritten.
        PixelDanceError: If encoding or writing fails; nothing is left behind.
    """
    name = check_export_path(path, clip_format=clip_format, overwrite=overwrite)
    path = Path(path)
    check_frames(frames)
    rate = exact_fps(fps)
    check_fits(name, height=frames.shape[1], width=frames.shape[2], fps=rate)
    if name == "mp4":
        return write_clip(path, frames, fps=rate, recipe=recipe, overwrite=overwrite)
    comment, beside = (None, None) if recipe is None else recipe_texts(recipe, sidecar=True)
    if name == "png":
        with new_folder(path, recipe_name=RECIPE_NAME, overwrite=overwrite) as folder:
            for file_name, data in _picture_files(frames, beside):
                (folder / file_name).write_bytes(data)
        return path
    with new_files(path, overwrite=overwrite) as (temporary,):
        try:
            if name == "zip":
                _write_zip(temporary, frames, beside)
            elif name == "gif":
                write_gif(temporary, frames, rate, comment)
            elif name == "webp":
                write_webp(temporary, frames, rate, comment)
            else:
                container = _CONTAINERS[path.suffix.lower()]
                _write_video(temporary, frames, rate, _ENCODERS[name], container, comment)
        except av.FFmpegError as error:
            raise PixelDanceError(f"Could not encode '{path}': {error}.") from error
    return path


def check_fits(name: str, *, height: int, width: int, fps: Fraction) -> None:
    """Check that a format can hold a clip.

    Args:
        name: A name in ``FORMATS``.
        height: Pixels.
        width: Pixels.
        fps: Frames per second.

    Raises:
        InputError: If it cannot.
    """
    if name == "gif":
        check_gif_fps(fps)
    if name in _EVEN_SIDES:
        check_even(height, width, codec=_EVEN_SIDES[name])
    if name == "av1" and min(height, width) < MIN_AV1_SIDE:
        raise InputError(
            f"AV1 needs sides of at least {MIN_AV1_SIDE} pixels, got {height} x {width} "
            "(height x width). Write WebM, or enlarge the clip."
        )


def _write_video(
    path: Path,
    frames: npt.NDArray[Any],
    rate: Fraction,
    encoder: _Encoder,
    container_format: str,
    comment: str | None,
) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # of the AV1 encoder: errors only, no settings
    # MOV's own comments end at 64 KiB, so there they are written as metadata tags.
    flags = {"mp4": "+faststart", "mov": "+faststart+use_metadata_tags"}.get(container_format)
    options = {} if flags is None else {"movflags": flags}
    with av.open(str(path), "w", format=container_format, options=options) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream(encoder.codec, rate=rate, options=dict(encoder.options))
        assert isinstance(stream, VideoStream)
        mux_frames(container, stream, frames, rate=rate, pixel_format=encoder.pixel_format)


def _picture_files(frames: npt.NDArray[Any], recipe: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and contents: every frame as PNG, then the recipe."""
    digits = max(4, len(str(len(frames) - 1)))
    for i, frame in enumerate(frames):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame)).save(buffer, format="PNG")
        yield f"frame-{i:0{digits}}.png", buffer.getvalue()
    if recipe is not None:
        yield RECIPE_NAME, recipe.encode()


def _write_zip(path: Path, frames: npt.NDArray[Any], recipe: str | None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for file_name, data in _picture_files(frames, recipe):
            archive.writestr(file_name, data)
