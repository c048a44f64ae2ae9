"""The one request: its defaults, its limits, its messages, and its recipe."""

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pixeldance.errors import InputError
from pixeldance.pictures import load_picture, picture_sha256
from pixeldance.request import GenerationRequest

INTEGERS = {
    "fps": (1, 60),
    "num_inference_steps": (1, 200),
    "seed": (0, 2**63 - 1),
    "num_videos": (1, 16),
}
NUMBERS = {"guidance_scale": (1.0, 100.0), "last_frame_strength": (0.0, 1.0)}


def _error(**fields):
    with pytest.raises(InputError) as caught:
        GenerationRequest(**fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _flat(value, width=32, height=24):
    return Image.new("RGB", (width, height), (value, 0, 0))


def test_nothing_is_mandatory():
    request = GenerationRequest()
    assert request.resolved_num_frames == 25
    assert request.pictures == {}


def test_every_field_is_described():
    for name, field in GenerationRequest.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_descriptions_state_the_limits_that_are_checked():
    for name, (lowest, highest) in {**INTEGERS, **NUMBERS, "num_frames": (1, 257)}.items():
        description = GenerationRequest.model_fields[name].description
        shown = "2**63 - 1" if name == "seed" else f"{highest:g}"
        assert f"{lowest:g}" in description
        assert shown in description


def test_schema_for_pages_and_services_has_limits_and_choices():
    properties = GenerationRequest.model_json_schema()["properties"]
    for name, (lowest, highest) in INTEGERS.items():
        field = properties[name].get("anyOf", [properties[name]])[0]
        assert (field["minimum"], field["maximum"]) == (lowest, highest)
    assert properties["aspect_ratio"]["enum"][0] == "auto"


# Values


@pytest.mark.parametrize("name", INTEGERS)
def test_edges_of_integers(name):
    lowest, highest = INTEGERS[name]
    for value in (lowest, highest):
        assert getattr(GenerationRequest(**{name: value}), name) == value
    message = _error(**{name: lowest - 1})
    assert message == f"{name} must be at least {lowest}, got {lowest - 1}. Use {lowest} or more."
    message = _error(**{name: highest + 1})
    assert message == f"{name} must be at most {highest}, got {highest + 1}. Use {highest} or less."


@pytest.mark.parametrize("name", [*INTEGERS, "num_frames", "height", "width"])
@pytest.mark.parametrize("value", [True, False, 8.0, 8.5, "8", math.nan, [8]])
def test_only_whole_numbers_are_integers(name, value):
    assert f"{name} must be a whole number, got " in _error(**{name: value})


@pytest.mark.parametrize("name", [*NUMBERS, "duration"])
@pytest.mark.parametrize("value", [True, math.nan, math.inf, -math.inf, "1", 10**400])
def test_only_finite_numbers_are_numbers(name, value):
    assert f"{name} must be a finite number, got " in _error(**{name: value})


def test_edges_of_numbers():
    for value in (0, 0.0, 1, 1.0, 0.5):
        request = GenerationRequest(last_frame="a.png", last_frame_strength=value)
        assert request.last_frame_strength == value
    assert "at least 0.0, got -0.01" in _error(last_frame="a.png", last_frame_strength=-0.01)
    assert "at most 1.0, got 1.01" in _error(last_frame="a.png", last_frame_strength=1.01)
    assert GenerationRequest(guidance_scale=1).guidance_scale == 1.0
    assert GenerationRequest(guidance_scale=100).guidance_scale == 100.0
    assert "at least 1.0, got 0.99" in _error(guidance_scale=0.99)
    assert "at most 100.0, got 101" in _error(guidance_scale=101)


def test_numbers_of_numpy_are_numbers():
    request = GenerationRequest(seed=np.int64(7), guidance_scale=np.float32(2.5))
    assert (request.seed, request.guidance_scale) == (7, 2.5)
    assert type(request.seed) is int


def test_edges_of_num_frames():
    for value in (1, 5, 253, 257):
        assert GenerationRequest(num_frames=value).resolved_num_frames == value
    assert "at least 1, got 0" in _error(num_frames=0)
    assert "at most 257, got 258" in _error(num_frames=258)
    assert "at most 257, got 261" in _error(num_frames=261)
    message = _error(num_frames=80)
    assert message == "num_frames must be 4k + 1 (1, 5, 9, ...), got 80. Use 77 or 81."


def test_edges_of_height_and_width():
    for value in (16, 32, 4096):
        request = GenerationRequest(height=value, width=value)
        assert (request.height, request.width) == (value, value)
    assert "height must be at least 16, got 15" in _error(height=15, width=16)
    assert "width must be at most 4096, got 4097" in _error(height=16, width=4097)
    message = _error(height=40, width=48)
    assert message == "height must be a multiple of 16 pixels, got 40. Use 32 or 48."


def test_duration_becomes_frames():
    assert GenerationRequest(duration=2).resolved_num_frames == 25
    assert GenerationRequest(duration=2, fps=24).resolved_num_frames == 49
    assert GenerationRequest(duration=0.001).resolved_num_frames == 5
    assert GenerationRequest(duration=257 / 12).resolved_num_frames == 257
    assert "duration must be above 0" in _error(duration=0)
    assert "duration must be above 0" in _error(duration=-1)


def test_longest_duration_named_by_the_message_works():
    message = _error(duration=22)
    assert "duration 22 s at 12 frames per second is 265 frames; at most 257" in message
    longest = float(message.split("Use at most ")[1].split(" s")[0])
    assert GenerationRequest(duration=longest).resolved_num_frames == 257


def test_text_must_be_text_that_can_be_written():
    assert GenerationRequest(prompt="Ein Fuchs springt \N{FOX FACE}").prompt.endswith(
        "\N{FOX FACE}"
    )
    assert _error(prompt=None) == "prompt must be text, got None."
    assert "prompt holds bytes that are not valid UTF-8" in _error(prompt="\udc80")
    assert "model is empty" in _error(model="")


def test_choices():
    assert "fit must be 'cover' or 'contain', got 'stretch'" in _error(fit="stretch")
    assert "one of auto, 16:9" in _error(aspect_ratio="16/9")


@pytest.mark.parametrize("focus", [(0.5, 0.3), [0.5, 0.3], "0.5,0.3", "0.5, .3"])
def test_focus_as_numbers_and_as_text(focus):
    assert GenerationRequest(focus=focus).focus == (0.5, 0.3)


@pytest.mark.parametrize(
    "focus", [(1.1, 0), (0, -0.1), "nan,0", (math.nan, 0), "0.5", "a,b", (0.5,), 0.5, (True, 0)]
)
def test_wrong_focus(focus):
    assert "focus must be two numbers from 0 to 1" in _error(focus=focus)


# Unknown fields and the form of messages


def test_unknown_field_gets_a_suggestion():
    assert _error(promt="a fox") == "Unknown field 'promt'. Did you mean 'prompt'?"
    assert "Did you mean 'num_frames'?" in _error(num_frame=25)
    assert "Known fields: prompt, negative_prompt, " in _error(bogus=1)


def test_parse_takes_a_mapping_and_nothing_else():
    assert GenerationRequest.parse({"prompt": "a fox", "seed": 3}).seed == 3
    with pytest.raises(InputError, match="Did you mean 'prompt'"):
        GenerationRequest.parse({"promt": "a fox"})
    for wrong in (["prompt"], {1: "a fox"}, "prompt", None):
        with pytest.raises(InputError, match="must map field names to values"):
            GenerationRequest.parse(wrong)


def test_all_problems_are_reported_at_once():
    message = _error(fps=0, num_videos=17, bogus=1)
    assert "fps must be at least 1" in message
    assert "num_videos must be at most 16" in message
    assert "Unknown field 'bogus'" in message
    message = _error(height=64, duration=2, num_frames=25, last_frame_strength=0.5)
    assert "height is given without width" in message
    assert "duration (2) and num_frames (25) are both given" in message
    assert "last_frame_strength is 0.5" in message


def test_long_values_are_shortened():
    assert len(_error(fit="x" * 10000)) < 200
    assert len(_error(**{"x" * 10000: 1})) < 500
    assert len(_error(seed=-(10**1000))) < 200


def test_a_request_cannot_be_changed_but_copied_and_pickled():
    request = GenerationRequest(prompt="a fox", keyframes={4: "a.png"})
    with pytest.raises(ValidationError, match="frozen"):
        request.prompt = "a cat"
    assert copy.deepcopy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request


# Pictures and keyframes


def test_sources_are_kept_as_given():
    array = np.zeros((32, 32, 3), np.uint8)
    picture = _flat(1)
    request = GenerationRequest(
        first_frame=picture, last_frame=Path("b.png"), keyframes={8: "a.png", 12: array, 16: b"x"}
    )
    assert list(request.pictures) == [
        "first_frame",
        "last_frame",
        "keyframe:8",
        "keyframe:12",
        "keyframe:16",
    ]
    assert request.pictures["first_frame"] is picture
    assert request.pictures["keyframe:12"] is array


def test_first_frame_may_equal_last_frame():
    assert GenerationRequest(first_frame="a.png", last_frame="a.png").pictures == {
        "first_frame": "a.png",
        "last_frame": "a.png",
    }


@pytest.mark.parametrize("wrong", [3.5, ["a.png"], {"path": "a.png"}, True])
def test_other_things_are_not_pictures(wrong):
    assert "first_frame must be a picture (a path" in _error(first_frame=wrong)
    assert "keyframe:4 must be a picture (a path" in _error(keyframes={4: wrong})


@pytest.mark.parametrize("empty", ["", b"", Path()])
def test_empty_sources_are_refused(empty):
    assert "last_frame is empty" in _error(last_frame=empty)


def test_keys_of_keyframes_may_be_decimal_text():
    request = GenerationRequest.parse(json.loads('{"keyframes": {"12": "a.png", "-1": "b.png"}}'))
    assert request.keyframes == {12: "a.png", -1: "b.png"}
    assert "has frame 12 twice" in _error(keyframes={"12": "a.png", 12: "b.png"})


@pytest.mark.parametrize("key", ["a", "1.0", "", "+1", "--1", 1.0, True, None, (1,), "9" * 99])
def test_other_keys_are_refused(key):
    assert "keyframes must have frame numbers as keys, got " in _error(keyframes={key: "a.png"})


def test_keyframes_must_be_a_mapping():
    assert "keyframes must map frame numbers to pictures" in _error(keyframes=["a.png"])


def test_edges_of_keyframe_numbers():
    for frame in (-1, 0, 24):
        assert GenerationRequest(keyframes={frame: "a.png"}).keyframes == {frame: "a.png"}
    for frame in (-2, 25):
        message = _error(keyframes={frame: "a.png"})
        assert f"keyframe:{frame}: Frame {frame} does not exist" in message
        assert "frames 0 to 24" in message
    assert GenerationRequest(keyframes={25: "a.png"}, duration=2.4).resolved_num_frames == 29


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_frame": "a", "keyframes": {0: "b"}}, "first_frame and keyframe:0 are both at fra"),
        ({"last_frame": "a", "keyframes": {24: "b"}}, "last_frame and keyframe:24 are both at fra"),
        ({"last_frame": "a", "keyframes": {-1: "b"}}, "last_frame and keyframe:-1 are both at fra"),
        ({"keyframes": {24: "a", -1: "b"}}, "keyframe:24 and keyframe:-1 are both at frame 24"),
        (
            {"first_frame": "a", "last_frame": "b", "num_frames": 1},
            "first_frame and last_frame are both at frame 0. Leave one out.",
        ),
        (
            {"keyframes": {8: "a", 5: "b"}},
            "keyframe:5 and keyframe:8 are at frames 5 and 8, and only one of frames 5 to 8 can",
        ),
        (
            {"last_frame": "a", "keyframes": {21: "b"}},
            "keyframe:21 and last_frame are at frames 21 and 24, and only one of frames 21 to 24",
        ),
    ],
)
def test_two_pictures_for_one_place_are_refused_with_both_names(fields, message):
    assert message in _error(**fields)


