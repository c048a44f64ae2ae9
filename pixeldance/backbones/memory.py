"""How a large checkpoint fits into the memory there is: an estimate on paper, then a plan.

Weights are counted exactly, from the configurations alone. What computing takes on top is a model
of the largest tensors that are alive at once (see ``step_bytes`` and ``codec_bytes``); real peaks
are within some tens of per cent of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from pixeldance.backbones.int8 import num_bytes
from pixeldance.backbones.options import MEMORY_BUDGETS, MEMORY_CHOICES
from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

RESERVE = 0.9
"""Share of a device that can be planned with; the rest goes to its driver and to fragments."""

_FLOAT32_PARTS = ("vae", "image_encoder")
_TILE = 256
Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of every component with weights, by name."""


Offload = Literal["none", "parts", "blocks"]


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
        small_text_encoder: Of the text encoder with its linear layers in 8 bits; None without one.
    """

    weights: dict[str, int]
    transformer_blocks: int
    step: int
    codec: int
    codec_tiled: int
    clip: ClipShape
    small_text_encoder: int | None = None

    @property
    def total(self) -> int:
        """Of all weights."""
        return sum(self.weights.values())

    @property
    def with_small_text_encoder(self) -> "Footprint":
        """The same with the text encoder in 8 bits, where there is one."""
        if self.small_text_encoder is None:
            return self
        return replace(self, weights={**self.weights, "text_encoder": self.small_text_encoder})

    def peak(self, offload: Offload, *, has_tiles: bool) -> int:
        """Bytes that the device must have.

        Args:
            offload: See ``MemoryPlan``.
            has_tiles: Whether video is coded in tiles.

        Returns:
            The most that is there at one time.
        """
        weights = self.weights
        codec = self.codec_tiled if has_tiles else self.codec
        if offload == "none":
            return self.total + max(self.step, codec)
        if offload == "parts":
            largest = max(size for name, size in weights.items() if name != "vae")
            at_work = max(weights.get("transformer_2", 0), weights["transformer"]) + self.step
            return max(largest, at_work, weights["vae"] + codec)
        fixed = weights["vae"] + weights.get("image_encoder", 0)
        return max(fixed + self.transformer_blocks + self.step, fixed + codec)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How the parts share the memory of a device.

    Attributes:
        offload: ``none``: all parts stay on the device; ``parts``: one comes at a time;
            ``blocks``: transformers and text encoder come block by block.
        has_tiles: Whether video is encoded and decoded in tiles.
        has_fp8: Whether transformers are stored in 8 bits, which costs some quality.
        has_int8_text: Whether the text encoder's linear layers are, which costs a little.
        peak: Estimated peak on the device, bytes; 0 without an accelerator.
        host: Estimated main memory, bytes.
        fits: Whether the peak is within what there is.
        clip: What the estimate is for.
    """

    offload: Offload
    has_tiles: bool
    has_fp8: bool
    has_int8_text: bool
    peak: int
    host: int
    fits: bool
    clip: ClipShape

    @property
    def summary(self) -> str:
        """What is done, in the fewest words: what recipes say."""
        done = {"none": "all on the device", "parts": "by parts", "blocks": "by blocks"}
        words = [done[self.offload]]
        words += ["tiles"] * self.has_tiles + ["8-bit text encoder"] * self.has_int8_text
        words += ["8-bit transformer"] * self.has_fp8
        return ", ".join(words)

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
        if self.has_int8_text:
            done.append("the text encoder is stored in 8 bits (a little precision is lost)")
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
    return sum(parameter.numel() for parameter in _without_weights(name, config).parameters())


