"""Instructions: each picture at its pixel frame, Wan's mask, and the recipe's probabilities."""

import random
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pixeldance.errors import ConfigError, InputError
from pixeldance.geometry import latent_slot
from pixeldance.instructions import (
    Conditions,
    SampledInstructions,
    Task,
    TrainingRecipe,
    ddpm_noise_level,
    last_frame_steps,
    place_keyframes,
    sample_instructions,
)

CHANNELS, ROWS, COLUMNS = 3, 2, 4
LEGAL_COUNTS = range(1, 34, 4)


def picture(value: float) -> Tensor:
    return torch.full((CHANNELS, ROWS, COLUMNS), value)


def place(*clips: Mapping[int, Tensor], num_frames: int) -> Conditions:
    return place_keyframes(
        clips,
        num_frames=num_frames,
        channels=CHANNELS,
        latent_height=ROWS,
        latent_width=COLUMNS,
    )


def wan_mask(given: set[int], num_frames: int) -> Tensor:
    """Mask of diffusers' WanImageToVideoPipeline.prepare_latents, for the frames given."""
    mask = torch.zeros(1, 1, num_frames, ROWS, COLUMNS)
    mask[:, :, sorted(given)] = 1
    first = torch.repeat_interleave(mask[:, :, :1], dim=2, repeats=4)
    mask = torch.cat([first, mask[:, :, 1:]], dim=2)
    return mask.view(1, -1, 4, ROWS, COLUMNS).transpose(1, 2)


@pytest.mark.parametrize("num_frames", LEGAL_COUNTS)
def test_every_frame_lands_in_its_own_place(num_frames: int) -> None:
    for frame in range(num_frames):
        conditions = place({frame: picture(5.0)}, num_frames=num_frames)
        assert torch.equal(conditions.mask, wan_mask({frame}, num_frames))
        slot = (frame + 3) // 4
        expected = torch.zeros(1, CHANNELS, (num_frames - 1) // 4 + 1, ROWS, COLUMNS)
        expected[:, :, slot] = 5.0
        assert torch.equal(conditions.latents, expected)


@pytest.mark.parametrize("num_frames", LEGAL_COUNTS)
def test_minus_one_is_the_last_frame(num_frames: int) -> None:
    by_end = place({-1: picture(2.0)}, num_frames=num_frames)
    by_number = place({num_frames - 1: picture(2.0)}, num_frames=num_frames)
    assert all(torch.equal(a, b) for a, b in zip(by_end, by_number, strict=True))


def test_first_and_last_make_wans_mask() -> None:
    conditions = place({0: picture(1.0), -1: picture(2.0)}, num_frames=9)
    assert torch.equal(conditions.mask, wan_mask({0, 8}, 9))
    assert conditions.mask[0, :, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert conditions.latents[0, 0, :, 0, 0].tolist() == [1, 0, 2]


def test_mask_comes_before_latents() -> None:
    conditions = place({0: picture(7.0)}, num_frames=5)
    stacked = conditions.stacked()
    assert stacked.shape == (1, 4 + CHANNELS, 2, ROWS, COLUMNS)
    assert stacked[0, :, 0, 0, 0].tolist() == [1, 1, 1, 1, 7, 7, 7]


def test_each_clip_has_its_own_pictures() -> None:
    together = place({0: picture(1.0)}, {}, {4: picture(3.0)}, num_frames=5)
    for row, clip in enumerate([{0: picture(1.0)}, {}, {4: picture(3.0)}]):
        alone = place(clip, num_frames=5)
        assert torch.equal(together.mask[row : row + 1], alone.mask)
        assert torch.equal(together.latents[row : row + 1], alone.latents)
    assert not together.stacked()[1].any()


@pytest.mark.parametrize(("first", "second"), [(5, 8), (1, 4), (7, -1)])
def test_two_pictures_in_one_latent_frame_are_refused(first: int, second: int) -> None:
    clip = {first: picture(1.0), second: picture(2.0)}
    with pytest.raises(InputError, match=rf"{first} and {second % 9}.*frames \d to \d.*Move one"):
        place(clip, num_frames=9)


def test_the_first_frame_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"0 and 0.*\(frame 0\)"):
        place({0: picture(1.0), -1: picture(2.0)}, num_frames=1)


@pytest.mark.parametrize("frame", [9, -10])
def test_frames_outside_the_clip_are_refused(frame: int) -> None:
    with pytest.raises(InputError, match=str(frame)):
        place({frame: picture(1.0)}, num_frames=9)


def test_illegal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"got 8.*5.*9"):
        place({0: picture(1.0)}, num_frames=8)


