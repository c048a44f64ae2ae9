"""What our pipeline does with Wan checkpoints and diffusers' cannot."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import picture, seeded
from tiny_wan import KINDS

from pixeldance.backbones import autoencoder
from pixeldance.diffusion import add_noise
from pixeldance.errors import CheckpointError, InputError
from pixeldance.pipeline import PixelDancePipeline

Load = Callable[[str], PixelDancePipeline]

SMALL: dict[str, Any] = {
    "height": 32,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 4,
    "output_type": "latent",
}
FOX, CAT = "a red fox jumps", "a cat moves left"
FIRST, MIDDLE, LAST = (picture(seed, 64, 32) for seed in (1, 2, 3))
ENDS = {"first_frame": FIRST, "last_frame": LAST}
TAKE_PICTURES = [kind for kind, details in KINDS.items() if details.takes_pictures]
CONCATENATE = [kind for kind in TAKE_PICTURES if not KINDS[kind].holds]


def run(pipeline: PixelDancePipeline, prompt: Any = FOX, seed: int = 0, **options: Any) -> Any:
    return pipeline(prompt, **{"generator": seeded(seed), **SMALL, **options}).frames


class Pass(NamedTuple):
    """What one forward pass was given."""

    expert: int
    model_input: torch.Tensor
    timestep: torch.Tensor
    image: torch.Tensor | None


def passes(pipeline: PixelDancePipeline, **options: Any) -> list[Pass]:
    """Every forward pass of a generation."""
    seen: list[Pass] = []

    def note(expert: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            image = kwargs["context"].image
            seen.append(Pass(expert, kwargs["hidden_states"], kwargs["timestep"], image))

        return hook

    with ExitStack() as hooks:
        for number, model in enumerate((pipeline.transformer, pipeline.transformer_2)):
            if model is not None:
                handle = model.register_forward_pre_hook(note(number), with_kwargs=True)
                hooks.callback(handle.remove)
        run(pipeline, **options)
    return seen


def masked_frames(one: Pass) -> list[tuple[int, int]]:
    """(latent frame, place in it) of the pixel frames that the mask says are given."""
    mask = one.model_input[0, 4:8, :, 0, 0]
    return [(int(slot), int(place)) for slot, place in mask.T.nonzero()]


FIRST_FRAME = [(0, 0), (0, 1), (0, 2), (0, 3)]


# ---- where pictures go


@pytest.mark.parametrize("kind", CONCATENATE)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"first_frame": FIRST}, FIRST_FRAME),
        ({"last_frame": LAST}, [(2, 3)]),
        ({"keyframes": {5: MIDDLE}}, [(2, 0)]),
        ({**ENDS, "keyframes": {4: MIDDLE}}, [*FIRST_FRAME, (1, 3), (2, 3)]),
    ],
)
def test_the_mask_names_the_pixel_frames_that_are_given(
    ours: Load, kind: str, options: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    assert [masked_frames(one) for one in passes(ours(kind), **options)] == [expected] * 4


def test_the_condition_is_the_latent_of_a_clip_with_the_pictures_in_it(ours: Load) -> None:
    pipeline = ours("fun-inp")
    video = torch.zeros(1, 3, 9, 32, 64)
    for frame, shown in ((0, FIRST), (3, MIDDLE), (8, LAST)):
        video[0, :, frame] = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 127.5 - 1.0
    latents = pipeline.vae.encode(video).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    seen = passes(pipeline, **ENDS, keyframes={3: MIDDLE})
    torch.testing.assert_close(seen[0].model_input[:, 8:], (latents - mean) / std)


@pytest.mark.parametrize("kind", TAKE_PICTURES)
@pytest.mark.parametrize("role", ["first_frame", "last_frame"])
def test_every_picture_counts(ours: Load, kind: str, role: str) -> None:
    clip = run(ours(kind), **ENDS)
    assert (run(ours(kind), **{**ENDS, role: MIDDLE}) - clip).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TAKE_PICTURES)
def test_a_key_frame_at_the_end_is_the_last_frame(ours: Load, kind: str) -> None:
    torch.testing.assert_close(
        run(ours(kind), keyframes={-1: LAST}), run(ours(kind), last_frame=LAST), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("flf2v-14b", {}, [False, False]),
        ("flf2v-14b", {"first_frame": FIRST}, [True, False]),
        ("flf2v-14b", {"last_frame": LAST}, [False, True]),
        ("flf2v-14b", ENDS, [True, True]),
        ("i2v-14b", {}, [False]),
        ("i2v-14b", {"last_frame": LAST}, [True]),
        ("i2v-14b", ENDS, [True]),
    ],
)
def test_picture_tokens_are_zeros_for_pictures_that_are_not_given(
    ours: Load, kind: str, options: dict[str, Any], expected: list[bool]
) -> None:
    for one in passes(ours(kind), **options):
        assert one.image is not None
        parts = one.image.reshape(len(expected), 5, -1)
        assert [bool(part.any()) for part in parts] == expected


def test_a_last_frame_of_another_shape_is_cropped_to_its_middle_not_stretched(ours: Load) -> None:
    wide = picture(4, 192, 32)
    middle = wide.crop((64, 0, 128, 32))
    torch.testing.assert_close(
        run(ours("flf2v-14b"), first_frame=FIRST, last_frame=wide),
        run(ours("flf2v-14b"), first_frame=FIRST, last_frame=middle),
        rtol=0,
        atol=0,
    )


# ---- how long the last frame is in force


@pytest.mark.parametrize("kind", CONCATENATE)
@pytest.mark.parametrize(("strength", "steps_with"), [(0.0, 0), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_condition_is_swapped_for_that_of_the_first_frame(
    ours: Load, kind: str, strength: float, steps_with: int
) -> None:
    pipeline = ours(kind)
    first_only = passes(pipeline, first_frame=FIRST)[0]
    both = passes(pipeline, **ENDS)[0]
    seen = passes(pipeline, **ENDS, last_frame_strength=strength)
    for step, one in enumerate(seen):
        expected = both if step < steps_with else first_only
        assert torch.equal(one.model_input[:, 4:], expected.model_input[:, 4:])
        assert expected.image is None or torch.equal(one.image, expected.image)


@pytest.mark.parametrize("kind", TAKE_PICTURES)
def test_strength_zero_is_no_last_frame(ours: Load, kind: str) -> None:
    without = run(ours(kind), first_frame=FIRST)
    assert torch.equal(run(ours(kind), **ENDS, last_frame_strength=0.0), without)


def test_the_last_frame_can_be_left_to_the_first_expert(ours: Load) -> None:
    pipeline = ours("i2v-a14b")
    share = pipeline.high_noise_share(8)
    # Shift 3: timesteps 999, 954, 900, ...; the second expert begins below 900.
    assert share == 3 / 8
    seen = passes(pipeline, **ENDS, num_inference_steps=8, last_frame_strength=share)
    assert [one.expert for one in seen] == [0] * 3 + [1] * 5
    assert [(2, 3) in masked_frames(one) for one in seen] == [True] * 3 + [False] * 5


def test_one_transformer_does_all_steps(ours: Load) -> None:
    assert ours("fun-inp").high_noise_share(8) == 1.0


# ---- held latent frames


def test_the_last_latent_frame_is_held_at_timestep_zero(ours: Load) -> None:
    pipeline = ours("ti2v-5b")
    seen = passes(pipeline, **ENDS)
    final = run(pipeline, **ENDS)
    for one in seen:
        assert torch.equal(one.model_input[:, :, [0, 2]], final[:, :, [0, 2]])
        timesteps = one.timestep.reshape(3, 2)  # frames, tokens
        assert not timesteps[[0, 2]].any()
        assert (timesteps[1] > 0).all()
    assert (final[:, :, 1] - run(pipeline, first_frame=FIRST)[:, :, 1]).abs().max() > 1e-3


def test_a_held_frame_is_let_go_at_the_noise_level_of_its_neighbours(ours: Load) -> None:
    pipeline = ours("ti2v-5b")
    noise = torch.randn(1, 8, 3, 2, 4, generator=seeded(3))
    clean = run(pipeline, **ENDS)[:, :, 2]
    seen = passes(pipeline, **ENDS, last_frame_strength=0.5, latents=noise)
    sigma = pipeline.scheduler.sigmas[2]
    expected = add_noise(clean, noise[:, :, 2], sigma)
    torch.testing.assert_close(seen[2].model_input[:, :, 2], expected, rtol=0, atol=1e-4)
    held = [not one.timestep.expand(1, 6).reshape(3, 2)[2].any() for one in seen]
    assert held == [True, True, False, False]


# ---- lengths, batches, several clips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_any_legal_length(ours: Load, kind: str, num_frames: int) -> None:
    options = {"first_frame": FIRST} if KINDS[kind].takes_pictures else {}
    if options and num_frames > 1:
        options["last_frame"] = LAST
    frames = run(
        ours(kind), num_frames=num_frames, num_inference_steps=1, output_type="np", **options
    )
    assert frames.shape == (1, num_frames, 32, 64, 3)
    assert 0.0 <= frames.min() < frames.max() <= 1.0


@pytest.mark.parametrize("kind", TAKE_PICTURES)
def test_a_batch_of_different_pictures_is_each_clip_alone(ours: Load, kind: str) -> None:
    pipeline = ours(kind)
    firsts, lasts = [FIRST, None, MIDDLE], [None, LAST, FIRST]
    options = {"guidance_scale": 2.0, "last_frame_strength": 0.5}
    prompts = [FOX, "", CAT]
    batch = run(
        pipeline,
        prompts,
        first_frame=firsts,
        last_frame=lasts,
        generator=[seeded(seed) for seed in range(3)],
        **options,
    )
    for index in range(3):
        given = {"first_frame": firsts[index], "last_frame": lasts[index]}
        alone = run(pipeline, prompts[index], seed=index, **given, **options)
        torch.testing.assert_close(batch[[index]], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_several_clips_of_a_prompt(ours: Load, kind: str) -> None:
    pipeline = ours(kind)
    pictures = ENDS if KINDS[kind].takes_pictures else {}
    generators = [seeded(seed) for seed in range(2)]
    batch = run(pipeline, num_videos_per_prompt=2, generator=generators, **pictures)
    for seed in range(2):
        alone = run(pipeline, seed=seed, **pictures)
        torch.testing.assert_close(batch[[seed]], alone, rtol=0, atol=1e-4)


def test_equal_pictures_are_encoded_once(ours: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, encoded = ours("fun-inp"), []
    encode = autoencoder.encode_keyframes
    monkeypatch.setattr(
        autoencoder, "encode_keyframes", lambda *given: encoded.append(1) or encode(*given)
    )
    run(pipeline, [FOX, CAT], num_videos_per_prompt=2, **ENDS, last_frame_strength=0.5)
    assert len(encoded) == 2  # with the last frame and without


# ---- text and experts


def test_guidance_is_off_for_the_expert_whose_scale_is_one(ours: Load) -> None:
    options = {"num_inference_steps": 8, "guidance_scale": 2.0, "guidance_scale_2": 1.0}
    seen = passes(ours("i2v-a14b"), first_frame=FIRST, **options)
    assert [one.expert for one in seen] == [0, 0] * 3 + [1] * 5


def test_keys_and_values_are_computed_once_for_each_expert(
    ours: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, calls = ours("i2v-a14b"), []
    for name in ("transformer", "transformer_2"):
        model = getattr(pipeline, name)

        def counted(
            *args: Any, name: str = name, do: Any = model.prepare_context, **kw: Any
        ) -> Any:
            calls.append((name, kw["num_real_tokens"]))
            return do(*args, **kw)

        monkeypatch.setattr(model, "prepare_context", counted)
    run(pipeline, negative_prompt="a cat", num_inference_steps=8, guidance_scale=2.0)
    texts = [[5], [3]]
    assert calls == [(name, one) for name in ("transformer", "transformer_2") for one in texts]


def test_prompts_are_cleaned_before_they_are_encoded(ours: Load) -> None:
    plain = run(ours("t2v-1.3b"), "a red fox ' jumps")
    messy = run(ours("t2v-1.3b"), "  a red\n fox &amp;#39; jumps ")
    assert torch.equal(messy, plain)
    assert (run(ours("t2v-1.3b"), CAT) - plain).abs().max() > 1e-3


# ---- sizes and refusals


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("t2v-1.3b", (496, 880)),
        ("flf2v-14b", (720, 1280)),
        ("i2v-a14b", (496, 880)),
        ("ti2v-5b", (736, 1312)),
    ],
)
def test_without_a_size_the_checkpoint_s_own_is_used(
    ours: Load, kind: str, expected: tuple[int, int]
) -> None:
    assert ours(kind).size_for("16:9", {}) == expected


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("t2v-1.3b", {"first_frame": FIRST}, "takes no pictures"),
        ("t2v-1.3b", {"keyframes": {4: FIRST}}, "takes no pictures"),
        ("fun-inp", {"guidance_scale_2": 2.0}, "two experts"),
        ("i2v-a14b", {"guidance_scale_2": 0.5}, "guidance_scale_2 must be at least 1.0"),
        ("fun-inp", {"height": 40}, "multiple of 16 pixels, got 40"),
        ("ti2v-5b", {"height": 48}, "multiple of 32 pixels, got 48"),
        ("fun-inp", {"keyframes": {5: FIRST, 6: LAST}}, "5 and 6"),
        ("ti2v-5b", {"keyframes": {5: FIRST, 6: LAST}}, "5 and 6"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused_before_the_first_step(
    ours: Load, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(
            ours(kind),
            callback_on_step_end=lambda *args: pytest.fail("a step ran"),
            **options,
        )


def test_a_transformer_with_other_inputs_is_named(ours: Load) -> None:
    pipeline = PixelDancePipeline(**{**ours("fun-inp").components, "transformer": None})
    from pixeldance.models.transformer import PixelDanceTransformer3DModel

    other = PixelDanceTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=7, num_layers=1
    )
    pipeline.register_modules(transformer=other)
    with pytest.raises(CheckpointError, match=r"takes 7 channels; 4 \(text\) and 12 \(pictures\)"):
        run(pipeline)


# ---- saving


@pytest.mark.parametrize("kind", ["i2v-a14b", "flf2v-14b"])
def test_saving_and_loading_gives_the_same_clip(ours: Load, kind: str, tmp_path: Path) -> None:
    ours(kind).save_pretrained(tmp_path / "copy")
    loaded = PixelDancePipeline.from_pretrained(tmp_path / "copy")
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(loaded, **ENDS), run(ours(kind), **ENDS), rtol=0, atol=1e-4)