def _without_weights(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A component on the meta device."""
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
    return model


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
    small = None
    if "text_encoder" in configs:
        text_encoder = _without_weights("text_encoder", configs["text_encoder"])
        small = num_bytes(text_encoder, bytes_per_weight=bytes_per_weight)
    return Footprint(
        weights=weights,
        transformer_blocks=2 * weights["transformer"] // int(transformer["num_layers"]),
        step=step_bytes(transformer, vae, clip) * bytes_per_weight // 2,
        codec=codec_bytes(vae, clip, tiled=False),
        codec_tiled=codec_bytes(vae, clip, tiled=True),
        clip=clip,
        small_text_encoder=small,
    )


def plan_memory(footprint: Footprint, budget: float, host_budget: float) -> MemoryPlan:
    """The fastest way to fit.

    Args:
        footprint: What there is to fit.
        budget: Bytes of the device.
        host_budget: Bytes of main memory.

    Returns:
        The first of these plans that fits, else the last: all on the device; one part at a time;
        also coding in tiles; also the text encoder in 8 bits; block by block. Where main memory
        cannot hold the parts that wait there, the text encoder is stored in 8 bits, and if that
        is not enough, transformers are as well.
    """
    small = footprint.with_small_text_encoder
    rungs: list[tuple[Offload, bool, Footprint]] = [
        ("none", False, footprint),
        ("parts", False, footprint),
        ("parts", True, footprint),
        ("parts", True, small),
        ("blocks", True, footprint),
    ]
    offload, has_tiles, chosen = next(
        (rung for rung in rungs if rung[2].peak(rung[0], has_tiles=rung[1]) <= budget), rungs[-1]
    )
    is_waiting = offload != "none"
    if is_waiting and chosen.total > host_budget:
        chosen = small
    has_fp8 = is_waiting and chosen.total > host_budget
    peak, host = chosen.peak(offload, has_tiles=has_tiles), chosen.total
    if has_fp8:
        transformers = [name for name in chosen.weights if name.startswith("transformer")]
        host -= sum(chosen.weights[name] for name in transformers) // 2
    return MemoryPlan(
        offload=offload,
        has_tiles=has_tiles,
        has_fp8=has_fp8,
        has_int8_text=chosen != footprint,
        peak=peak,
        host=host,
        fits=peak <= budget and host <= host_budget,
        clip=footprint.clip,
    )


def plan_for(
    folder: str | Path,
    memory: str,
    device: torch.device,
    *,
    bytes_per_weight: int = 2,
    transformer_parts: int = 1,
) -> MemoryPlan:
    """Plan the memory of a checkpoint for a clip of the size it was trained at.

    Args:
        folder: Folder of a Wan checkpoint.
        memory: ``auto`` (what the device has), ``24gb``, ``12gb`` or ``8gb``.
        device: Where it will run.
        bytes_per_weight: Of transformers and text encoder.
        transformer_parts: Processes that share the weights of each transformer.

    Returns:
        The plan.

    Raises:
        InputError: If ``memory`` is unknown, or is a budget for a machine without accelerator; or
            if weights are shared, and the parts do not stay on their devices.
        CheckpointError: If there is no accelerator, and main memory is too small.
    """
    if memory not in MEMORY_CHOICES:
        raise InputError(f"memory must be one of {', '.join(MEMORY_CHOICES)}, got {memory!r}.")
    configs = read_configs(folder)
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    is_large = float(scheduler.get("flow_shift") or 3.0) > 3.0
    clip = ClipShape(720, 1280, 81) if is_large else ClipShape(480, 832, 81)
    footprint = estimate(configs, clip, bytes_per_weight=bytes_per_weight)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * RESERVE
    if device.type != "cpu":
        available = torch.cuda.get_device_properties(device).total_memory
        budget = MEMORY_BUDGETS.get(memory, available) * RESERVE
        if transformer_parts > 1:
            return _plan_shared(footprint, budget, host, transformer_parts)
        return plan_memory(footprint, budget, host)
    if memory != "auto":
        raise InputError(
            f"memory {memory} is a budget for an accelerator, and this runs on the CPU. "
            "Leave memory out."
        )
    return _plan_main_memory(footprint, host)


def _plan_shared(footprint: Footprint, budget: float, host: float, parts: int) -> MemoryPlan:
    """The plan where every process keeps its part of the transformers on its device."""
    weights = {
        name: size // parts if name.startswith("transformer") else size
        for name, size in footprint.weights.items()
    }
    plan = plan_memory(replace(footprint, weights=weights), budget, host)
    if plan.offload != "none":
        needed = sum(weights.values()) + max(footprint.step, footprint.codec)
        raise InputError(
            f"parallel tensor keeps the weights on {parts} devices, each of which needs about "
            f"{needed / 1e9:.0f} GB and may use {budget / 1e9:.0f} GB. Start more processes, or "
            "use parallel context, which can offload."
        )
    return plan


def _plan_main_memory(footprint: Footprint, host: float) -> MemoryPlan:
    """The plan of a machine without accelerator: all at once; what must be small is."""
    small = footprint.with_small_text_encoder
    if small.total > host:
        raise CheckpointError(
            f"This checkpoint has {footprint.total / 1e9:.0f} GB of weights, this machine has "
            f"{host / RESERVE / 1e9:.0f} GB of memory and no accelerator. Use a GPU, or a smaller "
            "checkpoint."
        )
    rungs = [(footprint, False), (footprint, True), (small, True)]
    chosen, has_tiles = next(
        (rung for rung in rungs if rung[0].peak("none", has_tiles=rung[1]) <= host), rungs[-1]
    )
    needed = chosen.peak("none", has_tiles=has_tiles)
    return MemoryPlan(
        offload="none",
        has_tiles=has_tiles,
        has_fp8=False,
        has_int8_text=chosen != footprint,
        peak=0,
        host=needed,
        fits=needed <= host,
        clip=footprint.clip,
    )


def apply_plan(pipeline: DiffusionPipeline, plan: MemoryPlan, device: torch.device) -> None:
    """Put the parts of a pipeline where a plan wants them.

    Args:
        pipeline: A pipeline on the CPU, loaded as the plan wants it: with the text encoder in 8
            bits where it says so, see ``load_small_text_encoder``.
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