@pytest.mark.parametrize(
    ("strength", "num_steps", "steps"),
    [
        (0.0, 8, 0),
        (1.0, 8, 8),
        (1.0, 1, 1),
        (0.0, 1, 0),
        (0.5, 8, 4),
        (0.5, 5, 3),
        (0.5, 1, 1),
        (0.49, 1, 0),
        (0.05, 8, 0),
        (0.07, 8, 1),
        (0.99, 8, 8),
        (0.6, 200, 120),
    ],
)
def test_tau_rounds_to_the_nearest_step(strength: float, num_steps: int, steps: int) -> None:
    assert last_frame_steps(strength, num_steps) == steps


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan")])
def test_strength_is_a_fraction(strength: float) -> None:
    with pytest.raises(InputError, match=r"last_frame_strength must be in \[0, 1\], got"):
        last_frame_steps(strength, 8)


def test_tau_needs_a_step() -> None:
    with pytest.raises(InputError, match="num_steps must be at least 1, got 0"):
        last_frame_steps(0.5, 0)


def draw(count: int, recipe: TrainingRecipe, num_frames: int = 17) -> list[SampledInstructions]:
    rng = random.Random(0)
    return [sample_instructions(num_frames, recipe, rng) for _ in range(count)]


def only(task: Task, **options: float) -> TrainingRecipe:
    return TrainingRecipe(tasks={task: 1.0}, **options)  # type: ignore[arg-type]


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def test_the_papers_recipe() -> None:
    drawn = draw(4000, TrainingRecipe())
    counts = Counter(d.task for d in drawn)
    expected = {"text": 0.15, "first": 0.25, "first_last": 0.40, "last": 0.10, "keyframes": 0.10}
    assert {task: counts[task] / 4000 for task in expected} == pytest.approx(expected, abs=0.03)
    assert share([not d.keep_text for d in drawn]) == pytest.approx(0.1, abs=0.02)
    assert {d.noise for d in drawn} == {ddpm_noise_level(100)}
    last = [d for d in drawn if d.task in ("first_last", "last")]
    assert share([16 not in d.sources for d in last]) == pytest.approx(0.25, abs=0.04)


def test_weights_of_tasks_need_not_sum_to_one() -> None:
    recipe = TrainingRecipe(tasks={"first": 3.0, "last": 1.0})
    counts = Counter(drawn.task for drawn in draw(1000, recipe))
    assert counts["first"] / 1000 == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(("task", "frames"), [("text", set()), ("first", {0})])
def test_what_a_task_without_a_last_frame_gives(task: Task, frames: set[int]) -> None:
    assert all(drawn.sources == {f: f for f in frames} for drawn in draw(50, only(task)))


@pytest.mark.parametrize(("task", "has_first"), [("first_last", True), ("last", False)])
def test_the_last_frame_comes_from_the_last_three(task: Task, has_first: bool) -> None:
    drawn = draw(1000, only(task))
    kept = [d.sources[16] for d in drawn if 16 in d.sources]
    assert share([16 not in d.sources for d in drawn]) == pytest.approx(0.25, abs=0.05)
    assert {f: kept.count(f) / len(kept) for f in (14, 15, 16)} == pytest.approx(
        dict.fromkeys((14, 15, 16), 1 / 3), abs=0.06
    )
    assert all((d.sources.get(0) == 0) == has_first for d in drawn)
    assert all(set(d.sources) <= {0, 16} for d in drawn)


