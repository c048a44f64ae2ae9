"""Estimates are checked on paper: the released configurations, and sums done by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from released_configs import UMT5_XXL, WAN_1_3B
from tiny import picture, seeded

from pixeldance.backbones import memory
from pixeldance.backbones.memory import (
    ClipShape,
    Footprint,
    apply_plan,
    codec_bytes,
    estimate,
    parameter_count,
    plan_for,
    plan_memory,
    read_configs,
    step_bytes,
)
from pixeldance.errors import CheckpointError
from pixeldance.pipeline import PixelDancePipeline

WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
VAE = {"base_dim": 96, "z_dim": 16}
CLIP_480P = ClipShape(480, 832, 81)
GB = 10**9


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("transformer", WAN_1_3B, 1_418_996_800),
        ("transformer", {**WAN_14B, "in_channels": 36, "out_channels": 16}, 14_288_901_184),
        ("text_encoder", UMT5_XXL, 5_680_910_336),
        ("vae", VAE, 126_892_531),
    ],
)
def test_parameters_of_released_configurations(
    name: str, config: dict[str, Any], count: int
) -> None:
    assert parameter_count(name, config) == count


def test_a_step_grows_with_tokens_and_widths() -> None:
    # 21 latent frames of 30 x 52 tokens; 5120 wide, 13824 inside.
    tokens = 21 * 30 * 52
    assert step_bytes(WAN_14B, VAE, CLIP_480P) == tokens * (5120 * 20 + 13824 * 4)
    assert step_bytes(WAN_14B, {"scale_factor_spatial": 16}, CLIP_480P) == (
        21 * 15 * 26 * (5120 * 20 + 13824 * 4)
    )


def test_tiles_bound_what_coding_takes() -> None:
    video = 2 * 3 * 4 * 81 * 480 * 832
    assert codec_bytes(VAE, CLIP_480P, tiled=False) == 11 * 96 * 16 * 480 * 832 + video
    assert codec_bytes(VAE, CLIP_480P, tiled=True) == 11 * 96 * 16 * 256 * 256 + video


FOOTPRINT = Footprint(
    weights={"text_encoder": 11 * GB, "transformer": 28 * GB, "vae": 1 * GB},
    transformer_blocks=2 * GB,
    step=5 * GB,
    codec=9 * GB,
    codec_tiled=2 * GB,
    clip=CLIP_480P,
)


@pytest.mark.parametrize(
    ("budget", "offload", "has_tiles", "peak", "fits"),
    [
        (49, "none", False, 49, True),  # 11 + 28 + 1, and 9 to decode
        (48, "parts", False, 33, True),  # 28 + 5
        (32, "blocks", True, 8, True),  # 1 + 2 + 5
        (7, "blocks", True, 8, False),
    ],
)
def test_the_fastest_plan_that_fits_is_taken(
    budget: int, offload: str, has_tiles: bool, peak: int, fits: bool
) -> None:
    plan = plan_memory(FOOTPRINT, budget * GB, 64 * GB)
    assert (plan.offload, plan.has_tiles, plan.peak) == (offload, has_tiles, peak * GB)
    assert (plan.fits, plan.has_fp8, plan.host) == (fits, False, 40 * GB)
    assert f"about {peak}.0 GB on the device and 40 GB of main memory at 832x480" in str(plan)
    assert ("does not fit" in str(plan)) is not fits


def test_tiles_before_blocks() -> None:
    small = replace(FOOTPRINT, weights={"transformer": 3 * GB, "vae": 1 * GB}, step=1 * GB)
    plan = plan_memory(small, 5 * GB, 64 * GB)
    assert (plan.offload, plan.has_tiles, plan.peak) == ("parts", True, 4 * GB)


def test_eight_bits_only_where_main_memory_is_too_small() -> None:
    plan = plan_memory(FOOTPRINT, 24 * GB, 30 * GB)
    assert (plan.has_fp8, plan.host, plan.fits) == (True, 26 * GB, True)
    assert "8 bits (some quality is lost)" in str(plan)


def test_an_estimate_is_made_of_configurations_alone(
    checkpoint: Callable[[str], Path], ours: Callable[[str], PixelDancePipeline]
) -> None:
    configs = read_configs(checkpoint("flf2v-14b"))
    footprint = estimate(configs, CLIP_480P, bytes_per_weight=4)
    for name in ("text_encoder", "image_encoder", "transformer", "vae"):
        parameters = getattr(ours("flf2v-14b"), name).parameters()
        assert footprint.weights[name] == 4 * sum(one.numel() for one in parameters)


def test_too_large_for_a_machine_without_accelerator(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cpu = checkpoint("fun-inp"), torch.device("cpu")
    assert plan_for(folder, "auto", cpu).offload == "none"
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 200)
    with pytest.raises(CheckpointError, match="this machine has 0 GB of memory and no accelerator"):
        plan_for(folder, "auto", cpu)


@pytest.mark.parametrize("offload", ["parts", "blocks"])
def test_a_plan_does_not_change_the_clip(
    checkpoint: Callable[[str], Path],
    ours: Callable[[str], PixelDancePipeline],
    offload: Any,
) -> None:
    options: dict[str, Any] = {
        "first_frame": picture(1, 64, 32),
        "height": 32,
        "width": 64,
        "num_frames": 5,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    expected = ours("i2v-a14b")("a red fox", **options, generator=seeded(0)).frames
    pipeline = PixelDancePipeline.from_pretrained(checkpoint("i2v-a14b"))
    pipeline.set_progress_bar_config(disable=True)
    plan = plan_memory(FOOTPRINT, 49 * GB, 64 * GB)
    apply_plan(pipeline, replace(plan, offload=offload), torch.device("cpu"))
    made = pipeline("a red fox", **options, generator=seeded(0)).frames
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_eight_bits_stay_near(
    checkpoint: Callable[[str], Path], ours: Callable[[str], PixelDancePipeline]
) -> None:
    options: dict[str, Any] = {
        "height": 32,
        "width": 64,
        "num_frames": 5,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    expected = ours("t2v-1.3b")("a red fox", **options, generator=seeded(0)).frames
    pipeline = PixelDancePipeline.from_pretrained(checkpoint("t2v-1.3b"))
    pipeline.set_progress_bar_config(disable=True)
    plan = plan_memory(FOOTPRINT, 49 * GB, 64 * GB)
    apply_plan(pipeline, replace(plan, has_fp8=True, has_tiles=True), torch.device("cpu"))
    stored = pipeline.transformer.blocks[0].attn1.to_q.weight.dtype
    assert stored == torch.float8_e4m3fn
    made = pipeline("a red fox", **options, generator=seeded(0)).frames
    difference = (made - expected).abs().max()
    assert 1e-4 < difference < 1.0
