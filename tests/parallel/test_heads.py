"""Tensor parallelism: what each process holds, and which numbers of processes can share."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parallel_helpers import count_weights, make_released_alone_then_together
from processes import run_together
from safetensors.torch import save_file
from tiny import seeded, tiny_pipeline
from tiny_wan import write_checkpoint
from torch import nn

from pixeldance.backbones import memory
from pixeldance.errors import InputError
from pixeldance.parallel.heads import share_heads


def mesh_of(degree: int) -> Any:
    return SimpleNamespace(size=lambda: degree)


def test_each_process_holds_half_of_every_large_layer(tmp_path: Path) -> None:
    blocks = tiny_pipeline().transformer.blocks
    attentions = [m for block in blocks for m in (block.attn1, block.attn2)]
    shared = 0
    for block in blocks:
        shared += sum(p.numel() for p in block.ffn.parameters()) - 24  # but the last bias
    for attention in attentions:
        shared += sum(p.numel() for p in attention.parameters()) - 24
    total = sum(parameter.numel() for parameter in blocks.parameters())
    assert run_together(2, count_weights, tmp_path) == [0, 0]
    for rank in range(2):
        counted = json.loads((tmp_path / str(rank)).read_text())
        assert counted == {"weights": total - shared // 2, "fused": False}


@pytest.mark.slow
@pytest.mark.parametrize("has_lora", [False, True])
def test_picture_tokens_and_loras_are_shared_too(tmp_path: Path, has_lora: bool) -> None:
    folder = write_checkpoint(tmp_path / "flf2v", "flf2v-14b")
    loras = []
    if has_lora:
        weights = {}
        for layer in ("attn1.to_q", "attn2.to_k", "attn1.to_out.0"):
            for side, shape in (("A", (2, 24)), ("B", (24, 2))):
                name = f"transformer.blocks.1.{layer}.lora_{side}.weight"
                weights[name] = torch.randn(shape, generator=seeded(len(weights)))
        loras.append(tmp_path / "fox.safetensors")
        save_file(weights, loras[0])
    assert run_together(2, make_released_alone_then_together, folder, "tensor", loras) == [0, 0]


def test_heads_and_channels_must_be_shared_evenly() -> None:
    with pytest.raises(
        InputError,
        match=re.escape(
            "The model has 2 attention heads and 32 feed-forward channels, which 3 processes "
            "cannot share evenly. Start 2 (with guidance: twice that)."
        ),
    ):
        share_heads(tiny_pipeline().transformer, mesh_of(3))


@pytest.mark.parametrize(
    ("heads", "channels", "advice"),
    [
        (40, 13824, "Start 2 or 4 or 8 (with guidance: twice that)."),  # Wan 14B
        (12, 8960, "Start 2 or 4 (with guidance: twice that)."),  # Wan 1.3B
        (3, 32, "Use parallel context."),
    ],
)
def test_numbers_that_can_share_are_named(heads: int, channels: int, advice: str) -> None:
    model: Any = nn.Module()
    model.config = SimpleNamespace(num_attention_heads=heads, ffn_dim=channels)
    with pytest.raises(InputError, match=re.escape(advice)):
        share_heads(model, mesh_of(5))


def test_one_process_keeps_everything() -> None:
    transformer = tiny_pipeline().transformer
    share_heads(transformer, mesh_of(1))
    assert transformer.blocks[0].attn1.heads == 2


def test_memory_is_planned_for_the_part_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "t2v", "t2v-1.3b")
    estimated = memory.estimate(memory.read_configs(folder), memory.ClipShape(480, 832, 81))
    whole = sum(estimated.weights.values()) + max(estimated.step, estimated.codec)
    saved = estimated.weights["transformer"] - estimated.weights["transformer"] // 2

    def plan(parts: int, available: int) -> memory.MemoryPlan:
        device = SimpleNamespace(total_memory=available / memory.RESERVE)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
        return memory.plan_for(folder, "auto", torch.device("cuda"), transformer_parts=parts)

    assert plan(1, whole - saved).offload != "none"
    shared = plan(2, whole - saved)
    assert (shared.offload, shared.peak) == ("none", whole - saved)
    with pytest.raises(InputError, match="Start more processes, or use parallel context"):
        plan(2, whole - 2 * saved)
