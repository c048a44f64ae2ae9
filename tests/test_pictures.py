"""Pictures of every kind come out upright, opaque and RGB, or with one line that helps."""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pixeldance.errors import InputError
from pixeldance.pictures import load_picture, picture_sha256

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def _noise(width=40, height=24):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _saved(path, picture, **options):
    picture.save(path, **options)
    return path


def _png_header(width, height, depth=8, colour=2):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def _error(source, **options):
    with pytest.raises(InputError) as caught:
        load_picture(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, (str, Path)):
        assert repr(str(source)) in message
    return message


# What is read


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "gif", "webp", "jpg", "ppm", "jp2"])
def test_formats(tmp_path, extension):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98}}.get(extension, {})
    flat = Image.new("RGB", (40, 24), (40, 90, 160))
    picture = load_picture(_saved(tmp_path / f"a.{extension}", flat, **options))
    assert (picture.mode, picture.size) == ("RGB", (40, 24))
    assert np.abs(np.asarray(picture).astype(int) - (40, 90, 160)).max() <= 2


def test_the_content_decides_not_the_name(tmp_path):
    noise = _noise()
    path = _saved(tmp_path / "a.jpg", noise, format="PNG")
    assert np.array_equal(load_picture(path), noise)


def test_path_text_bytes_picture_and_array_are_the_same_picture(tmp_path):
    noise = _noise()
    path = _saved(tmp_path / "a.png", noise)
    for source in (path, str(path), path.read_bytes(), noise, np.asarray(noise), Image.open(path)):
        assert np.array_equal(load_picture(source), noise)


# Corner of the upright picture where the first stored pixel belongs (EXIF 2.3, tag 274), and
# whether rows are stored as columns.
ORIENTATIONS = {
    1: ((0, 0), False),
    2: ((-1, 0), False),
    3: ((-1, -1), False),
    4: ((0, -1), False),
    5: ((0, 0), True),
    6: ((-1, 0), True),
    7: ((-1, -1), True),
    8: ((0, -1), True),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_orientation_is_applied_once(tmp_path, orientation, extension):
    stored = Image.new("RGB", (40, 24), BLUE)
    stored.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if extension == "webp" else {}
    path = _saved(tmp_path / f"a.{extension}", stored, exif=exif, **options)
    (x, y), is_turned = ORIENTATIONS[orientation]
    picture = load_picture(path)
    assert picture.size == ((24, 40) if is_turned else (40, 24))
    assert np.asarray(picture)[y, x].tolist() == list(RED)
    assert np.array_equal(load_picture(picture), picture)
    with Image.open(path) as opened:
        assert np.array_equal(load_picture(opened), picture)


def test_unknown_orientation_and_unreadable_metadata_leave_the_picture_as_stored(tmp_path):
    noise = _noise()
    exif = Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(load_picture(_saved(tmp_path / "a.png", noise, exif=exif)), noise)
    path = _saved(tmp_path / "b.png", noise, exif=b"Exif\0\0garbage")
    assert np.array_equal(load_picture(path), noise)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_laid_on_white(mode):
    rgba = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    rgba.paste((0, 0, 0, 255), (0, 0, 16, 32))
    rgba.paste((0, 0, 0, 128), (16, 0, 32, 16))
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"]}.get(mode, [mode])
    picture = rgba
    for step in steps:
        picture = picture.convert(step)
    if mode == "PA":
        picture.putalpha(rgba.getchannel("A"))
    laid = load_picture(picture)
    assert laid.getpixel((4, 4)) == (0, 0, 0)
    assert laid.getpixel((24, 8)) == (127, 127, 127)
    assert laid.getpixel((24, 24)) == WHITE


def test_palette_and_its_transparent_colour(tmp_path):
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([*BLUE, *RED])
    palette.paste(0, (0, 0, 16, 32))
    opaque = load_picture(_saved(tmp_path / "opaque.png", palette))
    assert (opaque.getpixel((4, 4)), opaque.getpixel((24, 4))) == (BLUE, RED)
    for extension in ("png", "gif"):
        path = _saved(tmp_path / f"clear.{extension}", palette, transparency=0)
        clear = load_picture(path)
        assert (clear.getpixel((4, 4)), clear.getpixel((24, 4))) == (WHITE, RED)


def test_transparent_colour_of_rgb_and_grey(tmp_path):
    picture = Image.new("RGB", (32, 32), RED)
    picture.paste(BLUE, (0, 0, 16, 32))
    clear = load_picture(_saved(tmp_path / "rgb.png", picture, transparency=BLUE))
    assert (clear.getpixel((4, 4)), clear.getpixel((24, 4))) == (WHITE, RED)
    grey = Image.new("L", (32, 32), 7)
    clear = load_picture(_saved(tmp_path / "grey.png", grey, transparency=7))
    assert clear.getpixel((4, 4)) == WHITE


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("HSV", (0, 255, 255), RED),
        ("YCbCr", (255, 128, 128), WHITE),
    ],
)
def test_other_modes(mode, value, rgb):
    assert load_picture(Image.new(mode, (32, 32), value)).getpixel((5, 5)) == rgb


