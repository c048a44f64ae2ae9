"""The noise convention of the whole package: straight lines from data to noise.

``latents(sigma) = (1 - sigma) * clean_latents + sigma * noise``: sigma 0 is data, sigma 1 is noise,
and ``d latents / d sigma = noise - clean_latents`` is what the transformer predicts (the velocity).

References:
    Liu et al. 2022, "Flow Straight and Fast", eq. 1, https://arxiv.org/abs/2209.03003
    Lipman et al. 2023, "Flow Matching for Generative Modeling", https://arxiv.org/abs/2210.02747
"""

import torch
from jaxtyping import Float
from torch import Tensor

TIMESTEPS_PER_SIGMA = 1000.0
"""The model's timestep is ``1000 * sigma``, as in every Wan checkpoint."""

Sigma = Float[Tensor, " batch"] | Float[Tensor, ""] | float
"""One noise level for all clips, or one for each clip."""


def _levels(sigma: Sigma, like: Tensor) -> Tensor:
    """Sigma in float32, shaped so that it broadcasts over everything but the batch axis."""
    levels = torch.as_tensor(sigma, dtype=torch.float32, device=like.device)
    return levels.reshape(-1, *[1] * (like.ndim - 1)) if levels.ndim else levels


def add_noise(
    clean_latents: Float[Tensor, " batch *shape"],
    noise: Float[Tensor, " batch *shape"],
    sigma: Sigma,
) -> Float[Tensor, " batch *shape"]:
    """Mix data and noise at the level ``sigma``.

    Args:
        clean_latents: Data.
        noise: Standard normal noise.
        sigma: Noise level in [0, 1], one or one for each clip.

    Returns:
        ``(1 - sigma) * clean_latents + sigma * noise`` in float32.
    """
    levels = _levels(sigma, clean_latents)
    return (1.0 - levels) * clean_latents.float() + levels * noise.float()


def velocity_target(
    clean_latents: Float[Tensor, " batch *shape"], noise: Float[Tensor, " batch *shape"]
) -> Float[Tensor, " batch *shape"]:
    """What the transformer learns to predict: the slope from data to noise.

    Args:
        clean_latents: Data.
        noise: The noise that was mixed in.

    Returns:
        ``noise - clean_latents`` in float32.
    """
    return noise.float() - clean_latents.float()


def denoised_from(
    latents: Float[Tensor, " batch *shape"],
    velocity: Float[Tensor, " batch *shape"],
    sigma: Sigma,
) -> Float[Tensor, " batch *shape"]:
    """The data that a predicted velocity points at.

    Args:
        latents: Noisy latents at the level ``sigma``.
        velocity: Prediction of the transformer.
        sigma: Noise level of ``latents`` in [0, 1], one or one for each clip.

    Returns:
        ``latents - sigma * velocity`` in float32.
    """
    return latents.float() - _levels(sigma, latents) * velocity.float()


def timesteps_of(sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the timestep embedding sees.

    Args:
        sigma: Noise levels in [0, 1].

    Returns:
        ``1000 * sigma`` in float32 (bfloat16 would round 999 to 1000).
    """
    return TIMESTEPS_PER_SIGMA * sigma.float()
