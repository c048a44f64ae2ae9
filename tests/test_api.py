from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import picture, tiny_pipeline

from pixeldance.api import Clip, Model, StepEvent, load, rerun
from pixeldance.errors import CheckpointError, GenerationCancelled, InputError
from pixeldance.ops import active_tier
from pixeldance.request import GenerationRequest
from pixeldance.video import frames_sha256, read_clip, read_recipe

SMALL: dict[str, Any] = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "num_inference_steps": 2,
    "seed": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_pipeline(has_refiner=True).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu", dtype="float32")


def test_a_clip_is_uint8_frames_at_the_rate_asked_for(model: Model) -> None:
    clip = model.generate(prompt="a red fox", first_frame=picture(1), fps=8, **SMALL)
    assert (clip.frames.shape, clip.frames.dtype) == ((5, 32, 48, 3), np.uint8)
    assert (clip.fps, clip.seed, clip.duration) == (8, 1, 5 / 8)
    np.testing.assert_array_equal(np.asarray(clip.first_frame), clip.frames[0])
    np.testing.assert_array_equal(np.asarray(clip.last_frame), clip.frames[4])


def test_equal_requests_give_equal_frames(model: Model) -> None:
    fields = {"prompt": "a cat", "first_frame": picture(1), "last_frame": picture(2), **SMALL}
    one = model.generate(**fields)
    two = model.generate(GenerationRequest(**fields))
    np.testing.assert_array_equal(one.frames, two.frames)
    other = model.generate(**{**fields, "seed": 2})
    assert not np.array_equal(one.frames, other.frames)


def test_every_instruction_reaches_the_model(model: Model) -> None:
    fields: dict[str, Any] = {
        "prompt": "a cat",
        "last_frame": picture(2),
        "guidance_scale": 2.0,
        **SMALL,
    }
    plain = model.generate(**fields).frames
    for change in (
        {"prompt": "a red fox"},
        {"negative_prompt": "a red fox"},
        {"first_frame": picture(1)},
        {"last_frame": picture(1)},
        {"num_frames": 9, "keyframes": {4: picture(1)}},
        {"last_frame_strength": 0.5},
        {"guidance_scale": 9.0},
        {"num_inference_steps": 3},
    ):
        assert not np.array_equal(model.generate(**{**fields, **change}).frames, plain), change


