"""How a large checkpoint fits into the memory there is: an estimate on paper, then a plan.

Weights are counted exactly, from the configurations alone. What computing takes on top is a model
of the largest tensors that are alive at once (see ``step_bytes`` and ``codec_bytes``); real peaks
are within some tens of per cent of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

BUDGETS = {"24gb": 24e9, "12gb": 12e9, "8gb": 8e9}
CHOICES = ("auto", *BUDGETS)
RESERVE = 0.9
"""Share of a device that can be planned with; the rest goes to its driver and to fragments."""

_FLOAT32_PARTS = ("vae", "image_encoder")
_TILE = 256
Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of every component with weights, by name."""


class ClipShape(NamedTuple):
    """What an estimate is for."""

    height: int
    width: int
    num_frames: int

    def __str__(self) -> str:
        """Width first, as people say it."""
        return f"{self.width}x{self.height}, {self.num_frames} frames"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a checkpoint takes for one clip.

    Attributes:
        weights: Of every component.
        transformer_blocks: Of two blocks of a transformer: the one at work and the next one.
        step: Of a forward pass of the transformer beside its weights.
        codec: Of encoding or decoding beside the weights, in one piece.
        codec_tiled: The same in tiles.
        clip: What the estimate is for.
    """

    weights: dict[str, int]
    transformer_blocks: int
    step: int
    codec: int
    codec_tiled: int
    clip: ClipShape


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How the parts share the memory of a device.

    Attributes:
        offload: ``none``: all parts stay on the device; ``parts``: one comes at a time;
            ``blocks``: transformers and text encoder come block by block.
        has_tiles: Whether video is encoded and decoded in tiles.
        has_fp8: Whether transformers are stored in 8 bits; this alone costs some quality.
        peak: Estimated peak on the device, bytes; 0 without an accelerator.
        host: Estimated main memory, bytes.
        fits: Whether the peak is within what there is.
        clip: What the estimate is for.
    """

    offload: Literal["none", "parts", "blocks"]
    has_tiles: bool
    has_fp8: bool
    peak: int
    host: int
    fits: bool
    clip: ClipShape

    def __str__(self) -> str:
        """What will be done, in one sentence, with the estimate."""
        where = {
            "none": "all parts stay on the device",
            "parts": "parts come to the device one at a time",
            "blocks": "transformer and text encoder come to the device block by block",
        }
        done = [where[self.offload]]
        if self.has_tiles:
            done.append("video is coded in tiles")
        if self.has_fp8:
            done.append("the transformer is stored in 8 bits (some quality is lost)")
        verdict = "" if self.fits else "; this does not fit: ask for fewer frames or pixels"
        on_device = f"{self.peak / 1e9:.1f} GB on the device and " if self.peak else ""
        return (
            f"{', '.join(done)}; about {on_device}{self.host / 1e9:.0f} GB of main memory at "
            f"{self.clip}{verdict}."
        )


