"""Making films: what is made, what is not made again, what a stopped run leaves behind."""

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from story_helpers import SMALL, TARGET, frames_of, plan, three_shots, tiny_model
from tiny import picture

from pixeldance.api import Clip, Model
from pixeldance.errors import DataError, GenerationCancelled, InputError
from pixeldance.request import GenerationRequest
from pixeldance.stories import (
    ClipCache,
    Story,
    StoryEvent,
    loop_story,
    make_clips,
    plan_story,
    read_film_recipe,
    redone,
    shot_states,
    story_of_recipe,
    write_film,
)
from pixeldance.stories.colour import LARGEST_SHIFT, colour_shift, hold_colours, to_oklab
from pixeldance.video import frames_sha256, read_clip


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    """The clips of three shots; tests read them only."""
    cache = ClipCache(tmp_path_factory.mktemp("made"))
    assert make_clips(plan(three_shots()), cache, model) == 3
    return cache


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GenerationRequest, Clip]]:
    """What the model is asked for and what it makes."""
    seen: list[tuple[GenerationRequest, Clip]] = []
    generate = Model.generate

    def recorded(self: Model, request: GenerationRequest, **options: object) -> Clip:
        clip = generate(self, request, **options)  # type: ignore[arg-type]
        seen.append((request, clip))
        return clip

    monkeypatch.setattr(Model, "generate", recorded)
    return seen


def copy_of(cache: ClipCache, folder: Path) -> ClipCache:
    for path in cache.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return ClipCache(folder)


def test_a_clip_that_goes_on_is_given_the_tail_of_the_film(
    model: Model, runs: list[tuple[GenerationRequest, Clip]], tmp_path: Path
) -> None:
    story = three_shots(window=2, colour_anchor=0)
    make_clips(plan(story), ClipCache(tmp_path), model)
    film = frames_of(story, tmp_path)
    first, second, third = (request for request, _ in runs)
    assert list(first.keyframes) == [0]
    assert list(second.keyframes) == [0, 4]
    for frame, given in second.keyframes.items():
        assert np.array_equal(np.asarray(given), film[9 - 5 + frame])
    assert list(third.keyframes) == [0]
    assert np.array_equal(np.asarray(third.keyframes[0]), film[16])
    assert third.last_frame is not None
    made = [clip.frames for _, clip in runs]
    assert np.array_equal(film, np.concatenate([made[0], made[1][5:], made[2][1:]]))


def test_redo_makes_the_shot_and_what_goes_on_from_it(
    model: Model, made: ClipCache, tmp_path: Path
) -> None:
    cache = copy_of(made, tmp_path)
    story = redone(three_shots(), "shot-2", seed=5)
    assert [state.is_made for state in shot_states(plan(story), cache)] == [True, False, False]
    events: list[StoryEvent] = []
    assert make_clips(plan(story), cache, model, on_event=events.append) == 2
    assert [(event.shot.name, event.num_made) for event in events if event.step is None] == [
        ("shot-2", 1),
        ("shot-3", 2),
    ]
    assert make_clips(plan(story), cache, model) == 0
    before, after = frames_of(three_shots(), tmp_path), frames_of(story, tmp_path)
    assert np.array_equal(before[:9], after[:9])
    assert not np.array_equal(before[9:17], after[9:17])


def test_a_stopped_run_goes_on_and_gives_the_same_film(
    model: Model, made: ClipCache, tmp_path: Path
) -> None:
    def stop(event: StoryEvent) -> None:
        if event.shot.number == 1:
            raise GenerationCancelled("enough")

    story, cache = three_shots(), ClipCache(tmp_path)
    with pytest.raises(GenerationCancelled):
        make_clips(plan(story), cache, model, on_event=stop)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="Not all is made yet: shot-2, shot-3"):
        write_film(tmp_path / "film.mp4", plan(story), cache)
    assert make_clips(plan(story), cache, model) == 2
    assert np.array_equal(frames_of(story, tmp_path), frames_of(story, made.folder))


def test_film_and_recipe_give_the_story_back(made: ClipCache, tmp_path: Path) -> None:
    story = three_shots()
    recipe = write_film(tmp_path / "film.mp4", plan(story), made)
    frames = frames_of(story, made.folder)
    assert recipe["film"]["sha256"] == frames_sha256(frames)
    shown = read_clip(tmp_path / "film.mp4")
    assert len(shown.frames) == 25
    assert shown.fps == 12
    assert np.abs(shown.frames.astype(int) - frames).mean() < 12
    read = read_film_recipe(tmp_path / "film.json")
    assert read == recipe
    again = plan(story_of_recipe(read))
    assert [clip.key for clip in again.clips] == [clip.key for clip in plan(story).clips]
    with pytest.raises(InputError, match="already exists"):
        write_film(tmp_path / "film.mp4", plan(story), made)


