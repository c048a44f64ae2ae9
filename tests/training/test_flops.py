"""Operations of a training step: the closed formula against PyTorch's counter."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import BUCKETS, TEXT_DIM, TEXT_TOKENS, make_codec, make_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pixeldance.errors import CheckpointError
from pixeldance.models.motion import PictureMotion
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training.config import BucketConfig, ModelConfig, RefinerConfig
from pixeldance.training.flops import (
    clip_tokens,
    forward_flops,
    motion_inputs,
    peak_flops,
    peak_of_name,
    refiner_inputs,
    training_flops,
    transformer_config,
)

SMALL = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 20,
    "out_channels": 8,
    "text_dim": 16,
    "freq_dim": 256,
    "ffn_dim": 96,
    "num_layers": 2,
}
PATCHED = SMALL | {"patch_size": (1, 2, 2), "out_channels": None, "freq_dim": 32}
WAN_WIDE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 3,
}
CASES = [
    (SMALL, (3, 4, 6), 7),
    (SMALL, (1, 2, 2), 64),
    (PATCHED, (5, 4, 8), 16),
    (WAN_WIDE, (21, 60, 104), 512),
]


def counted(model_config: dict[str, Any], shape: tuple[int, int, int], text_tokens: int) -> int:
    """The counter sees attention on the meta device only, not on the CPU."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        PixelDanceTransformer3DModel(**model_config)(
            hidden_states=torch.zeros(1, model_config["in_channels"], *shape),
            timestep=torch.zeros(1),
            encoder_hidden_states=torch.zeros(1, text_tokens, model_config["text_dim"]),
        )
    return counter.get_total_flops()


@pytest.mark.parametrize(("model_config", "shape", "text_tokens"), CASES)
def test_the_formula_counts_what_the_counter_counts(
    model_config: dict[str, Any], shape: tuple[int, int, int], text_tokens: int
) -> None:
    tokens = torch.Size(shape).numel() // torch.Size(model_config["patch_size"]).numel()
    expected = counted(model_config, shape, text_tokens)
    assert forward_flops(model_config, tokens, text_tokens) == pytest.approx(expected, rel=1e-5)


def test_a_training_step_of_the_transformer(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec", z_dim=4)
    config = make_config(tmp_path)
    # 48 x 64 x 9 is 3 x 3 x 4 latent cells, one token each; 4 text tokens
    assert clip_tokens(config, BUCKETS[1]) == 36
    expected = counted(transformer_config(config), (3, 3, 4), 4)
    assert training_flops(config, BUCKETS[1]) == pytest.approx(3 * expected, rel=1e-5)
    wider = make_config(tmp_path, model=ModelConfig(num_layers=16))
    assert training_flops(wider, BUCKETS[1]) > 1000 * training_flops(config, BUCKETS[1])


def test_a_run_that_goes_on_from_an_export_has_its_shape(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec", z_dim=4)
    model = PixelDanceTransformer3DModel(**PATCHED)
    model.save_pretrained(tmp_path / "export")
    config = make_config(tmp_path, initial=str(tmp_path / "export"))
    bucket = BucketConfig(height=64, width=64, num_frames=9)
    assert clip_tokens(config, bucket) == 3 * 2 * 2
    assert training_flops(config, bucket) == 3 * forward_flops(PATCHED, 12, 4)
    assert PixelDanceTransformer3DModel(**transformer_config(config)).config.freq_dim == 32


def test_a_training_step_of_the_refiner(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")
    config = make_config(tmp_path, part="refiner")
    bucket = BUCKETS[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ReferenceRefiner((8, 8, 8))(*refiner_inputs(1, 1, bucket.height, bucket.width))
    assert training_flops(config, bucket) == 3 * counter.get_total_flops() > 0
    assert clip_tokens(config, bucket) == 3 * 3 * 3


@contextmanager
def counting_attention() -> Iterator[FlopCounterMode]:
    """The counter does not know the fused attention of CPUs."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def test_a_training_step_of_the_motion(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")
    bucket = BUCKETS[0]
    config = make_config(tmp_path, part="motion")
    model = PictureMotion(text_dim=TEXT_DIM).requires_grad_(False)
    inputs = motion_inputs(1, TEXT_TOKENS, TEXT_DIM, bucket.height, bucket.width)
    with counting_attention() as counter:
        model.chosen(*inputs)
    with counting_attention() as frozen:
        model.reader(inputs[-1])
    trained = counter.get_total_flops() - frozen.get_total_flops()
    assert training_flops(config, bucket) == 3 * trained > 0
    assert clip_tokens(config, bucket) == 2 * 12 * 12


def test_a_training_step_of_the_reader(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")
    with counting_attention() as counter:
        reader = PictureMotion(text_dim=TEXT_DIM).reader.requires_grad_(False)
        reader(torch.zeros(1, TEXT_TOKENS, TEXT_DIM))
    config = make_config(tmp_path, part="reader")
    assert training_flops(config, BUCKETS[0]) == 3 * counter.get_total_flops() > 0
    assert clip_tokens(config, BUCKETS[0]) == TEXT_TOKENS


def test_groups_per_clip_add_to_the_refiners_work_up_to_the_clips_length(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")

    def flops(groups: int) -> int:
        refiner = RefinerConfig(channels=(8, 8, 8), groups_per_clip=groups)
        return training_flops(make_config(tmp_path, part="refiner", refiner=refiner), BUCKETS[0])

    # what is done with the references alone is done once
    assert flops(3) - flops(2) == flops(2) - flops(1) > 0.8 * flops(1)
    assert flops(9) == flops(3)


def test_a_missing_codec_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No model in .*codec'.*save_pretrained"):
        training_flops(make_config(tmp_path), BUCKETS[0])


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("AMD Instinct MI300X", 1300),
    ],
)
def test_peaks_of_known_devices(name: str, tera: float) -> None:
    assert peak_of_name(name) == tera * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_other_devices_have_no_known_peak(name: str) -> None:
    assert peak_of_name(name) is None


def test_the_cpu_has_no_known_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