def test_neighbouring_latent_frames_are_free():
    GenerationRequest(first_frame="a", last_frame="b", keyframes={1: "c", 8: "d", 9: "e", 20: "f"})


# Options that contradict each other or have no effect


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duration": 2, "num_frames": 25}, "duration (2) and num_frames (25) are both given"),
        ({"height": 64}, "height is given without width. Give both"),
        ({"width": 64}, "width is given without height. Give both"),
        (
            {"height": 64, "width": 96, "aspect_ratio": "16:9"},
            "height and width (96x64) and aspect_ratio (16:9) are both given",
        ),
        ({"last_frame_strength": 0.99}, "has no effect without a last_frame"),
        ({"negative_prompt": "blur", "guidance_scale": 1}, "negative_prompt has no effect with"),
        ({"fit": "contain", "focus": (0.1, 0.5)}, "focus (0.1,0.5) has no effect with fit contain"),
    ],
)
def test_contradictions_are_refused(fields, message):
    assert message in _error(**fields)


def test_the_same_options_alone_are_fine():
    GenerationRequest(height=64, width=96, aspect_ratio="auto")
    GenerationRequest(last_frame_strength=1.0)
    GenerationRequest(last_frame="a.png", last_frame_strength=0.0)
    GenerationRequest(negative_prompt="blur", guidance_scale=1.01)
    GenerationRequest(fit="contain")