@pytest.mark.parametrize(("window", "expected"), [(1, {16}), (2, {15, 16}), (4, {13, 14, 15, 16})])
def test_the_window_can_be_chosen(window: int, expected: set[int]) -> None:
    recipe = only("last", last_frame_window=window, last_frame_drop=0.0)
    assert {d.sources[16] for d in draw(200, recipe)} == expected


def test_a_dropped_last_frame_leaves_neither_latents_nor_mask() -> None:
    for drawn in draw(20, only("first_last", last_frame_drop=1.0)):
        pictures = {claimed: picture(1.0) for claimed in drawn.sources}
        conditions = place(pictures, num_frames=17).stacked()
        assert not conditions[:, :, 1:].any()
        assert conditions[:, :, 0].all()


def test_keyframes_never_share_a_latent_frame() -> None:
    drawn = draw(500, only("keyframes"))
    for sample in drawn:
        slots = [latent_slot(frame)[0] for frame in sample.sources]
        assert len(set(slots)) == len(slots)
        assert all(claimed == source for claimed, source in sample.sources.items())
    assert Counter(len(d.sources) for d in drawn).keys() == {1, 2, 3}
    assert {frame for d in drawn for frame in d.sources} == set(range(17))


@pytest.mark.parametrize("task", ["text", "first", "first_last", "last", "keyframes"])
def test_a_single_frame_can_only_be_given_as_itself(task: Task) -> None:
    drawn = draw(30, only(task), num_frames=1)
    expected = {} if task == "text" else {0: 0}
    assert all(d.sources == expected for d in drawn)


def test_short_clips_keep_the_first_frame_out_of_the_window() -> None:
    drawn = draw(200, only("last", last_frame_window=4, last_frame_drop=0.0), num_frames=5)
    assert {d.sources[4] for d in drawn} == {1, 2, 3, 4}


def test_noise_after_a_hundred_steps() -> None:
    noise = ddpm_noise_level(100)
    assert noise == pytest.approx(0.3209, abs=1e-4)
    assert (1 - noise**2) ** 0.5 == pytest.approx(0.947, abs=1e-3)


def test_noise_grows_from_nothing_to_everything() -> None:
    assert ddpm_noise_level(0) == 0
    assert ddpm_noise_level(1) == pytest.approx(0.01)  # the square root of the first beta
    assert ddpm_noise_level(999) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_noise_is_given_to_a_share_of_the_samples(probability: float) -> None:
    drawn = draw(1000, TrainingRecipe(noise_probability=probability))
    assert {d.noise for d in drawn} <= {0.0, ddpm_noise_level(100)}
    assert share([d.noise > 0 for d in drawn]) == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_text_is_dropped_with_its_probability(probability: float) -> None:
    drawn = draw(500, TrainingRecipe(text_drop=probability))
    assert share([not d.keep_text for d in drawn]) == pytest.approx(probability, abs=0.07)


def test_the_same_stream_draws_the_same() -> None:
    assert draw(20, TrainingRecipe()) == draw(20, TrainingRecipe())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"first": -1.0, "text": 2.0}}, "non-negative"),
        ({"tasks": {"first": 0.0}}, "non-negative"),
        ({"tasks": {}}, "non-negative"),
        ({"last_frame_window": 0}, "1 to 4, got 0"),
        ({"last_frame_window": 5}, "1 to 4, got 5"),
        ({"noise_steps": -1}, "0 to 999, got -1"),
        ({"noise_steps": 1000}, "0 to 999, got 1000"),
        ({"last_frame_drop": 1.1}, r"last_frame_drop must be in \[0, 1\], got 1.1"),
        ({"text_drop": -0.1}, r"text_drop must be in \[0, 1\], got -0.1"),
        ({"noise_probability": 2.0}, r"noise_probability must be in \[0, 1\], got 2.0"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingRecipe(**options)  # type: ignore[arg-type]
