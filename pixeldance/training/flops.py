"""Floating-point operations of a training step, and what devices can do at most.

A multiplication and an addition count as two operations. Only what is trained counts: neither the
codec's projection, nor the text encoder, nor a second forward pass by gradient checkpointing, so
that operations per second over the device's peak are the model FLOPs utilisation (MFU).

References:
    Chowdhery et al. 2022, PaLM, appendix B (MFU), https://arxiv.org/abs/2204.02311
"""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixeldance.errors import CheckpointError
from pixeldance.geometry import Size, latent_grid
from pixeldance.models.alignment import GROUP
from pixeldance.models.carrying import FINE, Motion, still
from pixeldance.models.motion import Candidates, PictureMotion, no_candidates
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.training.config import BucketConfig, TrainConfig

BACKWARD_FACTOR = 3
"""A training step takes three times the forward pass: the backward pass needs two of them."""

# Dense bfloat16 operations per second, from the makers' data sheets. The first match counts.
_PEAKS = (
    (r"\bGB200\b", 2500e12),
    (r"\bB200\b", 2250e12),
    (r"\bH200\b", 989e12),
    (r"\bH20\b", 148e12),
    (r"\bH100\b.*\bNVL\b", 835e12),
    (r"\bH100\b.*\bPCIe\b", 756e12),
    (r"\bH100\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bMI300X\b", 1300e12),
)


def transformer_config(config: TrainConfig) -> dict[str, Any]:
    """Arguments of the transformer that a run trains.

    Args:
        config: The run.

    Returns:
        Arguments of ``PixelDanceTransformer3DModel``; those of the exported transformer if the run
        starts from one.
    """
    if config.initial is not None:
        arguments: dict[str, Any] = {
            name: value
            for name, value in _read_config(config.initial).items()
            if not name.startswith("_")
        }
        return arguments
    channels = _read_config(config.codec)["z_dim"]
    shape = config.model
    return {
        "patch_size": (1, 1, 1),
        "num_attention_heads": shape.num_attention_heads,
        "attention_head_dim": shape.attention_head_dim,
        "in_channels": 2 * channels + GROUP,
        "out_channels": channels,
        "text_dim": shape.text_dim,
        "ffn_dim": shape.ffn_dim,
        "num_layers": shape.num_layers,
    }


def latent_shape(config: TrainConfig, bucket: BucketConfig) -> tuple[int, int, int]:
    """Shape of a clip in latent space.

    Args:
        config: The run, for its codec.
        bucket: The clip shape.

    Returns:
        Latent frames, rows and columns.
    """
    codec = _read_config(config.codec)
    return latent_grid(
        bucket.num_frames,
        Size(bucket.height, bucket.width),
        spatial_factor=codec["scale_factor_spatial"],
        temporal_factor=codec["scale_factor_temporal"],
    )


