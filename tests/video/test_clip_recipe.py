import base64
import copy
import io
import json
import struct
from fractions import Fraction

import numpy as np
import pytest
from clip_helpers import make_recipe, moving_square, noise_picture
from PIL import Image

import pixeldance
from pixeldance.errors import DataError, InputError
from pixeldance.video import (
    decode_pictures,
    frames_sha256,
    installed_versions,
    read_clip,
    read_recipe,
    summarize_recipe,
    write_clip,
)

UNICODE = 'ein Fuchs 🦊👩‍🚀 "springt"\n漢字 \\ é'


def test_frames_sha256_never_changes():
    frames = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    expected = "3a8c689de63437e2fa9562020513addff3b099187b91008730bfefd7465acf76"
    assert frames_sha256(frames) == expected


def test_frames_sha256_sees_every_value_and_the_shape():
    frames = moving_square(3)
    changed = frames.copy()
    changed[2, -1, -1, 2] ^= 1
    same_bytes = frames.reshape(3, 64, 48, 3)
    digests = {frames_sha256(f) for f in (frames, changed, same_bytes, frames[:2], frames[::-1])}
    assert len(digests) == 5


def test_frames_sha256_of_a_view_is_that_of_its_copy():
    frames = moving_square(5)[::2, :, ::-1]
    assert frames_sha256(frames) == frames_sha256(frames.copy())


def test_recipe_comes_back_from_the_file_alone(tmp_path):
    pictures = {"first_frame": noise_picture(), "keyframe:12": noise_picture(seed=1)}
    request = {"prompt": UNICODE, "keyframes": {12: {"name": "a.png"}}, "focus": (0.5, 0.25)}
    recipe = make_recipe(request, pictures=pictures, fps=Fraction(24000, 1001))
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=24, recipe=recipe, sidecar=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
    read = read_recipe(path)
    assert read == recipe == read_clip(path).recipe
    assert read["request"]["prompt"] == UNICODE
    assert read["frames"]["fps"] == "24000/1001"
    decoded = decode_pictures(read)
    assert decoded.keys() == pictures.keys()
    for role, picture in pictures.items():
        assert decoded[role].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded[role]), np.asarray(picture))


def test_sidecar_holds_the_same_recipe(tmp_path):
    recipe = make_recipe({"prompt": UNICODE}, pictures={"first_frame": noise_picture()})
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12, recipe=recipe)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == recipe
    assert read_recipe(path.with_suffix(".json")) == recipe


def test_sidecar_stands_in_for_a_stripped_comment(tmp_path):
    recipe = make_recipe()
    write_clip(tmp_path / "with.mp4", moving_square(5), fps=12, recipe=recipe)
    write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12)
    (tmp_path / "with.json").rename(tmp_path / "clip.json")
    assert read_recipe(tmp_path / "clip.mp4") == recipe


def test_large_pictures_go_beside_the_clip_only(tmp_path):
    # 300 x 240 pixels of noise: 216000 bytes, 288000 as base64, above 256 KiB.
    recipe = make_recipe(pictures={"first_frame": noise_picture(300, 240)})
    path = write_clip(tmp_path / "clip.mp4", moving_square(5), fps=12, recipe=recipe)
    assert path.stat().st_size < 20_000
    assert read_recipe(path) == recipe
    (tmp_path / "clip.json").rename(tmp_path / "other.json")
    alone = read_recipe(path)
    assert alone["pictures"] == "sidecar"
    assert alone["seed"] == recipe["seed"]
    assert "in the .json file" in summarize_recipe(alone)
    with pytest.raises(DataError, match="beside it, which is missing"):
        decode_pictures(alone)


def test_pictures_of_another_clip_are_not_taken(tmp_path):
    pictures = {"first_frame": noise_picture(300, 240)}
    for name, frames in (("clip", moving_square(5)), ("other", moving_square(9))):
        recipe = make_recipe(frames=frames, pictures=pictures)
        write_clip(tmp_path / f"{name}.mp4", frames, fps=12, recipe=recipe)
    (tmp_path / "other.json").replace(tmp_path / "clip.json")
    assert read_recipe(tmp_path / "clip.mp4")["pictures"] == "sidecar"


