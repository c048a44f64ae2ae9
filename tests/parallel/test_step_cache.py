"""The step cache skips what it may, when it may, and leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel_helpers import with_pictures
from tiny import seeded, tiny_pipeline
from tiny_wan import write_checkpoint

from pixeldance.api import Model, load, rerun
from pixeldance.backbones.step_cache import StepCache
from pixeldance.errors import GenerationCancelled, InputError
from pixeldance.pipeline import PixelDancePipeline

STEPS = 20
NEVER_SKIPPED = 4
"""20 % of the steps."""


@pytest.fixture(scope="module")
def shared_pipeline() -> PixelDancePipeline:
    return tiny_pipeline()


@pytest.fixture
def pipeline(shared_pipeline: PixelDancePipeline) -> Iterator[PixelDancePipeline]:
    yield shared_pipeline
    shared_pipeline.step_cache = None


def generate(pipeline: PixelDancePipeline, **fields: Any) -> tuple[Any, list[int]]:
    """The frames, and at which steps (from 0) the blocks were computed."""
    computed, step = [], 0

    def count(*_: Any) -> None:
        computed.append(step)

    def next_step(*_: Any) -> None:
        nonlocal step
        step += 1

    request = with_pictures(
        **{"num_inference_steps": STEPS, "num_frames": 5, "guidance_scale": 1.0, **fields}
    )
    if pipeline.step_cache is not None:  # or its small clip would be counted, too
        pipeline.step_cache.calibrate(pipeline, request["num_inference_steps"])
    handle = pipeline.transformer.blocks[1].attn1.register_forward_hook(count)
    try:
        (clip,) = pipeline(
            **request, generator=seeded(3), callback_on_step_end=next_step, return_dict=False
        )
    finally:
        handle.remove()
    return clip, computed


def test_no_step_is_skipped_unless_asked_for(pipeline: PixelDancePipeline) -> None:
    assert generate(pipeline)[1] == list(range(STEPS))


def test_a_threshold_that_nothing_keeps_changes_nothing(pipeline: PixelDancePipeline) -> None:
    expected, _ = generate(pipeline)
    pipeline.step_cache = StepCache(1e-12)
    clip, computed = generate(pipeline)
    assert computed == list(range(STEPS))
    np.testing.assert_array_equal(clip, expected)


def test_three_of_four_steps_are_skipped_at_most(pipeline: PixelDancePipeline) -> None:
    expected, _ = generate(pipeline)
    pipeline.step_cache = StepCache(1.0)
    clip, computed = generate(pipeline)
    assert computed == [*range(NEVER_SKIPPED), 7, 11, 15, 19]
    assert 0 < np.abs(clip - expected).max() < 0.1
    pipeline.step_cache = None
    np.testing.assert_array_equal(generate(pipeline)[0], expected)


def test_branches_of_guidance_keep_their_own(pipeline: PixelDancePipeline) -> None:
    pipeline.step_cache = StepCache(1.0)
    _, computed = generate(pipeline, guidance_scale=2.0)
    assert computed == sorted([*range(NEVER_SKIPPED), 7, 11, 15, 19] * 2)


def test_the_step_after_the_last_frame_is_dropped_is_computed(
    pipeline: PixelDancePipeline,
) -> None:
    pipeline.step_cache = StepCache(1.0)
    _, computed = generate(pipeline, last_frame_strength=0.25)
    assert computed == [*range(NEVER_SKIPPED), 5, 9, 13, 17]


def test_a_clip_does_not_depend_on_the_one_before(pipeline: PixelDancePipeline) -> None:
    pipeline.step_cache = StepCache(0.05)
    expected, _ = generate(pipeline)
    pipeline.step_cache = StepCache(0.05)
    generate(pipeline, prompt="a cat moves", num_frames=9)
    np.testing.assert_array_equal(generate(pipeline)[0], expected)


def test_a_stopped_clip_leaves_no_cache_behind(pipeline: PixelDancePipeline) -> None:
    expected, _ = generate(pipeline)

    def stop(pipeline: Any, step: int, *_: Any) -> None:
        pipeline._interrupt = step == 6

    pipeline.step_cache = StepCache(1.0)
    request = with_pictures(num_inference_steps=STEPS)
    with pytest.raises(GenerationCancelled):
        pipeline(**request, callback_on_step_end=stop)
    assert not pipeline.transformer.is_cache_enabled
    pipeline.step_cache = None
    np.testing.assert_array_equal(generate(pipeline)[0], expected)


@pytest.mark.parametrize("kind", ["flf2v-14b", "ti2v-5b", "i2v-a14b"])
def test_wan_checkpoints_skip_steps_of_every_expert(tmp_path: Path, kind: str) -> None:
    pipeline = PixelDancePipeline.from_pretrained(write_checkpoint(tmp_path, kind))
    pipeline.set_progress_bar_config(disable=True)
    calls: dict[str, int] = {}
    for name in ("transformer", "transformer_2"):
        model = getattr(pipeline, name)
        if model is not None:
            model.blocks[1].attn1.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
            )
    request = with_pictures(prompt="a red fox", num_inference_steps=STEPS, num_frames=5)
    pipeline(**request)
    without = dict(calls)
    pipeline.step_cache = StepCache(1.0)
    pipeline.step_cache.calibrate(pipeline, STEPS)
    calls.clear()
    pipeline(**request)
    assert sum(without.values()) == 2 * STEPS
    assert calls.keys() == without.keys()
    assert sum(calls.values()) <= 0.6 * sum(without.values())


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.5, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="step_cache must be greater than 0 and at most 1, got"):
        StepCache(threshold)


def test_few_steps_are_refused(pipeline: PixelDancePipeline) -> None:
    pipeline.step_cache = StepCache(0.1)
    with pytest.raises(InputError, match="step_cache needs at least 10 steps, got 9"):
        pipeline(**with_pictures(num_inference_steps=9))


def test_a_recipe_is_followed_with_its_cache(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_pipeline().save_pretrained(folder)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    cached: Model = load(folder, step_cache=0.5, **options)
    size: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5}
    clip = cached.generate(num_inference_steps=10, seed=1, **size)
    assert clip.recipe["model"]["step_cache"] == "0.5"
    again = rerun(clip.recipe, model=load(folder, step_cache=0.5, **options))
    np.testing.assert_array_equal(again.frames, clip.frames)
    with pytest.raises(InputError, match=r"made with step_cache 0\.5, the model given was loaded"):
        rerun(clip.recipe, model=load(folder, **options))
    clip.recipe["model"]["step_cache"] = "much"
    with pytest.raises(InputError, match="recipe is damaged: its step_cache is 'much'"):
        rerun(clip.recipe, model=cached)
