"""What a run will need, before it is started: operations, memory and time.

Nothing is allocated: models are built from fake tensors, which have a shape and no content.

Memory of one GPU, in bytes, for P parameters on n GPUs:

* weights, gradients and averaged weights: 4 P each; AdamW keeps 8 for each of its parameters, Muon
  4. Under FSDP2 each GPU has the n-th part of these.
* DDP on several GPUs: 4 P more for the buffers in which gradients travel.
* FSDP2: 4 for each parameter of what is gathered at a time, which is everything outside of the
  blocks, two blocks (one computes, the next is on its way) and the gradient of one.
* bf16: 2 P for the copies that autocast makes of the weights.
* activations: what the backward pass needs of the forward pass, clip by clip: ``E + L B`` with L
  blocks; with gradient checkpointing ``E + L S + B``, where S is the input of a block. E
  (embeddings and output) and B (a block) are measured on fake models of one and two blocks.

Workspace of kernels, and what the allocator loses, come on top: leave a tenth of the memory free.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pixeldance.models.motion import PictureMotion
from pixeldance.models.refiner import ReferenceRefiner
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training.config import BucketConfig, TrainConfig
from pixeldance.training.flops import (
    clip_tokens,
    groups_per_clip,
    latent_shape,
    motion_inputs,
    peak_of_name,
    refiner_inputs,
    training_flops,
    transformer_config,
)
from pixeldance.training.log import bucket_name
from pixeldance.training.optim import make_optimizers

__all__ = ["activation_bytes", "describe_run", "run_facts"]

Columns = tuple[tuple[str, str], ...]
"""Titles of a table and the facts under them."""

MFU = 0.4
"""Utilisation that the estimated times assume."""

_DEVICE = "H100"
_MACHINE = 8  # GPUs of the usual one
_ACTIVATION_COLUMNS = (
    ("GiB/clip of activations", "activation_bytes_per_clip"),
    ("checkpointed", "checkpointed_activation_bytes_per_clip"),
)
_MEMORY_COLUMNS = (
    (" weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer"),
    ("average", "averaged_weights"),
    ("in flight", "in_flight"),
    ("bf16 copies", "bf16_weights"),
    ("activations", "activations"),
    ("   total", "total"),
    ("checkpointed", "checkpointed_total"),
)


class Activations(NamedTuple):
    """Bytes that the backward pass needs of the forward pass of one clip."""

    kept: int
    """All activations."""
    checkpointed: int
    """With gradient checkpointing."""


def activation_bytes(config: TrainConfig, bucket: BucketConfig) -> Activations:
    """Estimate the activations of one clip; the formula is in the module's description.

    Args:
        config: The run.
        bucket: The clip shape.

    Returns:
        Bytes per clip without and with gradient checkpointing (equal for the other parts,
        which have none).
    """
    if config.part != "transformer":
        losses = {"refiner": _refiner_loss, "motion": _motion_loss, "reader": _reader_loss}
        kept = _bytes_per_clip(partial(losses[config.part], config, bucket), config)
        return Activations(kept, kept)
    arguments = transformer_config(config)
    one, two = (
        _bytes_per_clip(partial(_transformer_loss, config, bucket, layers), config)
        for layers in (1, 2)
    )
    block, layers = two - one, arguments["num_layers"]
    width = arguments["num_attention_heads"] * arguments["attention_head_dim"]
    block_input = clip_tokens(config, bucket) * width * (2 if _is_mixed(config) else 4)
    ends = one - block
    return Activations(
        ends + layers * block, ends + min(layers * block, layers * block_input + block)
    )


def _bytes_per_clip(loss_of: Callable[[int], Tensor], config: TrainConfig) -> int:
    """What autograd saves for each clip more; what does not depend on the clips drops out."""
    # not of one clip: an axis of length 1 can save a copy
    return _saved_bytes(loss_of, 3, config) - _saved_bytes(loss_of, 2, config)


def _saved_bytes(loss_of: Callable[[int], Tensor], clips: int, config: TrainConfig) -> int:
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=_is_mixed(config)),
    ):
        loss = loss_of(clips)
    del loss
    return sum(storage.nbytes() for storage in storages.values())


def _transformer_loss(config: TrainConfig, bucket: BucketConfig, layers: int, clips: int) -> Tensor:
    arguments = transformer_config(config) | {"num_layers": layers}
    model = PixelDanceTransformer3DModel(**arguments)
    text = torch.zeros(clips, config.model.text_tokens, arguments["text_dim"])
    velocity = model(
        hidden_states=torch.zeros(clips, arguments["in_channels"], *latent_shape(config, bucket)),
        timestep=torch.zeros(clips),
        encoder_hidden_states=text,
        return_dict=False,
    )[0].float()
    return (velocity - torch.zeros_like(velocity)).square().mean()


def _refiner_loss(config: TrainConfig, bucket: BucketConfig, clips: int) -> Tensor:
    groups = groups_per_clip(config, bucket)
    model = ReferenceRefiner(config.refiner.channels)
    refined, aligned = model(*refiner_inputs(clips, groups, bucket.height, bucket.width))
    return refined.abs().mean() + aligned.pictures.abs().mean()


def _motion_loss(config: TrainConfig, bucket: BucketConfig, clips: int) -> Tensor:
    text = (config.model.text_tokens, config.model.text_dim)
    inputs = motion_inputs(clips, *text, bucket.height, bucket.width)
    motion, told = _motion(config).chosen(*inputs, is_mixed=True)
    made = (motion.flow, motion.front, motion.detour, told.camera, told.cells, told.who)
    return torch.stack([part.abs().mean() for part in made]).sum()


def _motion(config: TrainConfig) -> PictureMotion:
    model = PictureMotion(text_dim=config.model.text_dim)
    model.reader.requires_grad_(False)
    return model


def _reader_loss(config: TrainConfig, bucket: BucketConfig, clips: int) -> Tensor:  # noqa: ARG001
    reader = PictureMotion(text_dim=config.model.text_dim).reader
    said = reader(torch.zeros(clips, config.model.text_tokens, config.model.text_dim))
    return said.camera.abs().mean() + said.subjects.abs().mean() + said.named.mean()


def _is_mixed(config: TrainConfig) -> bool:
    return config.mixed_precision == "bf16"


class _Weights(NamedTuple):
    """Numbers of parameters, and bytes of the optimizers' state."""

    parameters: int
    optimizer_bytes: int
    largest_block: int
    outside_blocks: int


