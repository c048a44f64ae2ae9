"""A training run that takes a second: made-up pictures, made-up text features, few weights."""

import warnings
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from tiny_world import make_assets
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from pixeldance.models.codec import LinearVideoCodec
from pixeldance.training.config import (
    BucketConfig,
    ModelConfig,
    OptimizerConfig,
    RefinerConfig,
    TrainConfig,
)
from pixeldance.training.data import stable_hash

TEXT_DIM, TEXT_TOKENS = 8, 4
BUCKETS = (
    BucketConfig(height=48, width=48, num_frames=9, batch_size=3),
    BucketConfig(height=48, width=64, num_frames=9, batch_size=2),
)


def make_codec(folder: Path, z_dim: int = 4) -> LinearVideoCodec:
    """Write a bare orthonormal projection, as training starts from; returns it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = LinearVideoCodec(
            z_dim=z_dim, latents_std=[3.0] * z_dim, refiner_channels=None, text_dim=TEXT_DIM
        )
        codec.components.data.copy_(torch.linalg.qr(torch.randn(codec.components.shape))[0])
        codec.patch_mean.data.normal_(std=0.1)
    codec.save_pretrained(folder)
    return codec


def make_config(folder: Path, **changes: object) -> TrainConfig:
    """A run in ``folder`` that renders in this process and compiles nothing."""
    values: dict[str, object] = {
        "codec": str(folder / "codec"),
        "output_dir": str(folder / "run"),
        "max_steps": 6,
        "buckets": BUCKETS,
        "model": ModelConfig(
            num_attention_heads=1,
            attention_head_dim=12,
            num_layers=2,
            ffn_dim=16,
            text_dim=TEXT_DIM,
            text_tokens=TEXT_TOKENS,
        ),
        "refiner": RefinerConfig(channels=(8, 8, 8), groups_per_clip=1),
        "optimizer": OptimizerConfig(learning_rate=0.01, warmup_steps=2),
        "num_workers": 0,
        "compile_blocks": False,
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def use_made_up_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the fetched pictures nor the text encoder are opened."""
    monkeypatch.setattr("pixeldance.worlds.stickers.load_assets", make_assets)
    monkeypatch.setattr("pixeldance.training.data.load_text_encoder", lambda: (None, None))
    monkeypatch.setattr("pixeldance.training.data.encode_prompts", made_up_embeds)


def made_up_embeds(
    tokenizer: None, text_encoder: None, prompts: list[str], *, max_sequence_length: int
) -> tuple[Tensor, Tensor]:
    """Features that depend on the whole text; zeros for none, as the real encoder does."""
    embeds = torch.zeros(len(prompts), max_sequence_length, TEXT_DIM)
    for row, prompt in enumerate(prompts):
        if prompt:
            generator = torch.Generator().manual_seed(stable_hash(prompt))
            embeds[row] = torch.randn(embeds.shape[1:], generator=generator)
    return embeds, embeds.any(-1)


def saved_tensors(output_dir: str | Path, step: int, group: str) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint: those of its model, ema or optimizer."""
    reader = FileSystemReader(Path(output_dir) / f"step-{step:07d}")
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(f"{group}.")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(f"{group}."): value for name, value in tensors.items()}


def forget_accelerate() -> None:
    """Let the next run in this process have another precision."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
