"""Small parts that the networks of the codec's refiner share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Pre-activation residual block with two 3 x 3 convolutions; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape, ``(batch, channels, height, width)``."""
        hidden = self.conv_in(F.silu(self.norm(features)))
        return features + self.conv_out(F.silu(hidden))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all weights zero, so that what it corrects starts uncorrected."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def as_input(features: Tensor, layer: nn.Module) -> Tensor:
    """Channels last, in the dtype of the layer's weights (displacements are always float32)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return features.to(weight.dtype, memory_format=torch.channels_last)


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Fetch ``pictures[p + flow[p]]`` with bilinear interpolation, repeating the border.

    Args:
        pictures: ``(n, channels, height, width)``.
        flow: ``(n, 2, height, width)``, x then y, in pixels.

    Returns:
        Float32 like ``pictures``.
    """
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=torch.float32),
        torch.arange(width, device=flow.device, dtype=torch.float32),
        indexing="ij",
    )
    grid = torch.stack(
        [
            (x + flow[:, 0].float()) * (2 / max(width - 1, 1)) - 1,
            (y + flow[:, 1].float()) * (2 / max(height - 1, 1)) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=True)