def _weights(config: TrainConfig) -> _Weights:
    with FakeTensorMode():
        model: nn.Module
        match config.part:
            case "transformer":
                model = PixelDanceTransformer3DModel(**transformer_config(config))
            case "refiner":
                model = ReferenceRefiner(config.refiner.channels)
                model.aligner.motion.requires_grad_(False)
            case "motion":
                model = _motion(config)
            case "reader":
                model = PictureMotion(text_dim=config.model.text_dim).reader
        optimizers = make_optimizers(model, config.optimizer)
    total = _count(model.parameters())
    blocks = [_count(block.parameters()) for block in getattr(model, "blocks", ())]
    state = sum(
        (4 if isinstance(optimizer, torch.optim.Muon) else 8) * _count(group["params"])
        for optimizer in optimizers
        for group in optimizer.param_groups
    )
    return _Weights(total, state, max(blocks, default=0), total - sum(blocks))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def run_facts(config: TrainConfig, num_processes: int = 1) -> dict[str, Any]:
    """What a run needs, without starting it.

    Args:
        config: The run.
        num_processes: GPUs that it will have; estimates are made for 1, 8 and this number.

    Returns:
        Parameters; operations, tokens and activations by bucket and their means over the buckets'
        weights; bytes per GPU by strategy and number of GPUs; seconds to the last step. Ready for
        JSON.
    """
    weights = _weights(config)
    activations = {bucket_name(b): activation_bytes(config, b) for b in config.buckets}
    buckets = [_bucket_facts(config, b, activations[bucket_name(b)]) for b in config.buckets]
    means = {
        f"{name}_per_step": sum(b["share"] * b[f"{name}_per_step"] for b in buckets)
        for name in ("clips", "tokens", "flops")
    }
    counts = sorted({1, _MACHINE, num_processes})
    strategies = ("ddp", "fsdp2") if config.part == "transformer" else ("ddp",)
    return {
        "part": config.part,
        "parameters": weights.parameters,
        "max_steps": config.max_steps,
        **means,
        "buckets": buckets,
        "memory": [
            _memory_facts(config, weights, activations, strategy, num_gpus)
            for num_gpus in counts
            for strategy in strategies
        ],
        "time": [_time_facts(config, means, num_gpus) for num_gpus in counts],
    }


def _bucket_facts(
    config: TrainConfig, bucket: BucketConfig, activations: Activations
) -> dict[str, Any]:
    tokens, flops = clip_tokens(config, bucket), training_flops(config, bucket)
    return {
        "bucket": bucket_name(bucket),
        "share": bucket.weight / sum(b.weight for b in config.buckets),
        "clips_per_step": bucket.batch_size,
        "tokens_per_clip": tokens,
        "tokens_per_step": bucket.batch_size * tokens,
        "flops_per_clip": flops,
        "flops_per_step": bucket.batch_size * flops,
        "activation_bytes_per_clip": activations.kept,
        "checkpointed_activation_bytes_per_clip": activations.checkpointed,
    }


