"""Estimates of a run: against real measurements where there are some, else against paper."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import BUCKETS, TEXT_DIM, TEXT_TOKENS, make_codec, make_config
from torch import Tensor

from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training.config import BucketConfig, ModelConfig, OptimizerConfig, TrainConfig
from pixeldance.training.dry_run import activation_bytes, describe_run, run_facts
from pixeldance.training.flops import refiner_inputs, training_flops, transformer_config

BUCKET = BUCKETS[1]
THREE_BLOCKS = ModelConfig(
    num_attention_heads=2,
    attention_head_dim=24,
    num_layers=3,
    ffn_dim=96,
    text_dim=TEXT_DIM,
    text_tokens=TEXT_TOKENS,
)


@pytest.fixture(autouse=True)
def _codec(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")


def saved_bytes(forward: Callable[[], Tensor], *, mixed: bool) -> int:
    """What autograd really keeps for the backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        loss = forward()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def transformer_bytes(config: TrainConfig, clips: int) -> int:
    model = PixelDanceTransformer3DModel(**transformer_config(config))

    def forward() -> Tensor:
        velocity = model(
            hidden_states=torch.randn(clips, 12, 3, 3, 4),
            timestep=torch.rand(clips),
            encoder_hidden_states=torch.randn(clips, TEXT_TOKENS, TEXT_DIM),
            return_dict=False,
        )[0]
        return (velocity.float() - 1).square().mean()

    return saved_bytes(forward, mixed=config.mixed_precision == "bf16")


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_activations_of_the_transformer_are_what_autograd_keeps(
    tmp_path: Path, precision: str
) -> None:
    config = make_config(tmp_path, model=THREE_BLOCKS, mixed_precision=precision)
    per_clip = (transformer_bytes(config, 6) - transformer_bytes(config, 2)) / 4
    assert activation_bytes(config, BUCKET).kept == pytest.approx(per_clip, rel=0.05)


def test_activations_of_the_refiner_are_what_autograd_keeps(tmp_path: Path) -> None:
    config = make_config(tmp_path, part="refiner", mixed_precision="no")
    model = ReferenceRefiner((8, 8, 8))

    def measured(clips: int) -> int:
        def forward() -> Tensor:
            refined, aligned = model(*refiner_inputs(clips, 1, BUCKET.height, BUCKET.width))
            return refined.abs().mean() + aligned.pictures.abs().mean()

        return saved_bytes(forward, mixed=False)

    kept, checkpointed = activation_bytes(config, BUCKET)
    assert kept == checkpointed == pytest.approx((measured(4) - measured(2)) / 2, rel=0.05)


def test_each_block_keeps_as_much_and_checkpointing_only_its_input(tmp_path: Path) -> None:
    found = []
    for layers in (3, 5, 13):
        shape = ModelConfig(num_attention_heads=2, num_layers=layers, ffn_dim=96, text_dim=TEXT_DIM)
        found.append(activation_bytes(make_config(tmp_path, model=shape), BUCKET))
    tokens, width, bf16 = 3 * 3 * 4, 2 * 128, 2
    assert (found[2].kept - found[0].kept) == 5 * (found[1].kept - found[0].kept) > 0
    assert found[2].checkpointed - found[0].checkpointed == 10 * tokens * width * bf16
    assert found[2].checkpointed < found[2].kept / 4


def test_weights_and_optimizer_are_shared_out_by_fsdp2_only(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer=OptimizerConfig(use_muon=False))
    model = PixelDanceTransformer3DModel(**transformer_config(config))
    count = sum(p.numel() for p in model.parameters())
    facts = run_facts(config, num_processes=2)
    assert facts["parameters"] == count
    rows = {(row["strategy"], row["num_gpus"]): row for row in facts["memory"]}
    assert set(rows) == {(s, n) for s in ("ddp", "fsdp2") for n in (1, 2, 8)}
    for (strategy, num_gpus), row in rows.items():
        shards = num_gpus if strategy == "fsdp2" else 1
        for name, each in (("weights", 4), ("gradients", 4), ("averaged_weights", 4)):
            assert row[name] == pytest.approx(each * count / shards, abs=1)
        assert row["optimizer"] == pytest.approx(8 * count / shards, abs=1)
    assert rows["ddp", 1]["in_flight"] == rows["fsdp2", 1]["in_flight"] == 0
    assert rows["ddp", 8]["in_flight"] == 4 * count


def test_muon_remembers_half_as_much(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer=OptimizerConfig(use_muon=True))
    model = PixelDanceTransformer3DModel(**transformer_config(config))
    matrices = sum(p.numel() for n, p in model.named_parameters() if "blocks." in n and p.ndim == 2)
    facts = run_facts(config)
    expected = 8 * facts["parameters"] - 4 * matrices
    assert facts["memory"][0]["optimizer"] == expected


def test_steps_are_means_over_the_buckets_and_time_follows(tmp_path: Path) -> None:
    buckets = (
        BucketConfig(height=48, width=48, num_frames=9, batch_size=4, weight=3.0),
        BucketConfig(height=64, width=64, num_frames=17, batch_size=2, weight=1.0),
    )
    config = make_config(tmp_path, buckets=buckets, max_steps=1000)
    facts = run_facts(config)
    assert facts["clips_per_step"] == 0.75 * 4 + 0.25 * 2
    assert facts["tokens_per_step"] == 0.75 * 4 * 27 + 0.25 * 2 * 80
    one, other = (training_flops(config, bucket) for bucket in buckets)
    assert facts["flops_per_step"] == pytest.approx(3 * one + 0.5 * other)
    alone, eight = facts["time"]
    assert alone["seconds"] == pytest.approx(1000 * facts["flops_per_step"] / (0.4 * 989e12))
    assert eight["seconds"] == pytest.approx(alone["seconds"] / 8)
    assert alone["tokens_per_s"] * alone["seconds"] == pytest.approx(
        1000 * facts["tokens_per_step"]
    )
    json.dumps(facts)


def test_activations_count_the_clips_that_one_gpu_holds_at_a_time(tmp_path: Path) -> None:
    bucket = BucketConfig(height=48, width=48, num_frames=9, batch_size=10)
    for accumulation, expected in ((1, {1: 10, 4: 3, 8: 2}), (4, {1: 3, 4: 1, 8: 1})):
        config = make_config(tmp_path, buckets=(bucket,), gradient_accumulation_steps=accumulation)
        per_clip = activation_bytes(config, bucket).kept
        for row in run_facts(config, num_processes=4)["memory"]:
            assert row["activations"] == expected[row["num_gpus"]] * per_clip


def test_a_large_model_is_described_without_being_built(tmp_path: Path) -> None:
    shape = ModelConfig(num_attention_heads=40, num_layers=4, ffn_dim=13824, text_dim=4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = run_facts(make_config(tmp_path, model=shape))
    assert facts["parameters"] > 1.4e9
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kib < facts["parameters"] / 1024  # a real one takes four bytes for each


@pytest.mark.parametrize("part", ["transformer", "refiner"])
def test_the_description_names_what_matters(tmp_path: Path, part: str) -> None:
    text = describe_run(make_config(tmp_path, part=part), num_processes=2)
    for wanted in (part, "48x48x9", "64x48x9", "TFLOP", "1 x H100", "8 x H100", "2 x ddp"):
        assert wanted in text
    assert ("fsdp2" in text) == (part == "transformer")