def test_damaged_recipes_are_refused(made: ClipCache, tmp_path: Path) -> None:
    recipe = write_film(tmp_path / "film.mp4", plan(three_shots()), made)
    sha256 = next(iter(recipe["pictures"]))
    for damage, message in (
        ({"pictures": {}}, "damaged"),
        ({"pictures": {**recipe["pictures"], sha256: "no"}}, "picture .* is damaged"),
        ({"story": {**recipe["story"], "model": "../weights"}}, "names a folder"),
    ):
        with pytest.raises(DataError, match=message):
            story_of_recipe({**recipe, **damage})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not the recipe of a film"):
        read_film_recipe(tmp_path / "other.json")


def test_a_damaged_clip_is_named_and_no_film_is_left(made: ClipCache, tmp_path: Path) -> None:
    cache = copy_of(made, tmp_path)
    last = plan(three_shots()).clips[-1]
    cache.path_of(last.key).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{last.key}.zip' is missing or damaged"):
        write_film(tmp_path / "film.mp4", plan(three_shots()), cache)
    assert not (tmp_path / "film.mp4").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_loop_leaves_out_the_frame_that_would_be_shown_twice(model: Model, tmp_path: Path) -> None:
    story = loop_story(picture(1), "jumps", duration=0.7, **SMALL)
    planned = plan(story)
    assert planned.num_frames == 8
    make_clips(planned, ClipCache(tmp_path), model)
    assert len(frames_of(story, tmp_path)) == 8
    assert write_film(tmp_path / "l.mp4", planned, ClipCache(tmp_path))["film"]["num_frames"] == 8


def test_a_plan_for_another_model_is_refused(made: ClipCache) -> None:
    other = Model(name="tiny", pipeline=tiny_model().pipeline, sha256="1" * 64)
    with pytest.raises(InputError, match="The plan is for the model 'tiny'"):
        make_clips(plan(three_shots()), made, other)


def test_memory_does_not_grow_with_the_film(tmp_path: Path) -> None:
    def peak(num_shots: int) -> int:
        fields = {**SMALL, "height": 160, "width": 240, "clip_frames": 25}
        story = Story.parse({**fields, "shots": [{"prompt": str(i)} for i in range(num_shots)]})
        planned, cache = plan(story), ClipCache(tmp_path / str(num_shots))
        noise = np.zeros((25, 160, 240, 3), np.uint8)
        for clip in planned.clips:
            cache.keep(clip.key, noise[: clip.num_new], fps=12)
        tracemalloc.start()
        write_film(tmp_path / f"{num_shots}.mp4", planned, cache)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    frame = 160 * 240 * 3
    assert peak(8) < peak(2) + 10 * frame


# ---- colours


def test_oklab_of_known_colours() -> None:
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8)
    # Ottosson's own table: white 1 0 0; red .628 .225 .126
    known = np.array([[1, 0, 0], [0, 0, 0], [0.628, 0.225, 0.126]])
    assert np.allclose(to_oklab(colours), known, atol=1e-3)


def shaded(frame: npt.NDArray[np.uint8], amount: int) -> npt.NDArray[np.uint8]:
    return (frame.astype(int) + amount).clip(0, 255).astype(np.uint8)


def test_a_drift_is_taken_back_more_and_more() -> None:
    anchor = np.random.default_rng(0).integers(60, 200, (40, 64, 3), dtype=np.uint8)
    drifted = np.stack([shaded(anchor, 6)] * 8)
    held = hold_colours(drifted, anchor, strength=1.0)
    errors = np.abs(held.astype(int) - anchor).mean(axis=(1, 2, 3))
    assert errors[0] > 4.5
    assert errors[-1] < 1.5
    assert all(later < earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
    half = hold_colours(drifted, anchor, strength=0.5)[-1]
    assert np.abs(half.astype(int) - anchor).mean() == pytest.approx(3, abs=0.8)


def test_what_moves_or_comes_into_the_picture_is_no_drift() -> None:
    anchor = np.full((40, 64, 3), 120, np.uint8)
    anchor[:, :30] = (200, 40, 40)
    moved = np.roll(anchor, 20, axis=1)
    assert np.abs(colour_shift(moved, anchor)).max() < 1e-6
    other = np.full((40, 64, 3), 230, np.uint8)
    assert not colour_shift(other, anchor).any()
    assert np.array_equal(hold_colours(other[None], anchor, strength=1.0)[0], other)
    dark = shaded(anchor, -30)
    assert np.abs(colour_shift(dark, anchor)).max() <= LARGEST_SHIFT


def test_size_is_checked_against_the_model(model: Model) -> None:
    with pytest.raises(InputError, match="must be multiples of 32 for the model 'tiny'"):
        plan_story(three_shots(), replace(TARGET, size_multiple=32))
    assert type(TARGET).of(model) == TARGET
