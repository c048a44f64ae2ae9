"""Averaged weights: an exponential moving average that is sharded like the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """Exponential moving average of a model's parameters, in their own dtype (float32).

    Under FSDP2 each process averages its shards; nothing is communicated.

    Args:
        model: After it was sharded. The averages start as its weights.

    Attributes:
        values: Name of each parameter to its average.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self.values: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the averages towards the current weights.

        Args:
            decay: Part of the average that stays, in [0, 1].
        """
        averages = [_local(value) for value in self.values.values()]
        weights = [_local(parameter) for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have its averaged weights for a while, without a third copy.

        Yields:
            None: Nothing; meanwhile ``values`` holds the weights of training.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weight, average = _local(parameter), _local(self.values[name])
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)


def _local(value: Tensor) -> Tensor:
    """This process' part of a tensor, sharing its memory."""
    return value.to_local() if isinstance(value, DTensor) else value.detach()
