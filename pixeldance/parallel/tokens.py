"""Context parallelism (Ulysses): each process computes a part of the tokens.

References:
    DeepSpeed Ulysses, https://arxiv.org/abs/2309.14509.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from torch.distributed.device_mesh import DeviceMesh

from pixeldance.errors import InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

__all__ = ["share_tokens", "suspended"]


def share_tokens(
    transformer: PixelDanceTransformer3DModel,
    mesh: DeviceMesh,
    device: torch.device,
    *,
    has_token_timesteps: bool,
) -> None:
    """Let a transformer compute this process's part of the tokens.

    It is what diffusers' ``enable_parallelism`` does, which fails on hosts without accelerator.

    Args:
        transformer: With the same weights in every process.
        mesh: The processes that share, ``ring ulysses``: 1 x processes.
        device: Where this process computes.
        has_token_timesteps: Whether each token has its own timestep.

    Raises:
        InputError: If the attention heads cannot be shared out evenly.
    """
    degree = mesh.size(1)
    if degree == 1:
        return
    heads = int(transformer.config.num_attention_heads)
    if heads % degree:
        raise InputError(
            f"The model has {heads} attention heads, which {degree} processes cannot "
            "share evenly. Start a number that divides it (with guidance: twice that)."
        )
    tokens = ContextParallelConfig(ulysses_degree=degree, mesh=mesh)
    config = ParallelConfig(context_parallel_config=tokens)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh)
    plan = dict(transformer._cp_plan)
    if not has_token_timesteps:
        plan.pop("")
    transformer._cp_plan = plan
    _configure(transformer, config)
    apply_context_parallel(transformer, tokens, plan)


@contextmanager
def suspended(transformer: PixelDanceTransformer3DModel) -> Iterator[None]:
    """Let a transformer compute all tokens in every process for a while.

    Hooks on its blocks have to be set meanwhile, if they are to see the tokens of this process
    only: diffusers runs hooks from the last one to the first, so that one set later would meet the
    first block before the tokens are shared out, and the last block after that.

    Args:
        transformer: May or may not share tokens.

    Yields:
        Nothing.
    """
    config = transformer._parallel_config
    if config is None:
        yield
        return
    plan: Any = transformer._cp_plan
    remove_context_parallel(transformer, plan)
    _configure(transformer, None)
    try:
        yield
    finally:
        _configure(transformer, config)
        apply_context_parallel(transformer, config.context_parallel_config, plan)


def _configure(transformer: PixelDanceTransformer3DModel, config: ParallelConfig | None) -> None:
    transformer._parallel_config = config
    for processor in transformer.attn_processors.values():
        processor._parallel_config = config
