"""Reading pictures: any sensible file or object in, an upright opaque RGB picture out.

Files are untrusted. Their size is read from the header and checked before a pixel is decoded,
only the formats listed here are tried, and whatever a decoder raises becomes a one-line
:class:`~pixeldance.errors.InputError` that names the file and the remedy.
"""

import hashlib
import struct
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.errors import InputError

__all__ = ["FORMATS", "PictureInput", "load_picture", "picture_sha256"]

PictureInput: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[Any]
"""What :func:`load_picture` accepts: a path, an encoded file, a PIL picture or an array."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that are tried, by their Pillow names. Formats that run other programs are left out."""

_BACKGROUND = (255, 255, 255)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(
    source: PictureInput, *, max_pixels: int = 64_000_000, min_side: int = 16
) -> Image.Image:
    """Read a picture and return it upright, opaque, 8 bits per channel and RGB.

    The EXIF orientation is applied, transparency is laid on white, palette, grey and CMYK
    pictures are converted, 16-bit values are scaled to 8 bits, and of an animation the first
    frame is taken (of a PIL picture the frame it stands at). Embedded colour profiles are not
    applied. The object given is never changed.

    Args:
        source: A path, the bytes of a picture file, a PIL picture, or a uint8 array of shape
            height x width x 3.
        max_pixels: Largest number of pixels (width times height) that is decoded.
        min_side: Fewest pixels along a side.

    Returns:
        A new picture in mode RGB.

    Raises:
        InputError: If there is no such file, it is not a picture, it is damaged, too large or too
            small; one line with the name of the file and what to do.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        picture = _from_array(source, name, max_pixels)
    elif isinstance(source, Image.Image):
        picture = _decode(source, name, max_pixels)
    elif isinstance(source, bytes):
        picture = _read(BytesIO(source), name, max_pixels)
    else:
        picture = _read_file(source, name, max_pixels)
    if min(picture.size) < min_side:
        raise InputError(
            f"{name} is {picture.width}x{picture.height} pixels; at least {min_side} pixels per "
            "side are needed. Use a larger picture."
        )
    return picture


def picture_sha256(picture: Image.Image) -> str:
    """Return the fingerprint of the pixels, whatever file they came from.

    Args:
        picture: An RGB picture, as :func:`load_picture` returns it.

    Returns:
        SHA-256 over width, height and the RGB bytes, as 64 hexadecimal digits.

    Raises:
        InputError: If the picture is not RGB.
    """
    if picture.mode != "RGB":
        raise InputError(
            f"picture_sha256 takes RGB pictures, got mode {picture.mode}. Use load_picture first."
        )
    digest = hashlib.sha256(f"RGB {picture.width}x{picture.height}\n".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _name(source: PictureInput) -> str:
    """Say what was given; repr() keeps line breaks in file names out of the message."""
    if isinstance(source, (str, Path)):
        text = repr(str(source))
        return f"Picture {text if len(text) <= 300 else text[:297] + '...'}"
    if isinstance(source, bytes):
        return f"The picture given as {len(source)} bytes"
    if isinstance(source, Image.Image):
        return "The PIL picture"
    return "The array"


def _from_array(array: npt.NDArray[Any], name: str, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape} and type {array.dtype}; a picture is an array of "
            "shape (height, width, 3) and type uint8 with values 0 to 255. Convert it."
        )
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def _read_file(source: str | Path, name: str, max_pixels: int) -> Image.Image:
    if isinstance(source, str) and source.lower().startswith(("http://", "https://", "data:")):
        raise InputError(f"{name} is an address, not a file. Download it and give the file.")
    if source == "":
        raise InputError(f"{name} is an empty path. Give the path of a picture.")
    path = Path(source)
    try:
        if path.is_dir():
            raise InputError(f"{name} is a folder. Give the path of one picture in it.")
        if not path.exists():
            raise InputError(f"{name} does not exist. Check the path.")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file. Copy the picture to a file.")
        with path.open("rb") as stream:
            return _read(stream, name, max_pixels)
    except OSError as error:
        raise InputError(
            f"{name} cannot be opened ({error.strerror}). Check the path and the permissions."
        ) from error


def _read(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    if not stream.read(1):
        raise InputError(f"{name} is empty (0 bytes). Export the picture again.")
    try:
        picture = _identify(stream)
    except Exception as error:  # decoders raise anything on a damaged file
        raise _damaged(name, error) from error
    if picture is None:
        raise InputError(
            f"{name} is not a picture in a known format (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, "
            "JPEG 2000, PPM), whatever its name says. Export it as PNG or JPEG."
        )
    return _decode(picture, name, max_pixels)


def _identify(stream: IO[bytes]) -> Image.Image | None:
    """Open a picture without decoding it; None if no format fits.

    This is ``PIL.Image.open`` minus its check against ``Image.MAX_IMAGE_PIXELS``: that limit is
    global, anybody may have changed it, and it warns on stderr. Ours follows in ``_decode``.
    """
    Image.init()
    stream.seek(0)
    prefix = stream.read(16)
    for picture_format in FORMATS:
        factory, accept = Image.OPEN.get(picture_format, (None, None))
        if factory is None:
            continue
        try:
            # A format that this build of Pillow cannot decode answers with a sentence, not True.
            if accept is not None and accept(prefix) is not True:
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # the first bytes looked right, the rest does not: as Image.open does
    return None


def _decode(picture: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(picture.width, picture.height, name, max_pixels)
    try:
        picture.load()
        picture = _opaque(_upright(picture), name)
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        raise _damaged(name, error) from error
    picture.info = {}  # the orientation must not be applied again to the result
    return picture


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width}x{height} pixels. Use a picture that is not empty.")
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width}x{height} pixels; at most {max_pixels / 1e6:g} million pixels are "
            "read. Scale it down first."
        )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except Exception:  # unreadable metadata says nothing about the pixels: shown as stored
        return picture
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if transpose is None else picture.transpose(transpose)


def _opaque(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        raise InputError(
            f"{name} holds floating-point values, whose range is not defined. "
            "Save it with 8 or 16 bits per channel."
        )
    if picture.mode.startswith("I"):
        return _from_16_bit(picture, name)
    if picture.has_transparency_data:
        rgba = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        return Image.alpha_composite(
            Image.new("RGBA", rgba.size, (*_BACKGROUND, 255)), rgba
        ).convert("RGB")
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image, name: str) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{name} holds integers from {values.min()} to {values.max()}; 0 to 65535 is read. "
            "Save it with 8 or 16 bits per channel."
        )
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    # 65535 = 255 * 257, so this is the exact scale, rounded to nearest.
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} is damaged or incomplete and cannot be decoded ({_one_line(error)}). "
        "Export it again as PNG or JPEG."
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text or type(error).__name__