def read_configs(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Configurations of the components of a checkpoint.

    Args:
        folder: Folder with ``model_index.json``.

    Returns:
        Those with weights, by name.
    """
    names = ("text_encoder", "image_encoder", "transformer", "transformer_2", "vae")
    paths = {name: Path(folder) / name / "config.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.is_file()
    }


def parameter_count(name: str, config: Mapping[str, Any]) -> int:
    """Parameters of a component, exactly, without its weights.

    Args:
        name: Name of the component.
        config: Its configuration.

    Returns:
        Number of parameters.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model: nn.Module
        if name == "text_encoder":
            model = UMT5EncoderModel(UMT5Config(**config))
        elif name == "image_encoder":
            model = CLIPVisionModel(CLIPVisionConfig(**config))
        elif name == "vae":
            model = AutoencoderKLWan.from_config(dict(config))
        else:
            model = PixelDanceTransformer3DModel.from_config(dict(config))
        return sum(parameter.numel() for parameter in model.parameters())


def step_bytes(transformer: Mapping[str, Any], vae: Mapping[str, Any], clip: ClipShape) -> int:
    """What a forward pass takes beside the weights, in bfloat16.

    For each token: the residual stream, its norm, queries, keys, values and attention's result
    (2 bytes each), two float32 intermediates, and the inner layer of the feed-forward net twice.
    """
    temporal, height, width = transformer.get("patch_size", (1, 2, 2))
    latent_frames = (clip.num_frames - 1) // 4 + 1
    side = int(vae.get("scale_factor_spatial", 8))
    tokens = (latent_frames // temporal) * (clip.height // side // height)
    tokens *= clip.width // side // width
    dim = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    return int(tokens * (dim * (6 * 2 + 2 * 4) + transformer["ffn_dim"] * 2 * 2))


def codec_bytes(vae: Mapping[str, Any], clip: ClipShape, *, tiled: bool) -> int:
    """What coding takes beside the weights, in float32.

    At full resolution the decoder holds about eleven times its ``base_dim`` channels of four
    frames: inputs, outputs and padded copies of a convolution, and the frames that causal
    convolutions remember. The video itself is held twice.
    """
    base = int(vae.get("decoder_base_dim") or vae.get("base_dim", 96))
    patch = int(vae.get("patch_size") or 1)
    pixels = clip.height * clip.width
    worked_on = min(pixels, _TILE * _TILE) if tiled else pixels
    video = 2 * 3 * 4 * clip.num_frames * pixels
    return int(11 * base * 4 * 4 * worked_on / patch**2 + video)


def estimate(configs: Configs, clip: ClipShape, *, bytes_per_weight: int = 2) -> Footprint:
    """Bytes that a checkpoint takes for one clip; a pure function of the configurations.

    Args:
        configs: See ``read_configs``.
        clip: The clip.
        bytes_per_weight: Of transformers and text encoder; 2 in bfloat16.

    Returns:
        The footprint. Other parts are in float32.
    """
    counts = {name: parameter_count(name, config) for name, config in configs.items()}
    weights = {
        name: count * (4 if name in _FLOAT32_PARTS else bytes_per_weight)
        for name, count in counts.items()
    }
    transformer, vae = configs["transformer"], configs["vae"]
    return Footprint(
        weights=weights,
        transformer_blocks=2 * weights["transformer"] // int(transformer["num_layers"]),
        step=step_bytes(transformer, vae, clip) * bytes_per_weight // 2,
        codec=codec_bytes(vae, clip, tiled=False),
        codec_tiled=codec_bytes(vae, clip, tiled=True),
        clip=clip,
    )


def plan_memory(footprint: Footprint, budget: float, host_budget: float) -> MemoryPlan:
    """The fastest way to fit; what changes the result only if nothing else does.

    Args:
        footprint: What there is to fit.
        budget: Bytes of the device.
        host_budget: Bytes of main memory.

    Returns:
        The first of these plans that fits, else the last: all on the device, one part at a time,
        also coding in tiles, block by block. Where main memory cannot hold the parts that wait
        there, transformers are stored in 8 bits.
    """
    weights = footprint.weights
    total = sum(weights.values())
    fixed = weights["vae"] + weights.get("image_encoder", 0)
    largest = max(size for name, size in weights.items() if name != "vae")
    at_work = max(weights.get("transformer_2", 0), weights["transformer"]) + footprint.step
    by_part = max(largest, at_work)
    by_block = fixed + footprint.transformer_blocks + footprint.step
    rungs: list[tuple[Literal["none", "parts", "blocks"], bool, int]] = [
        ("none", False, total + max(footprint.step, footprint.codec)),
        ("parts", False, max(by_part, weights["vae"] + footprint.codec)),
        ("parts", True, max(by_part, weights["vae"] + footprint.codec_tiled)),
        ("blocks", True, max(by_block, fixed + footprint.codec_tiled)),
    ]
    offload, has_tiles, peak = next((rung for rung in rungs if rung[2] <= budget), rungs[-1])
    has_fp8 = offload != "none" and total > host_budget
    host = total
    if has_fp8:
        host -= sum(size for name, size in weights.items() if name.startswith("transformer")) // 2
    return MemoryPlan(
        offload=offload,
        has_tiles=has_tiles,
        has_fp8=has_fp8,
        peak=peak,
        host=host,
        fits=peak <= budget and host <= host_budget,
        clip=footprint.clip,
    )


def plan_for(
    folder: str | Path, memory: str, device: torch.device, *, bytes_per_weight: int = 2
) -> MemoryPlan:
    """Plan the memory of a checkpoint for a clip of the size it was trained at.

    Args:
        folder: Folder of a Wan checkpoint.
        memory: ``auto`` (what the device has), ``24gb``, ``12gb`` or ``8gb``.
        device: Where it will run.
        bytes_per_weight: Of transformers and text encoder.

    Returns:
        The plan.

    Raises:
        InputError: If ``memory`` is unknown, or is a budget for a machine without accelerator.
        CheckpointError: If there is no accelerator, and main memory is too small.
    """
    if memory not in CHOICES:
        raise InputError(f"memory must be one of {', '.join(CHOICES)}, got {memory!r}.")
    configs = read_configs(folder)
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    is_large = float(scheduler.get("flow_shift") or 3.0) > 3.0
    clip = ClipShape(720, 1280, 81) if is_large else ClipShape(480, 832, 81)
    footprint = estimate(configs, clip, bytes_per_weight=bytes_per_weight)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * RESERVE
    if device.type != "cpu":
        available = torch.cuda.get_device_properties(device).total_memory
        return plan_memory(footprint, BUDGETS.get(memory, available) * RESERVE, host)
    if memory != "auto":
        raise InputError(
            f"memory {memory} is a budget for an accelerator, and this runs on the CPU. "
            "Leave memory out."
        )
    return _plan_main_memory(footprint, host)


def _plan_main_memory(footprint: Footprint, host: float) -> MemoryPlan:
    """The plan of a machine without accelerator: all at once, in tiles if it must be."""
    weights = sum(footprint.weights.values())
    if weights > host:
        raise CheckpointError(
            f"This checkpoint has {weights / 1e9:.0f} GB of weights, this machine has "
            f"{host / RESERVE / 1e9:.0f} GB of memory and no accelerator. Use a GPU, or a smaller "
            "checkpoint."
        )
    whole = weights + max(footprint.step, footprint.codec)
    tiled = weights + max(footprint.step, footprint.codec_tiled)
    needed = whole if whole <= host else tiled
    return MemoryPlan(
        offload="none",
        has_tiles=whole > host,
        has_fp8=False,
        peak=0,
        host=needed,
        fits=needed <= host,
        clip=footprint.clip,
    )


def apply_plan(pipeline: DiffusionPipeline, plan: MemoryPlan, device: torch.device) -> None:
    """Put the parts of a pipeline where a plan wants them.

    Args:
        pipeline: A pipeline on the CPU.
        plan: The plan.
        device: The device to compute on.
    """
    if plan.has_tiles:
        pipeline.vae.enable_tiling()
    transformers = [
        model for model in (pipeline.transformer, pipeline.transformer_2) if model is not None
    ]
    if plan.has_fp8:
        for model in transformers:
            model.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype
            )
    if plan.offload == "none":
        pipeline.to(device)
    elif plan.offload == "parts":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        # Streams load the next block while one computes.
        uses_streams = device.type == "cuda"
        for model in transformers:
            model.enable_group_offload(
                onload_device=device,
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=uses_streams,
            )
        if pipeline.text_encoder is not None:
            apply_group_offloading(
                pipeline.text_encoder, onload_device=device, offload_type="leaf_level"
            )
        for model in (pipeline.vae, pipeline.image_encoder):
            if model is not None:
                model.to(device)
