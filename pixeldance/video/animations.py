"""Animated pictures: GIF and WebP, with the recipe inside them."""

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from PIL import Image

from pixeldance.errors import InputError

__all__ = ["check_gif_fps", "read_picture_comment", "write_gif", "write_webp"]

CENTISECOND = Fraction(1, 100)
"""GIF's unit of time; browsers play pictures shorter than two of them slowly."""
MAX_GIF_FPS = 50
WEBP_OPTIONS = {"quality": 90, "method": 4}

_GIF_HEADER_BYTES = 13
_GIF_COMMENT = b"\x21\xfe"
_GIF_BLOCK_BYTES = 255
_EXIF_DESCRIPTION = 0x010E


def check_gif_fps(rate: Fraction) -> None:
    """Check that a GIF can play so fast.

    Args:
        rate: Frames per second.

    Raises:
        InputError: If it cannot.
    """
    if rate > MAX_GIF_FPS:
        raise InputError(
            f"A GIF shows at most {MAX_GIF_FPS} frames per second (browsers slow faster ones "
            f"down), this clip has {float(rate):g}. Write WebP or MP4, or fewer frames per second."
        )


def write_gif(path: Path, frames: npt.NDArray[Any], rate: Fraction, comment: str | None) -> None:
    """Write a GIF that loops, with one palette chosen for the whole clip, dithered.

    Args:
        path: Where it goes.
        frames: ``frames height width 3``, uint8, sRGB.
        rate: Frames per second; counted in hundredths of a second, so that frames last now a bit
            longer, now a bit shorter.
        comment: Text to put into it.
    """
    height, width = frames.shape[1:3]
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=CENTISECOND
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=full")
    # An ordered dither stays put from frame to frame; diffused errors flicker and take more bytes.
    use = graph.add("paletteuse", "dither=bayer:bayer_scale=4")
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
    if comment is not None:
        path.write_bytes(_with_gif_comment(path.read_bytes(), comment))


def write_webp(path: Path, frames: npt.NDArray[Any], rate: Fraction, comment: str | None) -> None:
    """Write an animated WebP that loops.

    Args:
        path: Where it goes.
        frames: ``frames height width 3``, uint8, sRGB.
        rate: Frames per second; counted in thousandths of a second.
        comment: Text to put into it.
    """
    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    starts = [round(1000 * i / rate) for i in range(len(frames) + 1)]
    exif = Image.Exif()
    if comment is not None:
        exif[_EXIF_DESCRIPTION] = _in_ascii(comment)
    first.save(
        path,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=[end - start for start, end in itertools.pairwise(starts)],
        loop=0,
        exif=exif if comment is not None else b"",
        **WEBP_OPTIONS,
    )


def read_picture_comment(path: Path) -> str | None:
    """Read the text that ``write_gif`` and ``write_webp`` put into a file.

    Args:
        path: The file; it is not trusted.

    Returns:
        The text, or None if there is none.

    Raises:
        InputError: If the file is no GIF or WebP.
    """
    try:
        with Image.open(path, formats=["GIF", "WEBP"]) as picture:
            comment = picture.info.get("comment") or picture.getexif().get(_EXIF_DESCRIPTION)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' is not a GIF or WebP picture that can be read.") from error
    if isinstance(comment, bytes):
        return comment.decode("utf-8", errors="replace")
    return comment if isinstance(comment, str) else None


def _with_gif_comment(data: bytes, comment: str) -> bytes:
    """A GIF with a comment extension after its header (GIF89a, sections 18, 19 and 24)."""
    packed = data[10]
    palette_bytes = 3 << ((packed & 7) + 1) if packed & 0x80 else 0
    start = _GIF_HEADER_BYTES + palette_bytes
    text = _in_ascii(comment).encode("ascii")
    blocks = b"".join(
        bytes([len(part)]) + part
        for i in range(0, len(text), _GIF_BLOCK_BYTES)
        if (part := text[i : i + _GIF_BLOCK_BYTES])
    )
    return data[:start] + _GIF_COMMENT + blocks + b"\0" + data[start:]


def _in_ascii(comment: str) -> str:
    """A JSON text with every other character escaped: both formats promise no more than ASCII."""
    return json.dumps(json.loads(comment), separators=(",", ":"))
