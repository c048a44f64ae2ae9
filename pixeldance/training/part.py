"""What the training loop needs to know about the thing it trains."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class PartLoss(NamedTuple):
    """What a part makes of a batch.

    Attributes:
        losses: Loss of each sample, ``(batch,)`` float32.
        sigmas: Noise level of each sample, ``(batch,)`` in [0, 1], or None if it has none.
    """

    losses: Tensor
    sigmas: Tensor | None


class Part(Protocol):
    """What the training loop needs to know about the thing it trains."""

    model: nn.Module

    def to(self, device: torch.device) -> None:
        """Move all that the loss needs beside ``model`` to a device."""
        ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> PartLoss:
        """Losses of a batch, computed with ``model`` (the prepared ``self.model``).

        They depend on the samples alone, not on which of them are in the same batch.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded, as JSON values."""
        ...

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write a state dict of ``self.model`` in diffusers' layout."""
        ...
