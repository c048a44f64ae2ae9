"""The text encoder in 8 bits: numbers known on paper, its loss measured, and where it is used."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from released_configs import UMT5_XXL, WAN_1_3B
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pixeldance import api
from pixeldance.backbones import memory
from pixeldance.backbones.int8 import Int8Linear, num_bytes, quantize_linears
from pixeldance.backbones.memory import ClipShape, Footprint, estimate, plan_memory, read_configs

GB = 10**9
PROMPTS = torch.randint(3, 100, (4, 20), generator=torch.Generator().manual_seed(1))


def encoder() -> UMT5EncoderModel:
    """As deep and wide as is quick."""
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=100, d_model=256, d_kv=32, d_ff=512, num_layers=4, num_heads=8)
    return UMT5EncoderModel(config).eval()


@torch.no_grad()
def states(model: UMT5EncoderModel) -> Tensor:
    found: Tensor = model(PROMPTS).last_hidden_state
    return found.double()


def relative_error(made: Tensor, exact: Tensor) -> float:
    return float((made - exact).norm() / exact.norm())


def test_a_row_is_integers_and_one_scale() -> None:
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[127.0, -63.4, 0.0], [0.0, 0.0, 0.0]])
    linear.bias.data = torch.tensor([0.5, 0.25])
    small = Int8Linear(linear)
    assert small.weight.tolist() == [[127, -63, 0], [0, 0, 0]]
    assert small.weight.dtype == torch.int8
    # 127 + 2 * -63 + 0.5; a row of zeros stays one.
    assert small(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1.5, 0.25]]


def test_outliers_of_one_row_do_not_touch_the_others() -> None:
    linear = nn.Linear(64, 2, bias=False)
    linear.weight.data[0, 0] = 1000.0
    small = Int8Linear(linear)
    restored = small.weight * small.scale[:, None]
    assert (restored[1] - linear.weight[1]).abs().max() <= linear.weight[1].abs().max() / 254 * 1.01


def test_what_is_lost_of_a_text_encoder() -> None:
    """A random encoder: the loss of 8 bits is about twice that of bfloat16."""
    exact = states(encoder().double())
    small, coarse, both = encoder(), encoder().bfloat16(), encoder().bfloat16()
    quantize_linears(small)
    quantize_linears(both)
    lost = {
        name: relative_error(states(model), exact)
        for name, model in (("bfloat16", coarse), ("int8", small), ("int8, bfloat16", both))
    }
    cosine = nn.functional.cosine_similarity(states(both), exact, dim=-1).min()
    print(  # noqa: T201 - what the documentation says
        *(f"{name}: relative error {error:.4f}" for name, error in lost.items()),
        f"smallest cosine of a token {cosine:.5f}",
        sep="\n",
    )
    assert lost["int8"] < 0.03
    assert lost["int8, bfloat16"] < 3 * lost["bfloat16"]
    assert cosine > 0.999


def test_bytes_are_known_before_anything_is_loaded() -> None:
    model = encoder().bfloat16()
    expected = num_bytes(model, bytes_per_weight=2)
    quantize_linears(model)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) == expected
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_offloading_by_leaves_moves_it() -> None:
    model = encoder()
    quantize_linears(model)
    expected = states(copy.deepcopy(model))
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")
    torch.testing.assert_close(states(model), expected, rtol=0, atol=0)
    hooked = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert all(hasattr(module, "_diffusers_hook") for module in hooked)


# ---- plans

FOOTPRINT = Footprint(
    weights={"text_encoder": 11 * GB, "transformer": 28 * GB, "vae": 1 * GB},
    transformer_blocks=2 * GB,
    step=5 * GB,
    codec=9 * GB,
    codec_tiled=2 * GB,
    clip=ClipShape(480, 832, 81),
    small_text_encoder=6 * GB,
)


def test_the_released_encoder_takes_7_gb_in_place_of_11() -> None:
    configs = {"text_encoder": UMT5_XXL, "transformer": WAN_1_3B, "vae": {}}
    footprint = estimate(configs, ClipShape(480, 832, 81))
    embedding, rest = 256384 * 4096, 24 * (64 * 32 + 2 * 4096) + 4096
    linears = 5_680_910_336 - embedding - rest
    rows = 24 * (4 * 4096 + 2 * 10240 + 4096)
    assert footprint.weights["text_encoder"] == 2 * 5_680_910_336
    assert footprint.small_text_encoder == linears + 2 * (embedding + rest + rows)
    assert footprint.small_text_encoder / 1e9 == pytest.approx(6.74, abs=0.01)
    # So of the small checkpoint one part at a time fits into 8 GB, less the reserve.
    plan = plan_memory(footprint, 8 * GB * memory.RESERVE, 64 * GB)
    assert (plan.offload, plan.has_int8_text, plan.fits) == ("parts", True, True)
    assert "the text encoder is stored in 8 bits (a little precision is lost)" in str(plan)
    assert "about 6.7 GB on the device" in str(plan)
    assert plan.summary == "by parts, tiles, 8-bit text encoder"


@pytest.mark.parametrize(
    ("host", "has_int8_text", "has_fp8", "total"),
    [(40, False, False, 40), (39, True, False, 35), (34, True, True, 21)],
)
def test_main_memory_makes_the_text_encoder_small_first(
    host: int, has_int8_text: bool, has_fp8: bool, total: int
) -> None:
    plan = plan_memory(FOOTPRINT, 10 * GB, host * GB)
    assert plan.offload == "blocks"
    assert (plan.has_int8_text, plan.has_fp8) == (has_int8_text, has_fp8)
    assert (plan.host, plan.fits) == (total * GB, True)


def test_without_a_text_encoder_nothing_is_made_small() -> None:
    alone = replace(FOOTPRINT, weights={"transformer": 28 * GB, "vae": GB}, small_text_encoder=None)
    assert not plan_memory(alone, 10 * GB, 20 * GB).has_int8_text


# ---- a whole checkpoint


def test_a_machine_with_little_memory_loads_it_small_and_says_so(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("fun-inp")
    footprint = estimate(read_configs(folder), ClipShape(480, 832, 81), bytes_per_weight=4)
    room = (footprint.peak("none", has_tiles=True) - 1) / memory.RESERVE
    monkeypatch.setattr(memory.os, "sysconf", lambda name: room if name == "SC_PHYS_PAGES" else 1.0)
    model = api.load(folder, device="cpu", dtype="float32")
    assert model.memory_plan is not None
    assert model.memory_plan.has_int8_text
    attention = model.pipeline.text_encoder.encoder.block[0].layer[0].SelfAttention
    assert isinstance(attention.q, Int8Linear)
    clip = model.generate(
        prompt="a red fox", height=32, width=64, num_frames=5, num_inference_steps=1, seed=1
    )
    assert clip.recipe["model"]["memory"] == "all on the device, tiles, 8-bit text encoder"
