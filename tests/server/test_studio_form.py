"""The form as a request, and a request as the form: what a person gives is what is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.geometry import Size, fit_picture
from pixeldance.request import GenerationRequest
from pixeldance.server.studio.drafts import DraftPicture, DraftPictures
from pixeldance.server.studio.form import (
    WIDGETS,
    FormPictures,
    clip_size,
    pictures_of,
    request_of,
    summary_of,
    values_of,
)
from pixeldance.server.studio.overlay import (
    Frame,
    aspects_differ,
    contained,
    covered,
    picture_and_frame,
)
from pixeldance.server.studio.presets import PRESETS, preset_named_by
from pixeldance.server.studio.widgets import default_values, usable_draft
from pixeldance.video import write_clip

MODELS = ("pixeldance-mini", "other")


@pytest.fixture
def drafts(tmp_path: Path) -> DraftPictures:
    return DraftPictures(tmp_path / "drafts")


def picture(width: int = 64, height: int = 36, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def values(**changes: Any) -> dict[str, Any]:
    assert changes.keys() <= set(WIDGETS)
    return default_values("pixeldance-mini") | changes


# ---- the request


def test_an_untouched_form_is_the_default_request(drafts: DraftPictures) -> None:
    request = request_of(values(), FormPictures(), drafts, models=MODELS)
    default = GenerationRequest()
    assert request.resolved_num_frames == default.resolved_num_frames
    assert request.model_dump(exclude={"duration"}) == default.model_dump(exclude={"duration"})


def test_all_values_arrive_and_come_back(drafts: DraftPictures) -> None:
    first, last, middle = (
        drafts.add(picture(seed=i), name=f"{name}.png")
        for i, name in enumerate(("first", "last", "middle"))
    )
    pictures = FormPictures(
        first_frame=first, last_frame=last, keyframes=((4, middle),), focus=(0.2, 0.7)
    )
    given = values(
        prompt="a fox",
        duration=1.0,
        num_inference_steps=4,
        guidance_scale=2.5,
        seed=str(2**63 - 1),  # a browser would round the number
        is_seed_locked=True,
        last_frame_strength=0.4,
        negative_prompt="blur",
        width=64,
        height=32,
        fps=10,
        num_videos=3,
        model="other",
    )
    request = request_of(given, pictures, drafts, models=MODELS)
    assert request.seed == 2**63 - 1
    assert request.resolved_num_frames == 9
    assert (request.width, request.height, request.focus) == (64, 32, (0.2, 0.7))
    assert [Path(str(path)).name for path in request.pictures.values()] == [
        "first.png",
        "last.png",
        "middle.png",
    ]
    back = values_of(request)
    assert {**back, "duration": None} == {**given, "duration": None}
    assert request_of(back, pictures, drafts, models=MODELS).resolved_num_frames == 9
    again = pictures_of(request, lambda source, name: drafts.add(source, name=name), {})
    assert (again.first_frame or first).sha256 == first.sha256
    assert [(frame, one.sha256) for frame, one in again.keyframes] == [(4, middle.sha256)]


def test_a_seed_counts_only_while_it_is_kept(drafts: DraftPictures) -> None:
    shown = values(seed="7")
    assert request_of(shown, FormPictures(), drafts, models=MODELS).seed is None
    kept = shown | {"is_seed_locked": True}
    assert request_of(kept, FormPictures(), drafts, models=MODELS).seed == 7


def test_a_loop_ends_as_it_starts(drafts: DraftPictures) -> None:
    first = drafts.add(picture(), name="a.png")
    other = drafts.add(picture(seed=1), name="b.png")
    pictures = FormPictures(first_frame=first, last_frame=other)
    request = request_of(values(is_loop=True), pictures, drafts, models=MODELS)
    assert request.last_frame == request.first_frame == drafts.path(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "abc", "is_seed_locked": True}, "seed must be a whole number, got 'abc'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"duration": 1000}, "at most 257 are allowed"),
        ({"negative_prompt": "blur"}, "guidance is off"),
        ({"width": 64}, "width is given without height"),
        ({"is_loop": True}, "give a first picture"),
        ({"model": "/etc"}, "Choose one of the models pixeldance-mini, other"),
        ({"prompt": 5}, "prompt must be text"),
    ],
)
def test_what_is_wrong_is_said(drafts: DraftPictures, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        request_of(values(**changes), FormPictures(), drafts, models=MODELS)


def test_two_key_frames_at_one_frame_are_refused(drafts: DraftPictures) -> None:
    one = drafts.add(picture(), name="a.png")
    with pytest.raises(InputError, match="same frame number"):
        request_of(values(), FormPictures(keyframes=((5, one), (5, one))), drafts, models=MODELS)


def test_the_summary_says_frames_and_seconds() -> None:
    request = GenerationRequest(duration=2, num_videos=2)
    line = summary_of(request, Size(144, 256))
    assert line == (
        "25 frames at 12 per second = 2.08 s · 256 × 144 pixels · 8 steps · 2 clips"  # noqa: RUF001
    )


def test_the_earliest_picture_gives_the_shape(drafts: DraftPictures) -> None:
    tall = drafts.add(picture(36, 64), name="tall.png")
    wide = drafts.add(picture(64, 36), name="wide.png")
    assert clip_size(values(), FormPictures(last_frame=tall)) == Size(256, 144)
    assert clip_size(values(), FormPictures(first_frame=wide, last_frame=tall)) == Size(144, 256)
    assert clip_size(values(aspect_ratio="1:1"), FormPictures(first_frame=wide)) == Size(192, 192)
    assert clip_size(values(width=64, height=32), FormPictures()) == Size(32, 64)


def test_presets_know_their_settings() -> None:
    assert list(PRESETS) == ["Draft", "Standard", "Best"]
    for name, preset in PRESETS.items():
        assert preset_named_by(PRESETS, *preset) == name
    assert preset_named_by(PRESETS, 9, 1.0) is None


# ---- what the browser keeps


def test_a_draft_survives_the_browser() -> None:
    defaults = default_values("pixeldance-mini")
    kept = values(prompt="a fox", duration=None, width=64, is_loop=True)
    assert usable_draft(list(kept.values()), defaults) != defaults
    assert usable_draft([kept[name] for name in WIDGETS], defaults) == kept


@pytest.mark.parametrize("draft", [None, 5, "x", [], [1] * 3, {"prompt": "x"}])
def test_a_draft_of_another_shape_is_left_out(draft: Any) -> None:
    defaults = default_values("pixeldance-mini")
    assert usable_draft(draft, defaults) == defaults


def test_values_that_no_widget_can_show_are_left_out() -> None:
    defaults = default_values("pixeldance-mini")
    hostile: list[Any] = [["x"]] * len(WIDGETS)
    assert usable_draft(hostile, defaults) == defaults
    hostile[WIDGETS.index("aspect_ratio")] = "<b>"
    hostile[WIDGETS.index("fps")] = True
    assert usable_draft(hostile, defaults) == defaults


def test_pictures_come_back_by_fingerprint_and_name(drafts: DraftPictures) -> None:
    pictures = FormPictures(
        first_frame=drafts.add(picture(), name="/tmp/holiday.jpg"),
        keyframes=((3, drafts.add(picture(seed=1), name="b.png")),),
        focus=(0.25, 1.0),
    )
    assert FormPictures.from_json(pictures.to_json(), drafts) == pictures
    assert pictures.first_frame is not None
    assert pictures.first_frame.name == "holiday.jpg"
    with Image.open(drafts.path(pictures.first_frame)) as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(picture()))


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"sha256": "../../etc"},
        {"sha256": None},
        {"name": "../a.png"},
        {"name": "other.png"},
        {"name": 7},
    ],
)
def test_nothing_else_can_be_named(drafts: DraftPictures, change: dict[str, Any]) -> None:
    record = drafts.add(picture(), name="a.png").to_json()
    assert drafts.find(record) is not None
    assert drafts.find(record | change) is None


def test_a_picture_beside_the_drafts_cannot_be_named(drafts: DraftPictures, tmp_path: Path) -> None:
    record = drafts.add(picture(), name="a.png").to_json()
    picture().save(tmp_path / "secret.png")
    for name in ("../../../secret.png", str(tmp_path / "secret.png")):
        assert drafts.find(record | {"name": name}) is None


@pytest.mark.parametrize("value", [None, [], {"keyframes": 3, "focus": "x"}, {"focus": [2, "a"]}])
def test_damaged_pictures_are_none(drafts: DraftPictures, value: Any) -> None:
    assert FormPictures.from_json(value, drafts) == FormPictures()


def test_sizes_are_read_from_the_file_not_from_the_browser(drafts: DraftPictures) -> None:
    record = drafts.add(picture(), name="a.png").to_json()
    found = drafts.find(record | {"width": 10**9, "clip_sha256": "x", "frame": -1})
    assert found == drafts.find(record)


def test_a_clip_gives_its_last_frame_and_any_other(drafts: DraftPictures, tmp_path: Path) -> None:
    frames = (
        np.zeros((5, 32, 48, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None] * 50
    )
    path = write_clip(tmp_path / "walk.mp4", frames, fps=12)
    last = drafts.add_clip(path, name="walk.mp4")
    path.unlink()
    assert (last.name, last.frame, last.num_frames) == ("walk-4.png", 4, 5)
    second = drafts.pick(last, 1)
    assert (second.name, second.frame) == ("walk-1.png", 1)
    with Image.open(drafts.path(second)) as kept:
        assert np.abs(np.asarray(kept).astype(int) - 50).max() <= 3
    with pytest.raises(InputError, match="there is no frame 9"):
        drafts.pick(last, 9)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("C:\\Users\\me\\a.png", "a.png"),
        ("../../b.png", "b.png"),
        ("..", "picture.png"),
        ("", "picture.png"),
        ("x\n<b>.png", "xb.png"),
        ("long" * 60 + ".jpeg", "long" * 15 + ".jpeg"),
    ],
)
def test_file_names_are_made_safe(drafts: DraftPictures, name: str, kept: str) -> None:
    assert drafts.add(picture(), name=name).name == kept


def test_old_drafts_give_way(drafts: DraftPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixeldance.server.studio.drafts.MAX_DRAFTS", 2)
    kept: list[DraftPicture] = [drafts.add(picture(seed=i), name="a.png") for i in range(3)]
    assert [drafts.find(one.to_json()) is not None for one in kept].count(True) == 2
    assert drafts.find(kept[-1].to_json()) == kept[-1]


# ---- what the model sees


def test_a_wide_picture_loses_its_sides() -> None:
    assert covered(Size(100, 400), Size(100, 200)) == Frame(0.25, 0.0, 0.5, 1.0)
    assert covered(Size(100, 400), Size(100, 200), (0.0, 0.5)) == Frame(0.0, 0.0, 0.5, 1.0)
    assert covered(Size(100, 400), Size(100, 200), (0.6, 0.5)).left == pytest.approx(0.35)


def test_a_tall_picture_gets_borders_at_its_sides() -> None:
    assert contained(Size(200, 100), Size(100, 100)) == Frame(0.25, 0.0, 0.5, 1.0)


@pytest.mark.parametrize("focus", [(0.5, 0.5), (0.1, 0.9), (0.7, 0.3)])
@pytest.mark.parametrize("size", [(90, 50), (50, 90), (64, 36)])
def test_the_overlay_is_what_fitting_keeps(
    size: tuple[int, int], focus: tuple[float, float]
) -> None:
    """A ramp tells by its values which part of it was kept."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ramp = np.stack([x * 255 / width, y * 255 / height, 0 * x], -1).astype(np.uint8)
    fitted = np.asarray(fit_picture(Image.fromarray(ramp), Size(36, 64), focus=focus), float) / 255
    frame = covered(Size(height, width), Size(36, 64), focus)
    middle = fitted.mean(axis=(0, 1))
    assert middle[0] == pytest.approx(frame.left + frame.width / 2, abs=0.02)
    assert middle[1] == pytest.approx(frame.top + frame.height / 2, abs=0.02)
    assert np.ptp(fitted[..., 0]) == pytest.approx(frame.width, abs=0.05)


def test_the_drawing_has_the_shape_of_what_is_larger() -> None:
    picture_size, clip = Size(100, 100), Size(100, 200)
    cropped = picture_and_frame(picture_size, clip, fit="cover", focus=(0.5, 0.5))
    assert cropped == (1.0, Frame(0.0, 0.0, 1.0, 1.0), Frame(0.0, 0.25, 1.0, 0.5))
    whole = picture_and_frame(picture_size, clip, fit="contain", focus=(0.5, 0.5))
    assert whole == (2.0, Frame(0.25, 0.0, 0.5, 1.0), Frame(0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("other", "differ"), [((144, 256), False), ((144, 260), False), ((144, 262), True)]
)
def test_shapes_differ_above_two_percent(other: tuple[int, int], differ: bool) -> None:
    assert aspects_differ(Size(144, 256), Size(*other)) is differ
    assert aspects_differ(Size(*other), Size(144, 256)) is differ