def test_large_pictures_without_a_sidecar_are_refused(tmp_path):
    recipe = make_recipe(pictures={"first_frame": noise_picture(300, 240)})
    with pytest.raises(InputError, match=r"at most 256 KiB.*sidecar=True"):
        write_clip(tmp_path / "c.mp4", moving_square(5), fps=12, recipe=recipe, sidecar=False)
    assert list(tmp_path.iterdir()) == []


def test_recipe_names_no_folders():
    request = {
        "prompt": "left/right",
        "negative_prompt": "and\\or",
        "model": "/home/anna/models/mini/",
        "first_frame": {"name": "C:\\Users\\anna\\fox.png"},
        "keyframes": {"3": {"name": "../anna/b.png"}},
    }
    recipe = make_recipe(request, model={"name": "/home/anna/models/mini", "sha256": "0" * 64})
    assert recipe["request"] == {
        "prompt": "left/right",
        "negative_prompt": "and\\or",
        "model": "mini",
        "first_frame": {"name": "fox.png"},
        "keyframes": {"3": {"name": "b.png"}},
    }
    assert recipe["model"]["name"] == "mini"
    assert "anna" not in json.dumps(recipe)


def test_embedded_pictures_carry_nothing_but_pixels():
    picture = noise_picture()
    picture.info.update(icc_profile=b"profile of anna", comment="anna", dpi=(72, 72))
    recipe = make_recipe(pictures={"first_frame": picture})
    data = base64.b64decode(recipe["pictures"]["first_frame"]["png"])
    assert b"anna" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.info == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "'seed' must be a whole number from 0"),
        ({"seed": None}, "'seed' must be a whole number from 0"),
        ({"seed": True}, "'seed' must be a whole number from 0"),
        ({"model": {"name": "mini"}}, "'model.sha256' must be 64"),
        ({"timings": {"sample": -1.0}}, "'timings' must be seconds"),
        ({"timings": {"sample": float("nan")}}, "cannot be written as JSON"),
        ({"pictures": {"first_frame": Image.new("L", (4, 4))}}, "mode RGB, got L"),
        ({"request": {"prompt": object()}}, "cannot be written as JSON"),
        ({"request": {"prompt": "\udc80"}}, "cannot be written as JSON"),
    ],
)
def test_incomplete_recipes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_recipe(**changes)


def test_largest_seed_survives():
    assert make_recipe(seed=2**63 - 1)["seed"] == 2**63 - 1
    assert make_recipe(seed=0)["seed"] == 0
    with pytest.raises(InputError, match="seed"):
        make_recipe(seed=2**63)


def test_write_clip_refuses_what_is_no_recipe(tmp_path):
    with pytest.raises(InputError, match="no pixeldance recipe"):
        write_clip(tmp_path / "c.mp4", moving_square(1), fps=12, recipe={"prompt": "x"})
    recipe = make_recipe({"prompt": "x" * (2**20)})
    with pytest.raises(InputError, match="at most 1048576 are allowed"):
        write_clip(tmp_path / "c.mp4", moving_square(1), fps=12, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def write_text(folder, text):
    path = folder / "clip.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema_version", "1"),
        ("schema_version", 0),
        ("request", [1]),
        ("seed", 1.5),
        ("seed", "7"),
        ("frames", None),
        ("frames.sha256", "AB" * 32),
        ("frames.sha256", "../../etc/passwd"),
        ("frames.num_frames", 0),
        ("frames.fps", "1e999999999"),
        ("num_steps_done", 0),
        ("num_steps_done", "2"),
        ("frames.fps", "12/0"),
        ("frames.fps", "0"),
        ("frames.fps", 12),
        ("model.name", None),
        ("model.name", "/home/anna/model"),
        ("model.name", "..\\\\model"),
        ("model.name", "C:model"),
        ("model.name", ".."),
        ("model.name", ""),
        ("versions", {"torch": 2}),
        ("timings", {"sample": "fast"}),
        ("pictures", None),
        ("pictures", "/etc/passwd"),
        ("pictures", {"first_frame": "/etc/passwd"}),
        ("pictures", {"first_frame": {"width": 10**5, "height": 10**5, "png": ""}}),
        ("pictures", {str(i): {"width": 1, "height": 1, "png": ""} for i in range(65)}),
    ],
)
def test_damaged_recipes_are_named(tmp_path, place, value):
    recipe = make_recipe()
    part, *parents = place.split(".")[::-1]
    holder = recipe
    for parent in reversed(parents):
        holder = holder[parent]
    holder[part] = value
    with pytest.raises(DataError, match=rf"clip\.json' is damaged: '{place}.* ") as caught:
        read_recipe(write_text(tmp_path, json.dumps(recipe)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": "pixeldance.recipe"',
        '["pixeldance.recipe"]',
        json.dumps(make_recipe()).replace('"prompt": ', '"guidance_scale": NaN, "prompt": '),
        '{"schema": "pixeldance.recipe", "request": ' + "[" * 100_000,
        '{"schema": "pixeldance.recipe", "seed": ' + "9" * 5000 + "}",
    ],
)
def test_text_that_is_no_recipe_is_a_data_error(tmp_path, text):
    with pytest.raises(DataError, match=r"clip\.json'"):
        read_recipe(write_text(tmp_path, text))


