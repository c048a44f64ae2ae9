"""The same checkpoint through diffusers' pipelines and through ours gives the same clip."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from tiny import picture, seeded
from tiny_wan import KINDS, TEXT_DIM

from pixeldance.pipeline import PixelDancePipeline

Load = Callable[[str], Any]

HEIGHT, WIDTH = 32, 64
FIRST, LAST = picture(1, WIDTH, HEIGHT), picture(2, WIDTH, HEIGHT)
FIRST_ONLY = ({"image": FIRST}, {"first_frame": FIRST})
BOTH = ({"image": FIRST, "last_image": LAST}, {"first_frame": FIRST, "last_frame": LAST})
# Where diffusers does nothing, or fails, there is nothing to compare with: see test_tricks.py.
CASES = [
    ("t2v-1.3b", ({}, {})),
    ("t2v-a14b", ({}, {})),
    ("i2v-14b", FIRST_ONLY),
    ("flf2v-14b", BOTH),
    ("fun-inp", FIRST_ONLY),
    ("fun-inp", BOTH),
    ("i2v-a14b", FIRST_ONLY),
    ("i2v-a14b", BOTH),
    ("ti2v-5b", FIRST_ONLY),
]


def embeds(num_tokens: int, seed: int) -> torch.Tensor:
    """Token states as the text encoder gives them, padded with zeros."""
    states = torch.randn(1, num_tokens, TEXT_DIM, generator=seeded(seed))
    return torch.nn.functional.pad(states, (0, 0, 0, 512 - num_tokens))


def shared(kind: str, num_frames: int = 9, **options: Any) -> dict[str, Any]:
    """Options that both pipelines take."""
    factor = 16 if KINDS[kind].holds else 8
    shape = (1, KINDS[kind].z_dim, (num_frames - 1) // 4 + 1, HEIGHT // factor, WIDTH // factor)
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": num_frames,
        "num_inference_steps": 8,
        "guidance_scale": 4.0,
        "latents": torch.randn(shape, generator=seeded(0)),
        "prompt_embeds": embeds(7, 1),
        "negative_prompt_embeds": embeds(3, 2),
        "output_type": "latent",
        **options,
    }


@pytest.mark.parametrize(("kind", "pictures"), CASES)
def test_eight_steps_end_at_the_same_latents(
    stock: Load, ours: Load, kind: str, pictures: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    expected = stock(kind)(**shared(kind), **pictures[0]).frames
    made = ours(kind)(**shared(kind), **pictures[1]).frames
    assert expected.std() > 0.5
    assert (made - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("num_frames", [1, 5, 29])
def test_every_legal_length_is_the_same(stock: Load, ours: Load, num_frames: int) -> None:
    options = shared("fun-inp", num_frames, num_inference_steps=2)
    expected = stock("fun-inp")(**options, **FIRST_ONLY[0]).frames
    made = ours("fun-inp")(**options, **FIRST_ONLY[1]).frames
    assert (made - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["i2v-a14b", "ti2v-5b"])
def test_decoded_frames_are_the_same(stock: Load, ours: Load, kind: str) -> None:
    options = shared(kind, 5, output_type="np", num_inference_steps=2)
    expected = stock(kind)(**options, **FIRST_ONLY[0]).frames
    made = ours(kind)(**options, **FIRST_ONLY[1]).frames
    assert expected.shape == (1, 5, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4)


def test_the_second_expert_has_its_own_guidance(stock: Load, ours: Load) -> None:
    options = shared("i2v-a14b", guidance_scale_2=1.5)
    expected = stock("i2v-a14b")(**options, **BOTH[0]).frames
    made = ours("i2v-a14b")(**options, **BOTH[1]).frames
    assert (made - expected).abs().max() <= 1e-4
    without = ours("i2v-a14b")(**shared("i2v-a14b"), **BOTH[1]).frames
    assert (made - without).abs().max() > 1e-2


def test_a_checkpoint_s_own_solver_is_used(stock: Load, ours: Load) -> None:
    made = []
    for pipeline, given in zip((stock("fun-inp"), ours("fun-inp")), FIRST_ONLY, strict=True):
        parts = {**pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0)}
        other = type(pipeline)(**parts)
        other.set_progress_bar_config(disable=True)
        made.append(other(**shared("fun-inp"), **given).frames)
    assert (made[1] - made[0]).abs().max() <= 1e-4
    with_unipc = ours("fun-inp")(**shared("fun-inp"), **FIRST_ONLY[1]).frames
    assert (with_unipc - made[1]).abs().max() > 1e-2


def test_text_alone_on_a_checkpoint_with_a_timestep_for_each_token(stock: Load, ours: Load) -> None:
    i2v = stock("ti2v-5b")
    parts = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    t2v = WanPipeline(**{name: getattr(i2v, name) for name in parts}, expand_timesteps=True)
    t2v.set_progress_bar_config(disable=True)
    expected = t2v(**shared("ti2v-5b")).frames
    made = ours("ti2v-5b")(**shared("ti2v-5b")).frames
    assert (made - expected).abs().max() <= 1e-4


def test_prompts_are_encoded_the_same(
    stock: Load, ours: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What diffusers cleans prompts with is not one of our dependencies; these need no cleaning.
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", lambda text: text)
    prompts = ["a red fox jumps", "", "cat " * 600]
    expected = stock("i2v-14b")._get_t5_prompt_embeds(prompts)
    made = ours("i2v-14b").backbone.encode_prompts(prompts)
    assert made.shape == (3, 512, TEXT_DIM)
    assert (made - expected).abs().max() <= 1e-4
    assert made[1, 0].any(), "an empty prompt has its end token"
    assert not made[1, 1:].any()


@pytest.mark.parametrize(("kind", "pictures"), [CASES[2], CASES[7], CASES[8]])
def test_bfloat16_is_as_close_to_float32_as_diffusers(
    checkpoint: Callable[[str], Path],
    stock: Load,
    kind: str,
    pictures: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    dtypes = {"default": torch.float32, "transformer": torch.bfloat16}
    dtypes["transformer_2"] = torch.bfloat16
    theirs = DiffusionPipeline.from_pretrained(checkpoint(kind), dtype=dtypes)
    mine = PixelDancePipeline.from_pretrained(checkpoint(kind), dtype=dtypes)
    errors = {id(theirs): 0.0, id(mine): 0.0}
    # Over several noises: with weights this few, one clip may go either way.
    for seed in range(4):
        options = shared(kind)
        options["latents"] = torch.randn(options["latents"].shape, generator=seeded(seed))
        expected = stock(kind)(**options, **pictures[0]).frames
        for pipeline, given in zip((theirs, mine), pictures, strict=True):
            assert pipeline.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
            pipeline.set_progress_bar_config(disable=True)
            made = pipeline(**options, **given).frames
            errors[id(pipeline)] += float((made - expected).square().mean())
    loss = 10 * math.log10(errors[id(mine)] / errors[id(theirs)])
    assert loss <= 0.5, "decibels of PSNR"