def test_a_drawn_seed_is_recorded_and_makes_the_same_clip(model: Model) -> None:
    fields = {**SMALL, "seed": None}
    clip, other = model.generate(**fields), model.generate(**fields)
    assert clip.seed != other.seed
    again = model.generate(**{**fields, "seed": clip.seed})
    np.testing.assert_array_equal(again.frames, clip.frames)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"aspect_ratio": "1:1"}, (48, 48)),
        ({"aspect_ratio": "auto"}, (32, 64)),
        ({"first_frame": picture(1, 64, 64)}, (48, 48)),
        ({"last_frame": picture(1, 64, 64)}, (48, 48)),
        ({"keyframes": {-1: picture(1, 64, 64)}}, (48, 48)),
        ({"first_frame": picture(1, 64, 64), "aspect_ratio": "9:16"}, (64, 32)),
        ({"height": 16, "width": 64}, (16, 64)),
    ],
)
def test_the_size_follows_the_request(
    model: Model, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    clip = model.generate(num_frames=5, num_inference_steps=1, **options)
    assert clip.frames.shape[1:3] == expected


def test_fit_and_focus_decide_what_is_seen_of_a_picture(model: Model) -> None:
    wide = picture(1, 144, 32)
    left = model.generate(first_frame=wide, focus=(0.0, 0.5), **SMALL)
    crop = model.generate(first_frame=wide.crop((0, 0, 48, 32)), **SMALL)
    np.testing.assert_array_equal(left.frames, crop.frames)
    bars = model.generate(first_frame=wide, fit="contain", **SMALL)
    assert not np.array_equal(bars.frames, crop.frames)


def test_steps_are_reported_with_the_time_that_remains(model: Model) -> None:
    events: list[StepEvent] = []
    model.generate_many(num_videos=2, on_step=events.append, **SMALL)
    assert [(event.step, event.num_steps) for event in events] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    elapsed = [event.elapsed_s for event in events]
    assert elapsed == sorted(elapsed)
    assert [event.remaining_s == 0.0 for event in events] == [False, False, False, True]
    assert events[0].remaining_s == pytest.approx(3 * elapsed[0])


def test_a_listener_can_cancel(model: Model) -> None:
    events: list[StepEvent] = []

    def cancel(event: StepEvent) -> None:
        events.append(event)
        raise GenerationCancelled("enough")

    with pytest.raises(GenerationCancelled, match="enough"):
        model.generate(on_step=cancel, **{**SMALL, "num_inference_steps": 50})
    assert len(events) == 1


def test_many_clips_differ_and_each_is_what_its_seed_gives_alone(model: Model) -> None:
    clips = model.generate_many(prompt="a cat", num_videos=3, **SMALL)
    assert [clip.seed for clip in clips] == [1, 2, 3]
    alone = model.generate(prompt="a cat", **{**SMALL, "seed": 3})
    np.testing.assert_array_equal(clips[2].frames, alone.frames)
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_seeds_after_the_largest_start_again_at_zero(model: Model) -> None:
    clips = model.generate_many(num_videos=2, **{**SMALL, "seed": 2**63 - 1})
    assert [clip.seed for clip in clips] == [2**63 - 1, 0]


# ---- recipes and files


@pytest.fixture(scope="module")
def clip(model: Model) -> Clip:
    return model.generate(
        prompt="a red fox",
        first_frame=picture(1, 100, 70),
        last_frame=picture(2),
        keyframes={4: picture(3)},
        last_frame_strength=0.5,
        fit="contain",
        **{**SMALL, "num_frames": 9},
    )


def test_the_recipe_says_all_and_tells_no_path(clip: Clip, model: Model, folder: Path) -> None:
    recipe = clip.recipe
    assert recipe["request"]["prompt"] == "a red fox"
    assert recipe["request"]["model"] == "tiny"
    assert recipe["seed"] == 1
    assert recipe["model"] == {
        "name": "tiny",
        "sha256": model.sha256,
        "dtype": "float32",
        "device": "cpu",
        "operations": active_tier("cpu").name,
    }
    assert recipe["frames"]["sha256"] == frames_sha256(clip.frames)
    assert set(recipe["pictures"]) == {"first_frame", "last_frame", "keyframe:4"}
    assert set(recipe["timings"]) == {"load", "sample", "decode"}
    assert str(folder.parent) not in str(recipe)


def test_a_recipe_makes_the_same_frames_again(clip: Clip, model: Model) -> None:
    again = rerun(clip.recipe, model=model)
    np.testing.assert_array_equal(again.frames, clip.frames)
    assert again.recipe["frames"] == clip.recipe["frames"]
    assert again.recipe["request"] == clip.recipe["request"]


def test_one_of_many_with_a_drawn_seed_can_be_made_again(model: Model) -> None:
    clips = model.generate_many(num_videos=2, aspect_ratio="1:1", num_frames=5, fps=10)
    again = rerun(clips[1].recipe, model=model)
    np.testing.assert_array_equal(again.frames, clips[1].frames)
    assert (again.seed, again.fps) == (clips[1].seed, 10)


def test_a_rerun_finds_the_model_by_its_name(
    clip: Clip, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(folder.parent))
    events: list[StepEvent] = []
    again = rerun(clip.recipe, device="cpu", on_step=events.append)
    np.testing.assert_array_equal(again.frames, clip.frames)
    assert len(events) == 2


def test_a_rerun_with_other_weights_is_refused(clip: Clip, model: Model) -> None:
    recipe = {**clip.recipe, "model": {**clip.recipe["model"], "sha256": "0" * 64}}
    with pytest.raises(CheckpointError, match="weights 000000000000 of 'tiny'"):
        rerun(recipe, model=model)


def test_saving_writes_the_clip_its_recipe_and_a_contact_sheet(clip: Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "clip.mp4", contact_sheet=tmp_path / "clip.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clip.json",
        "clip.mp4",
        "clip.png",
    ]
    written = read_clip(path)
    assert (written.frames.shape, written.fps) == (clip.frames.shape, Fraction(12))
    assert read_recipe(path) == clip.recipe
    with pytest.raises(InputError, match="exists"):
        clip.save(path)
    clip.save(path, overwrite=True, sidecar=False)
    assert not (tmp_path / "clip.json").exists()


def test_a_sheet_in_the_way_stops_saving_before_the_clip_is_written(
    clip: Clip, tmp_path: Path
) -> None:
    (tmp_path / "clip.png").touch()
    with pytest.raises(InputError, match="exists"):
        clip.save(tmp_path / "clip.mp4", contact_sheet=tmp_path / "clip.png")
    assert [file.name for file in tmp_path.iterdir()] == ["clip.png"]


# ---- errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "a cat"}, "Did you mean 'prompt'"),
        ({"num_frames": 10}, "Use 9 or 13"),
        ({"num_videos": 2}, "makes one clip, num_videos is 2. Use generate_many"),
        (
            {"model": "other"},
            r"asks for the model 'other', this one is 'tiny'. Use load\('other'\)",
        ),
        ({"first_frame": "missing.png"}, "missing.png"),
        ({"request": GenerationRequest(), "seed": 1}, "a request or its fields, not both"),
    ],
)
def test_wrong_requests_are_refused_before_the_first_step(
    model: Model, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(on_step=lambda event: pytest.fail(f"ran {event}"), **fields)


@pytest.mark.parametrize("given", ["tiny", "some/folder/tiny"])
def test_a_request_may_name_the_model_that_is_loaded(model: Model, given: str) -> None:
    clip = model.generate(model=given, **SMALL)
    assert clip.recipe["request"]["model"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "one of|auto, float32, bfloat16, float16, got 'int8'"),
        ({"dtype": "float16"}, "float16 is slow and inexact on the CPU"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here. Use auto, cpu or cuda"),
    ],
)
def test_wrong_ways_to_load_are_refused(
    folder: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(folder, **{"device": "cpu", **options})


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no model 'pixeldance-maxi'"):
        load("pixeldance-maxi")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"avx2": True, "avx512_f": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_dtype_follows_the_processor(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    expected: str,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    model = load(folder, device="cpu")
    assert model.dtype == expected
    assert model.generate(**SMALL).recipe["model"]["dtype"] == expected


def test_loading_and_generating_prints_nothing_where_steps_are_listened_to(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(folder, device="cpu")
    model.generate(on_step=lambda event: None, **SMALL)
    assert capfd.readouterr() == ("", "")


def test_an_index_changes_nothing_on_the_cpu(folder: Path) -> None:
    assert str(load(folder, device="cpu:0").device) == "cpu"