def clip_tokens(config: TrainConfig, bucket: BucketConfig) -> int:
    """How many tokens a clip is: patches, or what the other parts look at.

    The refiner looks at latent cells, the motion at places, the reader at token states.

    Args:
        config: The run.
        bucket: The clip shape.

    Returns:
        Tokens per clip.
    """
    cells = math.prod(latent_shape(config, bucket))
    if config.part == "reader":
        return config.model.text_tokens
    if config.part == "motion":
        return 2 * (bucket.height // FINE) * (bucket.width // FINE)
    if config.part == "refiner":
        return cells
    return cells // math.prod(transformer_config(config)["patch_size"])


def groups_per_clip(config: TrainConfig, bucket: BucketConfig) -> int:
    """How many latent frames of a clip the refiner trains on.

    Args:
        config: The run.
        bucket: The clip shape.

    Returns:
        What the config asks for, at most all.
    """
    return min(config.refiner.groups_per_clip, latent_shape(config, bucket)[0])


def forward_flops(model_config: Mapping[str, Any], tokens: int, text_tokens: int) -> int:
    """Operations of the transformer's forward pass on one clip, in closed form.

    With N tokens, T text tokens, width d and inner width f, a block takes ``8 N d² + 4 N² d`` (self
    attention: four projections, then scores and their use), ``4 N d² + 4 T d² + 4 N T d`` (cross
    attention: queries and output, keys and values, scores and their use) and ``4 N d f``
    (feed-forward). To these come the embeddings of patches, text and time and the output. Norms,
    rotations and activations, a few operations per number, are left out.

    Args:
        model_config: Arguments of ``PixelDanceTransformer3DModel`` without ``image_dim``, or its
            ``config``.
        tokens: N, patches of one clip.
        text_tokens: T, padding included.

    Returns:
        Operations per clip.

    References:
        Kaplan et al. 2020, table 1, https://arxiv.org/abs/2001.08361 (two operations per weight and
        token); Hoffmann et al. 2022, appendix F, https://arxiv.org/abs/2203.15556 (attention).
    """
    width = model_config["num_attention_heads"] * model_config["attention_head_dim"]
    patch = math.prod(model_config["patch_size"])
    outputs = model_config.get("out_channels") or model_config["in_channels"]
    self_attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    cross_attention = 4 * (tokens + text_tokens) * width**2 + 4 * tokens * text_tokens * width
    feed_forward = 4 * tokens * width * model_config["ffn_dim"]
    ends = 2 * tokens * patch * (model_config["in_channels"] + outputs) * width
    text = 2 * text_tokens * (model_config["text_dim"] + width) * width
    # two layers, then the shifts, scales and gates of a block
    time = 2 * (model_config.get("freq_dim", 256) + width + 6 * width) * width
    blocks = model_config["num_layers"] * (self_attention + cross_attention + feed_forward)
    return int(blocks + ends + text + time)


def training_flops(config: TrainConfig, bucket: BucketConfig) -> int:
    """Operations of one clip in a training step: forward and backward.

    Args:
        config: The run.
        bucket: The clip shape.

    Returns:
        Operations per clip.
    """
    if config.part == "refiner":
        groups = groups_per_clip(config, bucket)
        forward = refiner_flops(config.refiner.channels, groups, bucket.height, bucket.width)
    elif config.part == "reader":
        forward = reader_flops(config.model.text_tokens, config.model.text_dim)
    elif config.part == "motion":
        forward = motion_flops(
            config.model.text_tokens, config.model.text_dim, bucket.height, bucket.width
        )
    else:
        forward = forward_flops(
            transformer_config(config), clip_tokens(config, bucket), config.model.text_tokens
        )
    return BACKWARD_FACTOR * forward


@lru_cache
def refiner_flops(channels: tuple[int, int, int], groups: int, height: int, width: int) -> int:
    """Operations of the refiner's forward pass on one clip, counted on the meta device.

    Args:
        channels: Widths of its U-Net.
        groups: Latent frames.
        height: Pixels.
        width: Pixels.

    Returns:
        Operations, without those of the motion between the references, which is not trained with
        the rest.
    """
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        ReferenceRefiner(channels)(*refiner_inputs(1, groups, height, width))
    return int(counter.get_total_flops())


@lru_cache
def motion_flops(text_tokens: int, text_dim: int, height: int, width: int) -> int:
    """Operations of what is trained of the motion in a clip, counted on the meta device.

    What reads the text is not: it has been trained before.

    Args:
        text_tokens: Token states of the text.
        text_dim: Their width.
        height: Pixels.
        width: Pixels.

    Returns:
        Operations per clip.
    """
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        inputs = motion_inputs(1, text_tokens, text_dim, height, width)
        # without gradients: the counter's hooks want a graph behind what requires them
        PictureMotion(text_dim=text_dim).requires_grad_(False).chosen(*inputs, is_mixed=True)
    return int(counter.get_total_flops()) - reader_flops(text_tokens, text_dim)


@lru_cache
def reader_flops(text_tokens: int, text_dim: int) -> int:
    """Operations of reading what a text says about motion, counted on the meta device.

    Args:
        text_tokens: Token states of the text.
        text_dim: Their width.

    Returns:
        Operations per text.
    """
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        reader = PictureMotion(text_dim=text_dim).reader.requires_grad_(False)
        reader(torch.zeros(1, text_tokens, text_dim))
    return int(counter.get_total_flops())


def motion_inputs(
    clips: int, text_tokens: int, text_dim: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, Candidates, torch.Tensor]:
    """Blank inputs of what is trained of the motion, on the default device.

    Args:
        clips: How many clips.
        text_tokens: Token states of each text.
        text_dim: Their width.
        height: Pixels.
        width: Pixels.

    Returns:
        What ``PictureMotion.chosen`` takes.
    """
    pictures = torch.zeros(clips, 2, 3, height, width)
    return (
        pictures,
        torch.ones(clips, 2, dtype=torch.bool),
        no_candidates(pictures),
        torch.zeros(clips, text_tokens, text_dim),
    )


def refiner_inputs(
    clips: int, groups: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Motion]:
    """Blank inputs of the refiner, on the default device; only their shapes matter.

    Args:
        clips: How many clips.
        groups: Latent frames of each.
        height: Pixels.
        width: Pixels.

    Returns:
        What ``ReferenceRefiner.forward`` takes.
    """
    pictures = torch.zeros(clips, 2, 3, height, width)
    return (
        torch.zeros(clips, groups, GROUP, 3, height, width),
        pictures,
        pictures,
        torch.zeros(clips, groups, 2, dtype=torch.int64),
        torch.ones(clips, 2, dtype=torch.bool),
        still(pictures),
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations per second that a device can do at most.

    Args:
        device: Any device.

    Returns:
        The data sheet's number; None if it is not known, or the device is a part of a GPU (MIG).
    """
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """Like :func:`peak_flops`, by the name that the driver gives the device.

    Args:
        name: For example ``NVIDIA H100 80GB HBM3``.

    Returns:
        Operations per second, or None.
    """
    if re.search(r"\bMIG\b", name):
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, name)), None)


def _read_config(folder: str) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"No model in '{folder}': config.json is missing. Name a folder that "
            "save_pretrained has written."
        )
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
