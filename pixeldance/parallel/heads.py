"""Tensor parallelism: each process holds and computes a part of the heads, for all tokens.

The layers that make queries, keys, values and the inner channels of the feed-forward network are
split by their outputs, those that read them by their inputs; the partial results of the latter are
summed over the processes. Queries and keys are normalised over all heads together, for which the
processes average their mean squares.

References:
    Megatron-LM, https://arxiv.org/abs/1909.08053, section 3.
"""

import math

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from pixeldance.errors import InputError
from pixeldance.models.attention import PixelDanceAttention
from pixeldance.models.transformer import PixelDanceTransformer3DModel

__all__ = ["share_heads"]

_BY_OUTPUT = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    *("attn2.add_k_proj", "attn2.add_v_proj", "ffn.net.0.proj"),
)
_BY_INPUT = ("attn1.to_out.0", "attn2.to_out.0", "ffn.net.2")


def share_heads(transformer: PixelDanceTransformer3DModel, mesh: DeviceMesh) -> None:
    """Keep this process's part of a transformer's heads and feed-forward channels.

    LoRAs are added to the weights for good, fused projections are taken apart. The parts go to the
    device of the mesh, all other weights stay where they are.

    Args:
        transformer: With the same weights in every process.
        mesh: The processes that share, one axis.

    Raises:
        InputError: If heads or channels cannot be shared out evenly.
    """
    degree = mesh.size()
    if degree == 1:
        return
    _check_degree(transformer, degree)
    if getattr(transformer, "peft_config", None):
        transformer.fuse_lora()
        transformer.unload_lora()
    has_pictures = transformer.config.added_kv_proj_dim is not None
    styles: dict[str, type[ParallelStyle]] = {
        **dict.fromkeys(_BY_OUTPUT, ColwiseParallel),
        **dict.fromkeys(_BY_INPUT, RowwiseParallel),
    }
    plan = {
        f"blocks.*.{name}": style()
        for name, style in styles.items()
        if has_pictures or ".add_" not in name
    }
    transformer.unfuse_qkv_projections()
    # Every process cuts its part out of its own weights; nothing is sent.
    parallelize_module(transformer, mesh, plan, src_data_rank=None)
    for module in transformer.modules():
        if isinstance(module, PixelDanceAttention):
            _share_norms(module, mesh)


def _check_degree(transformer: PixelDanceTransformer3DModel, degree: int) -> None:
    heads, channels = int(transformer.config.num_attention_heads), int(transformer.config.ffn_dim)
    common = math.gcd(heads, channels)
    if common % degree == 0:
        return
    allowed = [str(number) for number in range(2, common + 1) if common % number == 0]
    advice = (
        f"Start {' or '.join(allowed)} (with guidance: twice that)"
        if allowed
        else "Use parallel context"
    )
    raise InputError(
        f"The model has {heads} attention heads and {channels} feed-forward channels, which "
        f"{degree} processes cannot share evenly. {advice}."
    )


def _share_norms(attention: PixelDanceAttention, mesh: DeviceMesh) -> None:
    """The attention's norms see its own heads, and hear of the others' mean squares."""
    degree, group = mesh.size(), mesh.get_group()

    def average(numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers, group=group)
        return numbers / degree

    attention.heads //= degree
    for norm in (attention.norm_q, attention.norm_k, getattr(attention, "norm_added_k", None)):
        if norm is not None:
            own = norm.weight.detach().chunk(degree)[mesh.get_local_rank()].clone()
            norm.weight = nn.Parameter(own, requires_grad=norm.weight.requires_grad)
            norm.heads, norm.average = attention.heads, average