def test_oversized_sidecar_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pixeldance.video.read.MAX_SIDECAR_BYTES", 1000)
    with pytest.raises(DataError, match="larger than 1000 bytes"):
        read_recipe(write_text(tmp_path, json.dumps(make_recipe()) + " " * 1000))


def test_recipe_of_a_newer_version_says_so(tmp_path):
    recipe = make_recipe() | {"schema_version": 2}
    with pytest.raises(DataError, match=r"schema version 2; .* Update pixeldance"):
        read_recipe(write_text(tmp_path, json.dumps(recipe)))


def bomb_png():
    """A PNG that claims 50000 x 50000 pixels."""
    header = struct.pack(">II", 50_000, 50_000) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(8)


def png_of(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "png",
    [
        "not base64!",
        "",
        base64.b64encode(b"a" * 100).decode(),
        base64.b64encode(bomb_png()).decode(),
        base64.b64encode(png_of(noise_picture(32, 24))[:-900]).decode(),
        base64.b64encode(png_of(noise_picture(24, 32))).decode(),
        base64.b64encode(png_of(noise_picture(32, 24).convert("RGBA"))).decode(),
    ],
    ids=["text", "empty", "not-png", "bomb", "truncated", "other-size", "alpha"],
)
def test_damaged_pictures_are_refused(png):
    recipe = make_recipe(pictures={"first_frame": noise_picture(32, 24)})
    recipe["pictures"]["first_frame"]["png"] = png
    with pytest.raises(DataError, match="The picture 'first_frame' in the recipe is damaged"):
        decode_pictures(recipe)


def test_summary_shows_what_a_person_asks():
    request = {"prompt": UNICODE, "guidance_scale": 2.0, "last_frame": None, "keyframes": {}}
    model = {"name": "pixeldance-mini", "sha256": "ab" * 32, "dtype": "float32"}
    recipe = make_recipe(request, model=model, pictures={"first_frame": noise_picture()})
    before = copy.deepcopy(recipe)
    text = summarize_recipe(recipe)
    assert recipe == before
    assert "5 frames, 64 x 48 pixels, 12 fps, 0.42 s" in text
    assert "pixeldance-mini (sha256 abababababab, dtype float32)" in text
    assert "seed      7" in text
    assert "guidance_scale: 2.0" in text
    assert "first_frame 32 x 24 (3 KiB)" in text
    assert "sample 1.24 s" in text
    assert recipe["frames"]["sha256"] in text
    assert recipe["pictures"]["first_frame"]["png"][:20] not in text
    assert "last_frame:" not in text
    assert "🦊👩‍🚀" in text


def test_summary_says_that_a_clip_was_finished_early():
    assert "finished early" not in summarize_recipe(make_recipe({}))
    text = summarize_recipe({**make_recipe({}), "num_steps_done": 3})
    assert "steps     finished early, after 3" in text


def test_summary_cannot_write_to_the_terminal():
    request = {"prompt": "\x1b]0;owned\x07\r\u202egpj", "\x1b[2J": ["\x9b1m"]}
    text = summarize_recipe(make_recipe(request, versions={"a\x1b": "1\x1b"}))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\\x1b]0;owned\\x07\\r\\u202egpj" in text


def test_versions_name_this_package_and_no_machine():
    versions = installed_versions()
    assert versions["pixeldance"] == pixeldance.__version__
    assert {"python", "torch", "diffusers", "av"} <= versions.keys()
    assert all("/" not in version for version in versions.values())
