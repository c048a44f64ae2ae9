"""Sizes, fitting and frame counts against answers known on paper."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pixeldance.errors import InputError
from pixeldance.geometry import (
    ASPECT_RATIOS,
    LatentGrid,
    Size,
    check_num_frames,
    duration_of,
    fit_picture,
    frames_for_duration,
    latent_grid,
    latent_slot,
    resolve_frame_index,
    resolve_size,
)

BUDGET = 36864


def _size(aspect_ratio, *, first_frame=None, budget=BUDGET):
    return resolve_size(aspect_ratio, pixel_budget=budget, multiple=16, first_frame=first_frame)


def _noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _circle(width, height, radius):
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    middle_x, middle_y = width / 2, height / 2
    box = (middle_x - radius, middle_y - radius, middle_x + radius, middle_y + radius)
    ImageDraw.Draw(picture).ellipse(box, fill=(255, 0, 0))
    return picture


def _red_extent(picture):
    pixels = np.asarray(picture).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 128)
    return np.ptp(np.nonzero(red.any(0))[0]) + 1, np.ptp(np.nonzero(red.any(1))[0]) + 1


# Sizes


def test_known_sizes_of_the_embedded_model():
    assert _size("16:9") == Size(144, 256)
    assert _size("9:16") == Size(256, 144)
    assert _size("1:1") == Size(192, 192)


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("budget", [BUDGET, 480 * 832, 720 * 1280])
def test_size_is_near_ratio_and_budget_and_a_multiple(aspect_ratio, budget):
    size = _size(aspect_ratio, budget=budget)
    width, height = ASPECT_RATIOS[aspect_ratio]
    assert size.height % 16 == 0
    assert size.width % 16 == 0
    assert 0.85 <= size.height * size.width / budget <= 1.1
    assert abs(math.log(size.width / size.height / (width / height))) < 0.03


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_turned_ratio_gives_turned_size(aspect_ratio):
    turned = ":".join(reversed(aspect_ratio.split(":")))
    assert _size(turned) == Size(*reversed(_size(aspect_ratio)))


def test_auto_takes_the_ratio_of_the_first_frame_whatever_its_resolution():
    assert _size("auto") == _size("16:9")
    assert _size("auto", first_frame=Size(1080, 1920)) == Size(144, 256)
    assert _size("auto", first_frame=Size(20, 20)) == Size(192, 192)
    assert _size("auto", first_frame=Size(160, 240)) == Size(160, 240)


def test_auto_is_clamped_and_other_ratios_ignore_the_first_frame():
    assert _size("auto", first_frame=Size(20, 4000)) == _size("21:9")
    assert _size("auto", first_frame=Size(4000, 20)) == _size("9:21")
    assert _size("1:1", first_frame=Size(20, 4000)) == Size(192, 192)


def test_smallest_budget_is_one_cell():
    assert _size("21:9", budget=256) == Size(16, 16)
    with pytest.raises(InputError, match=r"at least 16 x 16 pixels.*got 255"):
        _size("21:9", budget=255)


def test_unknown_ratio_names_the_choices_and_the_nearest():
    with pytest.raises(InputError, match=r"one of auto, 16:9, .*got '16x9'. Did you mean '16:9'"):
        _size("16x9")


def test_empty_first_frame_is_refused():
    with pytest.raises(InputError, match="first_frame must have at least 1 pixel"):
        _size("auto", first_frame=Size(0, 10))


# Fitting


@pytest.mark.parametrize("fit", ["cover", "contain"])
@pytest.mark.parametrize("picture_size", [(600, 300), (300, 600), (505, 485), (2000, 1500)])
@pytest.mark.parametrize("size", [Size(144, 256), Size(256, 144), Size(192, 192), Size(128, 304)])
def test_circle_stays_a_circle(fit, picture_size, size):
    circle = _circle(*picture_size, radius=min(picture_size) * 0.2)
    fitted = fit_picture(circle, size, fit=fit)
    assert fitted.size == (size.width, size.height)
    width, height = _red_extent(fitted)
    assert abs(width - height) <= 1
    scales = (size.width / picture_size[0], size.height / picture_size[1])
    scale = max(scales) if fit == "cover" else min(scales)
    assert abs(width - 0.4 * min(picture_size) * scale) <= 2.5


@pytest.mark.parametrize(("focus_x", "left"), [(0.0, 0), (0.3, 10), (0.5, 50), (0.7, 90), (1, 100)])
def test_cover_without_scaling_is_an_exact_crop_around_the_focus(focus_x, left):
    picture = _noise(200, 100)
    fitted = fit_picture(picture, Size(100, 100), focus=(focus_x, 0.5))
    assert np.array_equal(fitted, np.asarray(picture)[:, left : left + 100])


def test_cover_crops_rows_around_the_focus_and_rounds_to_whole_pixels():
    picture = _noise(100, 201)
    fitted = fit_picture(picture, Size(100, 100), focus=(0.0, 1.0))
    assert np.array_equal(fitted, np.asarray(picture)[101:])
    middle = np.asarray(fit_picture(picture, Size(100, 100)))
    assert any(np.array_equal(middle, np.asarray(picture)[top : top + 100]) for top in (50, 51))


@pytest.mark.parametrize("fit", ["cover", "contain"])
def test_picture_of_the_right_size_is_unchanged(fit):
    picture = _noise(256, 144)
    assert np.array_equal(fit_picture(picture, Size(144, 256), fit=fit), picture)


def test_focus_is_kept_when_scaling():
    picture = Image.new("RGB", (1000, 100), (0, 0, 0))
    picture.paste((255, 255, 255), (900, 0, 1000, 100))
    right = np.asarray(fit_picture(picture, Size(50, 50), focus=(0.95, 0.5)))
    assert right[:, 3:].min() > 250  # the filter sees a little of what lies outside
    assert np.asarray(fit_picture(picture, Size(50, 50))).max() < 5


def test_contain_shows_everything_between_borders_of_the_fill_colour():
    picture = Image.new("RGB", (200, 100), (10, 20, 30))
    fitted = np.asarray(fit_picture(picture, Size(100, 100), fit="contain", fill=(200, 100, 50)))
    assert (fitted[25:75] == (10, 20, 30)).all()
    assert (fitted[:25] == (200, 100, 50)).all()
    assert (fitted[75:] == (200, 100, 50)).all()


@pytest.mark.parametrize("fit", ["cover", "contain"])
def test_one_pixel_results_and_flat_colours_survive(fit):
    picture = Image.new("RGB", (37, 37), (1, 200, 90))
    assert fit_picture(picture, Size(1, 1), fit=fit).getpixel((0, 0)) == (1, 200, 90)
    enlarged = np.asarray(fit_picture(picture, Size(530, 530), fit=fit))
    assert (enlarged == (1, 200, 90)).all()


def test_what_cannot_be_contained_without_stretching_is_refused():
    with pytest.raises(InputError, match=r'1000x4 pixels is too narrow.*Use fit="cover"'):
        fit_picture(Image.new("RGB", (1000, 4)), Size(64, 64), fit="contain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focus": (1.01, 0.5)}, "focus must be two numbers from 0 to 1"),
        ({"focus": (0.5, -0.01)}, "focus must be two numbers from 0 to 1"),
        ({"focus": (math.nan, 0.5)}, "focus must be two numbers from 0 to 1"),
        ({"focus": (0.5,)}, "focus must be two numbers from 0 to 1"),
        ({"fit": "contain", "focus": (0.1, 0.1)}, "focus only applies"),
        ({"fill": (1, 2, 3)}, "fill only applies"),
        ({"fit": "contain", "fill": (0, 0, 256)}, "from 0 to 255"),
        ({"fit": "stretch"}, "'cover' or 'contain', got 'stretch'"),
    ],
)
def test_wrong_fit_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fit_picture(_noise(32, 32), Size(16, 16), **options)


def test_other_modes_and_empty_sizes_are_refused():
    with pytest.raises(InputError, match=r"got mode L. Use load_picture"):
        fit_picture(Image.new("L", (32, 32)), Size(16, 16))
    with pytest.raises(InputError, match="at least 1x1"):
        fit_picture(_noise(32, 32), Size(0, 16))


# Frames and seconds


@pytest.mark.parametrize("num_frames", [1, 5, 9, 81, 257])
def test_legal_frame_counts(num_frames):
    assert check_num_frames(num_frames) == num_frames


@pytest.mark.parametrize(
    ("num_frames", "remedy"),
    [
        (80, "got 80. Use 77 or 81"),
        (2, "got 2. Use 1 or 5"),
        (4, "got 4. Use 1 or 5"),
        (0, "got 0. Use 1"),
        (-3, "got -3. Use 1"),
        (True, "got True"),
        (5.0, "got 5.0"),
    ],
)
def test_illegal_frame_counts_name_the_nearest_legal_ones(num_frames, remedy):
    with pytest.raises(InputError, match=rf"must be 4k \+ 1 \(1, 5, 9, ...\), {remedy}"):
        check_num_frames(num_frames)


def test_temporal_factor_changes_the_rule():
    assert check_num_frames(9, temporal_factor=8) == 9
    with pytest.raises(InputError, match=r"8k \+ 1 \(1, 9, 17, ...\), got 5. Use 1 or 9"):
        check_num_frames(5, temporal_factor=8)


@pytest.mark.parametrize(
    ("duration_s", "fps", "num_frames"),
    [
        (2, 12, 25),
        (5, 16, 81),
        (0.001, 12, 5),
        (1, 1, 5),
        (7, 1, 9),  # 5 and 9 are equally near: the longer
        (6.99, 1, 5),
        (1, Fraction(24000, 1001), 25),
        (10, 24, 241),
    ],
)
def test_seconds_become_the_nearest_legal_frame_count(duration_s, fps, num_frames):
    assert frames_for_duration(duration_s, fps) == num_frames


@pytest.mark.parametrize("num_frames", range(5, 258, 4))
@pytest.mark.parametrize("fps", [12, 7, Fraction(30000, 1001)])
def test_duration_round_trip(num_frames, fps):
    assert frames_for_duration(duration_of(num_frames, fps), fps) == num_frames


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True])
def test_durations_and_rates_must_be_finite_and_positive(value):
    with pytest.raises(InputError, match="duration must be"):
        frames_for_duration(value, 12)
    with pytest.raises(InputError, match="fps must be"):
        duration_of(25, value)


def test_duration_of_no_frames_is_refused():
    assert duration_of(1, 4) == 0.25
    with pytest.raises(InputError, match="at least 1, got 0"):
        duration_of(0, 12)


# Frame indices and the latent grid


def test_frame_indices():
    assert resolve_frame_index(0, 25) == 0
    assert resolve_frame_index(24, 25) == 24
    assert resolve_frame_index(-1, 25) == 24
    assert resolve_frame_index(-1, 1) == 0


@pytest.mark.parametrize("index", [25, -2, -25])
def test_missing_frames_are_refused(index):
    with pytest.raises(InputError, match=rf"Frame {index} does not exist.*frames 0 to 24"):
        resolve_frame_index(index, 25)


def test_latent_slots():
    assert [latent_slot(frame) for frame in range(10)] == [
        (0, None),
        *[(1, place) for place in range(4)],
        *[(2, place) for place in range(4)],
        (3, 0),
    ]
    with pytest.raises(InputError, match="got -1"):
        latent_slot(-1)


def test_last_frame_of_every_legal_clip_is_the_last_place_of_the_last_slot():
    for num_frames in range(5, 258, 4):
        grid = latent_grid(num_frames, Size(144, 256), spatial_factor=16)
        assert latent_slot(num_frames - 1) == (grid.latent_frames - 1, 3)


def test_latent_grid():
    assert latent_grid(25, Size(144, 256), spatial_factor=16) == LatentGrid(7, 9, 16)
    assert latent_grid(1, Size(16, 16), spatial_factor=16) == LatentGrid(1, 1, 1)
    assert latent_grid(81, Size(480, 832), spatial_factor=8) == LatentGrid(21, 60, 104)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(150, 256), "height must be a multiple of 16 pixels, got 150. Use 144 or 160"),
        (Size(144, 255), "width must be a multiple of 16 pixels, got 255. Use 240 or 256"),
        (Size(0, 256), "height must be a multiple of 16 pixels, got 0. Use 16 or 32"),
    ],
)
def test_sizes_off_the_grid_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        latent_grid(25, size, spatial_factor=16)
    with pytest.raises(InputError, match="num_frames"):
        latent_grid(24, Size(16, 16), spatial_factor=16)
