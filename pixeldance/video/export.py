"""Other forms of a finished clip: WebM, GIF, a ZIP of PNG frames."""

import io
import os
import zipfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from PIL import Image

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.recipe import check_frames, recipe_texts
from pixeldance.video.write import mux_frames

__all__ = ["EXPORT_FORMATS", "export_clip"]

VP9_OPTIONS = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "threads": "2"}
EXPORT_FORMATS = (".webm", ".gif", ".zip")
"""Endings of what ``export_clip`` writes."""

CENTISECOND = Fraction(1, 100)
"""GIF's unit of time; browsers play pictures shorter than two of them slowly."""


def export_clip(
    path: str | os.PathLike[str],
    frames: npt.NDArray[Any],
    *,
    fps: Fraction | int,
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a clip in another form than MP4, complete or not at all.

    ``.webm`` is VP9 (4:2:0, BT.709), ``.gif`` has one palette chosen for the clip, ``.zip`` holds
    each frame as PNG without loss.

    Args:
        path: Where it goes; its ending says in which form.
        frames: ``frames height width 3``, uint8, sRGB.
        fps: Frames per second. GIF counts in hundredths of a second, so its frames last now a bit
            longer, now a bit shorter.
        recipe: Recipe of the clip; kept in the comment of a WebM (unless its pictures make it too
            large) and as ``clip.json`` in a ZIP. A GIF holds none.
        overwrite: Whether a file that is already there may be replaced.

    Returns:
        The path.

    Raises:
        InputError: If an argument is not as described or a file would be overwritten.
        PixelDanceError: If encoding or writing fails; nothing is left behind.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXPORT_FORMATS:
        raise InputError(
            f"A clip can be exported as {', '.join(EXPORT_FORMATS)}, got '{path}'. "
            "Use write_clip for MP4."
        )
    path = check_output_path(path, suffix=suffix, overwrite=overwrite)
    check_frames(frames)
    comment, beside = (None, None) if recipe is None else recipe_texts(recipe, sidecar=True)
    with new_files(path, overwrite=overwrite) as (temporary,):
        try:
            if suffix == ".zip":
                _write_zip(temporary, frames, beside)
            elif suffix == ".gif":
                _write_gif(temporary, frames, Fraction(fps))
            else:
                _write_webm(temporary, frames, Fraction(fps), comment)
        except av.FFmpegError as error:
            raise PixelDanceError(f"Could not encode '{path}': {error}.") from error
    return path


def _write_webm(path: Path, frames: npt.NDArray[Any], rate: Fraction, comment: str | None) -> None:
    with av.open(str(path), "w", format="webm") as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libvpx-vp9", rate=rate, options=VP9_OPTIONS)
        mux_frames(container, stream, frames, rate=rate)


def _write_gif(path: Path, frames: npt.NDArray[Any], rate: Fraction) -> None:
    height, width = frames.shape[1:3]
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=CENTISECOND
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=diff")
    use = graph.add("paletteuse", "dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        stream.codec_context.time_base = CENTISECOND
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = round(i / rate / CENTISECOND), CENTISECOND
            source.push(picture)
        source.push(None)
        for _ in frames:
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))


def _write_zip(path: Path, frames: npt.NDArray[Any], recipe: str | None) -> None:
    digits = max(4, len(str(len(frames) - 1)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for i, frame in enumerate(frames):
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(frame)).save(buffer, format="PNG")
            archive.writestr(f"frame-{i:0{digits}}.png", buffer.getvalue())
        if recipe is not None:
            archive.writestr("clip.json", recipe)