def test_cmyk_jpeg(tmp_path):
    path = _saved(tmp_path / "a.jpg", Image.new("CMYK", (32, 32), (0, 255, 255, 0)), quality=98)
    assert np.abs(np.subtract(load_picture(path).getpixel((9, 9)), RED)).max() < 8


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, extension):
    values = np.tile(np.array([0, 128, 129, 257, 32896, 65279, 65535, 300], np.uint16), (16, 4))
    path = tmp_path / f"a.{extension}"
    if extension == "pgm":
        path.write_bytes(b"P5 32 16 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    grey = np.asarray(load_picture(path))
    assert grey.shape == (16, 32, 3)
    assert grey[3, :8, 1].tolist() == [0, 0, 1, 1, 128, 254, 255, 1]


def test_sixteen_bit_png_with_orientation_and_transparent_grey(tmp_path):
    values = np.full((16, 32), 1000, np.uint16)
    values[0, 0] = 60000
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(values)
    path = _saved(tmp_path / "a.png", picture, exif=exif, transparency=1000)
    upright = np.asarray(load_picture(path))
    assert upright.shape == (32, 16, 3)
    assert upright[0, -1].tolist() == [233, 233, 233]
    assert upright[5, 5].tolist() == [255, 255, 255]


def test_sixteen_bit_colour_png(tmp_path):
    row = b"\0" + struct.pack(">HHH", 65535, 32896, 0) * 16
    content = _png_header(16, 16, depth=16)
    start = content.index(b"IDAT") - 4
    pixels = zlib.compress(row * 16)
    body = b"IDAT" + pixels
    chunk = struct.pack(">I", len(pixels)) + body + struct.pack(">I", zlib.crc32(body))
    path = tmp_path / "a.png"
    path.write_bytes(content[:start] + chunk + content[-12:])
    assert load_picture(path).getpixel((3, 3)) == (255, 128, 0)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    for extension in ("gif", "webp", "tif"):
        options = {"lossless": True} if extension == "webp" else {}
        path = tmp_path / f"a.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert load_picture(path).getpixel((9, 9)) == RED
        with Image.open(path) as opened:
            opened.seek(1)
            assert load_picture(opened).getpixel((9, 9)) == BLUE
            assert opened.tell() == 1


def test_the_picture_given_is_not_the_one_returned():
    given = _noise()
    load_picture(given).paste(RED, (0, 0, 40, 24))
    assert np.array_equal(given, _noise())


# What is refused


def test_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    def decode(*_):
        raise SystemError("pixels were decoded")

    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(60000, 60000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    for limit in (None, 1, 10**12):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = _error(path)
        assert "60000x60000 pixels; at most 64 million pixels" in message
        assert "Scale it down" in message
        assert limit == Image.MAX_IMAGE_PIXELS
    with Image.open(BytesIO(_png_header(9000, 9000))) as opened:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert "9000x9000" in _error(opened)


def test_the_limit_of_the_library_does_not_matter(tmp_path, monkeypatch):
    path = _saved(tmp_path / "a.png", _noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert load_picture(path).size == (40, 24)


def test_a_picture_too_large_gives_no_warning_beside_the_error(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(_png_header(10000, 10000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _error(path)
    assert caught == []


def test_largest_and_smallest_sizes(tmp_path):
    path = _saved(tmp_path / "a.png", _noise(40, 24))
    assert load_picture(path, max_pixels=960, min_side=24).size == (40, 24)
    assert "40x24 pixels; at most 0.000959 million" in _error(path, max_pixels=959)
    assert "40x24 pixels; at least 25 pixels per side" in _error(path, min_side=25)


def test_one_pixel_picture(tmp_path):
    path = _saved(tmp_path / "dot.png", Image.new("RGB", (1, 1)))
    assert "1x1 pixels; at least 16 pixels per side are needed. Use a larger" in _error(path)
    _error(_saved(tmp_path / "15.png", Image.new("RGB", (15, 100))))
    assert load_picture(_saved(tmp_path / "16.png", Image.new("RGB", (16, 100)))).size == (16, 100)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "webp", "tif", "bmp", "jp2"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path, extension, part):
    whole = _saved(tmp_path / f"whole.{extension}", _noise(200, 150)).read_bytes()
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole[: int(len(whole) * part)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = _error(path)
    assert "Export it" in message


def test_text_named_png(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("this is not a picture\n" * 10)
    message = _error(path)
    assert "is not a picture in a known format" in message
    assert "Export it as PNG or JPEG" in message


@pytest.mark.parametrize("content", [b"P", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"BM"])
def test_files_that_are_only_a_beginning(tmp_path, content):
    path = tmp_path / "start.png"
    path.write_bytes(content)
    assert "Export it" in _error(path)


def test_missing_folder_empty_and_special_files(tmp_path):
    assert "does not exist. Check the path" in _error(tmp_path / "missing.png")
    assert "does not exist" in _error(tmp_path / "no" / "such" / "folder.png")
    assert "is a folder. Give the path of one picture" in _error(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in _error(tmp_path / "empty.png")
    assert "is empty" in _error(b"")
    assert "is an empty path" in _error("")
    assert "is not a regular file" in _error("/dev/null")
    assert "does not exist" in _error("nul\0byte.png")
    with pytest.raises(InputError, match="cannot be opened"):
        load_picture("x" * 5000)


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    assert r"two\nlines.png" in _error(tmp_path / "two\nlines.png")


@pytest.mark.parametrize("address", ["https://example.org/a.png", "data:image/png;base64,AAAA"])
def test_addresses_are_not_fetched(address):
    assert "is an address, not a file. Download it" in _error(address)


def test_floating_point_and_wide_integers(tmp_path):
    path = _saved(tmp_path / "float.tif", Image.new("F", (32, 32), 0.5))
    assert "floating-point" in _error(path)
    wide = Image.fromarray(np.full((32, 32), 70000, np.int32))
    assert "integers from 70000 to 70000; 0 to 65535 is read" in _error(wide)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.int64),
        np.zeros((0, 32, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_say_what_is_accepted(array):
    message = _error(array)
    assert "shape (height, width, 3) and type uint8" in message
    assert str(array.shape) in message
    assert str(array.dtype) in message


def test_array_views_and_limits():
    pixels = np.asarray(_noise())
    assert np.array_equal(load_picture(pixels[:, ::-1]), pixels[:, ::-1])
    assert "40x24 pixels" in _error(pixels, max_pixels=100)


# Fingerprints


def test_fingerprint_is_of_the_pixels_and_the_shape(tmp_path):
    noise = _noise()
    same = load_picture(_saved(tmp_path / "a.bmp", noise))
    assert picture_sha256(noise) == picture_sha256(same)
    changed = noise.copy()
    changed.putpixel((39, 23), tuple(value ^ 1 for value in noise.getpixel((39, 23))))
    wide, tall = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 40))
    fingerprints = {picture_sha256(picture) for picture in (noise, changed, wide, tall)}
    assert len(fingerprints) == 4
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)
    with pytest.raises(InputError, match="got mode L"):
        picture_sha256(Image.new("L", (20, 20)))