# Recipes


@pytest.fixture
def full(tmp_path):
    for name, value in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        _flat(value).save(tmp_path / name)
    return GenerationRequest(
        prompt="a fox jumps",
        negative_prompt="blur",
        guidance_scale=3.0,
        first_frame=tmp_path / "a.png",
        last_frame=str(tmp_path / "b.png"),
        keyframes={12: tmp_path / "c.png", 4: _flat(4)},
        last_frame_strength=0.75,
        aspect_ratio="4:3",
        focus=(0.25, 0.5),
        duration=2.0,
        seed=2**63 - 1,
        model=str(tmp_path),
    )


def test_recipe_is_json_and_tells_nothing_about_the_machine(full, tmp_path):
    recipe = full.to_recipe()
    text = json.dumps(recipe, allow_nan=False)
    assert json.loads(text) == recipe
    assert str(tmp_path) not in text
    assert str(tmp_path.parent.name) not in text
    assert recipe["schema_version"] == 1
    assert set(recipe) == {"schema_version", *GenerationRequest.model_fields} - {"guidance_scale_2"}
    assert (recipe["num_frames"], recipe["duration"]) == (25, None)
    assert recipe["model"] == tmp_path.name
    assert recipe["first_frame"] == {"name": "a.png", "sha256": picture_sha256(_flat(1))}
    assert recipe["keyframes"]["4"] == {"name": None, "sha256": picture_sha256(_flat(4))}


