"""Optimizers, their learning rate, and their state as named tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pixeldance.training.config import OptimizerConfig

__all__ = ["allocate_state", "learning_rate", "make_optimizers", "set_learning_rate", "state_of"]


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Linear warm-up, a constant part, then a linear fall to zero at ``max_steps``."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(config.decay_fraction * max_steps))
    return config.learning_rate * warmup * min(1.0, (max_steps - step) / decay_steps)


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give all groups of all optimizers the same rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    Muon orthogonalises whole matrices. For sharded ones (DTensors) torch computes the products
    with collectives, so the result is the same up to the rounding of its bfloat16 iteration.

    Args:
        model: After it was sharded, since that replaces its parameters.
        config: Rates and decays.

    Returns:
        AdamW, and Muon if it is used and there are such matrices.

    References:
        Jordan et al. 2024, Muon, https://kellerjordan.github.io/posts/muon
        Liu et al. 2025, "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982
        (the scaling to AdamW's update size)
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = "blocks." in name and parameter.ndim == 2
        (matrices if inside and config.use_muon else others).append(parameter)
    decayed = [p for p in others if p.ndim >= 2]
    plain = [p for p in others if p.ndim < 2]
    rate = config.learning_rate
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def state_of(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers remember, as tensors called ``parameter/quantity``.

    Rates and decays are left out on purpose: they are the config's, also after resuming.
    """
    return {
        f"{name}/{quantity}": value
        for name, parameter, optimizer in _owners(model, optimizers)
        for quantity, value in optimizer.state[parameter].items()
    }


def allocate_state(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    sizes: Mapping[str, Sequence[int]],
) -> None:
    """Give new optimizers a state of zeros, into which a saved one can be loaded.

    Args:
        model: The model.
        optimizers: Optimizers that have not stepped yet.
        sizes: Shape of each tensor, by the names of :func:`state_of`.
    """
    owners = {
        name: (parameter, optimizer) for name, parameter, optimizer in _owners(model, optimizers)
    }
    for key, size in sizes.items():
        name, _, quantity = key.rpartition("/")
        parameter, optimizer = owners[name]
        optimizer.state[parameter][quantity] = (
            torch.zeros_like(parameter, requires_grad=False)
            if tuple(size) == tuple(parameter.shape)
            else torch.zeros(tuple(size), device=parameter.device)
        )


def _owners(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], parameter, optimizer