def _memory_facts(
    config: TrainConfig,
    weights: _Weights,
    activations: Mapping[str, Activations],
    strategy: str,
    num_gpus: int,
) -> dict[str, Any]:
    """Bytes per GPU, by the formula of the module's description."""
    is_sharded = strategy == "fsdp2"
    shards = num_gpus if is_sharded else 1
    each = math.ceil(4 * weights.parameters / shards)
    in_flight = 0
    if is_sharded and num_gpus > 1:
        in_flight = 4 * (weights.outside_blocks + 3 * weights.largest_block)
    elif num_gpus > 1:
        in_flight = 4 * weights.parameters
    parts = {
        "weights": each,
        "gradients": each,
        "averaged_weights": each,
        "optimizer": math.ceil(weights.optimizer_bytes / shards),
        "in_flight": in_flight,
        "bf16_weights": 2 * weights.parameters if _is_mixed(config) else 0,
    }
    kept, checkpointed = (
        max(
            _clips_at_a_time(config, b, num_gpus) * activations[bucket_name(b)][kind]
            for b in config.buckets
        )
        for kind in (0, 1)
    )
    fixed = sum(parts.values())
    return {
        "num_gpus": num_gpus,
        "strategy": strategy,
        **parts,
        "activations": kept,
        "checkpointed_activations": checkpointed,
        "total": fixed + kept,
        "checkpointed_total": fixed + checkpointed,
    }


def _clips_at_a_time(config: TrainConfig, bucket: BucketConfig, num_gpus: int) -> int:
    share = math.ceil(bucket.batch_size / num_gpus)
    return math.ceil(share / config.gradient_accumulation_steps)


def _time_facts(config: TrainConfig, means: Mapping[str, float], num_gpus: int) -> dict[str, Any]:
    peak = peak_of_name(_DEVICE)
    assert peak is not None
    steps_per_s = MFU * peak * num_gpus / means["flops_per_step"]
    return {
        "device": _DEVICE,
        "num_gpus": num_gpus,
        "mfu": MFU,
        "tokens_per_s": steps_per_s * means["tokens_per_step"],
        "clips_per_s": steps_per_s * means["clips_per_step"],
        "seconds": config.max_steps / steps_per_s,
    }


def describe_run(config: TrainConfig, num_processes: int = 1) -> str:
    """The facts of :func:`run_facts` for people.

    Args:
        config: The run.
        num_processes: GPUs that it will have.

    Returns:
        A few lines of text.
    """
    facts = run_facts(config, num_processes)
    has_blocks = facts["part"] == "transformer"
    activations = _ACTIVATION_COLUMNS if has_blocks else _ACTIVATION_COLUMNS[:1]
    memory = _MEMORY_COLUMNS if has_blocks else _MEMORY_COLUMNS[:-1]
    return "\n".join(
        [
            f"{facts['part']} of {facts['parameters'] / 1e6:.2f} M parameters, "
            f"{facts['max_steps']} steps",
            f"a step on average: {facts['clips_per_step']:.1f} clips, "
            f"{facts['tokens_per_step']:.0f} tokens, {facts['flops_per_step'] / 1e12:.3g} TFLOP",
            "",
            f"{'bucket':<13}{'share':>7}{'clips':>7}{'tokens':>10}{'TFLOP/step':>12}"
            + _titles(activations),
            *(
                f"{b['bucket']:<13}{b['share']:>7.1%}{b['clips_per_step']:>7}"
                f"{b['tokens_per_step']:>10}{b['flops_per_step'] / 1e12:>12.3g}"
                + _gibibytes(b, activations)
                for b in facts["buckets"]
            ),
            "",
            "GiB per GPU" + _titles(memory),
            *(
                f"{row['num_gpus']:>3} x {row['strategy']:<5}" + _gibibytes(row, memory)
                for row in facts["memory"]
            ),
            "",
            f"time to the last step at {MFU:.0%} MFU",
            *(
                f"{t['num_gpus']:>3} x {t['device']}: {_duration(t['seconds'])} "
                f"({t['tokens_per_s']:.3g} tokens/s, {t['clips_per_s']:.3g} clips/s)"
                for t in facts["time"]
            ),
        ]
    )


def _titles(columns: Columns) -> str:
    return "".join(f"{title:>{len(title) + 2}}" for title, _ in columns)


def _gibibytes(facts: Mapping[str, Any], columns: Columns) -> str:
    return "".join(f"{facts[name] / 2**30:>{len(title) + 2}.3g}" for title, name in columns)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.3g} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
