"""The Python side of the drawing pad: pictures out and in, hostile texts refused."""

import asyncio
import base64
import re
import struct
import zlib
from io import BytesIO

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixeldance.errors import InputError
from pixeldance.server.studio.pad import (
    MAX_BYTES,
    MAX_PIXELS,
    Pad,
    build_pad,
    decode_drawing,
    encode_picture,
    pad_css,
    pad_js,
)

PREFIX = "data:image/png;base64,"


def noise(width: int = 33, height: int = 17) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def png_bytes(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def uri_of(data: bytes) -> str:
    return PREFIX + base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_round_trip_keeps_every_pixel() -> None:
    picture = noise()
    returned = decode_drawing(encode_picture(picture))
    assert returned.mode == "RGB"
    assert returned.tobytes() == picture.tobytes()


def test_encoded_picture_is_rgb_upright_and_without_metadata() -> None:
    picture = noise().convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    stream = BytesIO()
    text = PngInfo()
    text.add_text("prompt", "private")
    picture.save(stream, "PNG", exif=exif, pnginfo=text)
    encoded = encode_picture(Image.open(BytesIO(stream.getvalue())))
    stored = Image.open(BytesIO(base64.b64decode(encoded.removeprefix(PREFIX))))
    assert (stored.format, stored.mode, stored.size, stored.info) == ("PNG", "RGB", (17, 33), {})


def test_transparent_parts_of_a_drawing_are_white() -> None:
    transparent = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    drawing = decode_drawing(uri_of(png_bytes(transparent)))
    assert drawing.getcolors() == [(256, (255, 255, 255))]


def test_picture_too_large_for_the_pad_is_not_encoded() -> None:
    with pytest.raises(InputError, match=r"5000x4000 pixels; at most 16 million"):
        encode_picture(Image.new("RGB", (5000, 4000)))


@pytest.mark.parametrize("empty", ["", None])
def test_empty_pad_says_what_to_do(empty: str) -> None:
    with pytest.raises(InputError, match=r"pad is empty. Start from the first frame"):
        decode_drawing(empty)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/picture.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/jpeg;base64,/9j/",
        "data:image/png,abc",
        "DATA:image/png;base64,AAAA",
        " " + PREFIX,
        "<script>alert(1)</script>\n",
    ],
)
def test_anything_but_a_png_data_uri_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"only 'data:image/png;base64,' is read") as caught:
        decode_drawing(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["AAA", "A===", "AA AA", "AAAA\n", "AA-_", "é" * 4, "=", "A" * 9])
def test_bad_base64_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not valid base64"):
        decode_drawing(PREFIX + text)


@pytest.mark.parametrize("picture_format", ["JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_under_the_name_of_png_are_refused(picture_format: str) -> None:
    stream = BytesIO()
    noise().save(stream, picture_format)
    with pytest.raises(InputError, match="not a PNG file, whatever it says"):
        decode_drawing(uri_of(stream.getvalue()))


def test_nothing_after_the_prefix_is_not_a_png() -> None:
    with pytest.raises(InputError, match="not a PNG file"):
        decode_drawing(PREFIX)


def test_truncated_png_is_refused() -> None:
    data = png_bytes(noise(64, 64))
    with pytest.raises(InputError, match="damaged or incomplete"):
        decode_drawing(uri_of(data[: len(data) // 2]))


def test_size_is_checked_before_a_pixel_is_decoded() -> None:
    with pytest.raises(InputError, match=r"65535x65535 pixels; at most 16 million pixels"):
        decode_drawing(uri_of(png_header(65535, 65535)))


@pytest.mark.parametrize(("side", "is_allowed"), [(15, False), (16, True)])
def test_smallest_side(side: int, is_allowed: bool) -> None:
    uri = uri_of(png_bytes(Image.new("RGB", (side, 40))))
    if is_allowed:
        assert decode_drawing(uri).size == (side, 40)
    else:
        with pytest.raises(InputError, match="at least 16 pixels per side"):
            decode_drawing(uri)


def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    text = PREFIX + "!" * (4 * (MAX_BYTES // 3 + 1))  # no base64 at all: it would be named first
    with pytest.raises(InputError, match=r"48.0 MiB; at most 48 MiB"):
        decode_drawing(text)


def test_every_drawing_of_the_largest_size_fits_the_limit_in_bytes() -> None:
    # Deflate stores what it cannot compress, at 5 bytes per 16 KiB; a row adds its filter byte.
    raw_bytes = 3 * MAX_PIXELS + MAX_PIXELS // 16
    assert raw_bytes + 5 * (raw_bytes // 2**14 + 1) + 1000 < MAX_BYTES


def test_limits_are_those_of_the_script() -> None:
    [pixels] = re.findall(r"MAX_PIXELS = ([\d_]+);", pad_js())
    assert int(pixels) == MAX_PIXELS


def test_script_and_style_can_stand_in_a_page() -> None:
    script, style = pad_js(), pad_css()
    assert "</script" not in script.lower()
    assert "</style" not in style.lower()
    for text in (script, style):
        assert re.findall(r"https?://|@import|url\(|\beval\b", text) == []


def test_style_concerns_the_pad_alone() -> None:
    without_comments = re.sub(r"/\*.*?\*/", "", pad_css(), flags=re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", without_comments)
    assert selectors
    parts = [part for selector in selectors for part in selector.split(",\n")]
    assert [part for part in parts if not part.strip().startswith(".pd-pad")] == []


def test_pad_runs_in_the_browser_alone() -> None:
    async def build() -> tuple[gr.Blocks, Pad]:
        with gr.Blocks(analytics_enabled=False) as page:
            return page, build_pad()

    # In a running event loop: without one, Gradio makes some that it never closes.
    page, pad = asyncio.run(build())
    functions = page.config["dependencies"]
    assert len(functions) == 2
    assert [function["backend_fn"] for function in functions] == [False, False]
    assert {function["api_visibility"] for function in functions} == {"private"}
    assert [pad.source.visible, pad.result.visible] == ["hidden", "hidden"]
    assert pad.use.value == "Use as last frame"