def test_recipe_makes_the_same_request_again(full):
    recipe = json.loads(json.dumps(full.to_recipe()))
    again = GenerationRequest.from_recipe(recipe, full.pictures)
    assert again.to_recipe() == recipe
    assert again.pictures == full.pictures
    assert again.seed == full.seed
    plain = GenerationRequest()
    assert GenerationRequest.from_recipe(plain.to_recipe()) == plain.model_copy(
        update={"num_frames": 25}
    )


def test_recipe_uses_pictures_already_read(full, tmp_path):
    loaded = {role: load_picture(source) for role, source in full.pictures.items()}
    recipe = full.to_recipe()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert full.to_recipe(loaded) == recipe
    with pytest.raises(InputError, match="does not exist"):
        full.to_recipe()


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("/home/somebody/a.png", "a.png"),
        ("C:\\Users\\somebody\\a.png", "a.png"),
        ("../a.png", "a.png"),
        (Path("/x/y/ä b.png"), "ä b.png"),
    ],
)
def test_recipe_names_files_without_folders(given, recorded):
    recipe = GenerationRequest(first_frame=given).to_recipe({"first_frame": _flat(1)})
    assert recipe["first_frame"]["name"] == recorded


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("pixeldance-mini", "pixeldance-mini"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("/home/somebody/mini", "mini"),
        ("~/mini/", "mini"),
        ("./mini", "mini"),
        ("C:\\Users\\somebody\\mini", "mini"),
        ("a/b/mini", "mini"),
        ("..", "local"),
    ],
)
def test_recipe_names_models_without_folders(given, recorded):
    recipe = GenerationRequest(model=given).to_recipe()
    assert recipe["model"] == recorded
    assert GenerationRequest.from_recipe(recipe).model == recorded


def test_recipe_names_a_relative_model_folder_without_its_parent(tmp_path, monkeypatch):
    (tmp_path / "weights" / "mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert GenerationRequest(model="weights/mini").to_recipe()["model"] == "mini"


def _from(recipe, pictures=None):
    with pytest.raises(InputError) as caught:
        GenerationRequest.from_recipe(recipe, pictures)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_of_a_recipe_must_be_all_there_and_the_same(full):
    recipe, pictures = full.to_recipe(), full.pictures
    fewer = {role: pictures[role] for role in ("first_frame", "keyframe:4")}
    assert "not given: last_frame, keyframe:12" in _from(recipe, fewer)
    assert "needs pictures that are not given: first_frame, " in _from(recipe)
    assert "no picture for 'keyframe:8'" in _from(recipe, {**pictures, "keyframe:8": _flat(9)})
    other = {**pictures, "keyframe:12": _flat(9)}
    assert "given for keyframe:12 is not the one" in _from(recipe, other)


def test_recipes_from_elsewhere_are_not_trusted(tmp_path):
    _flat(1).save(tmp_path / "secret.png")
    recipe = GenerationRequest().to_recipe()
    for version in (0, 2, "1", None, True):
        assert "schema_version" in _from({**recipe, "schema_version": version})
    assert "schema_version None" in _from({})
    path = str(tmp_path / "secret.png")
    assert "damaged: 'first_frame' has no sha256" in _from({**recipe, "first_frame": path})
    assert "has no sha256" in _from({**recipe, "keyframes": {"4": {"name": path}}})
    assert "keyframes is not a mapping" in _from({**recipe, "keyframes": [path]})
    assert "Unknown field 'promt'" in _from({**recipe, "promt": "a fox"})
    assert "num_videos must be at most 16" in _from({**recipe, "num_videos": 10**9})
    for model in ("/etc", "../mini", "..", "C:\\mini", "a/b/c"):
        assert "names a folder as its model" in _from({**recipe, "model": model})
    assert "model must be text" in _from({**recipe, "model": 5})
