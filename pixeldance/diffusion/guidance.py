"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor


def guided_velocity(
    cond: Float[Tensor, "*shape"], uncond: Float[Tensor, "*shape"], guidance_scale: float
) -> Float[Tensor, "*shape"]:
    """Move the prediction away from the one without the prompt.

    Args:
        cond: Velocity predicted with the prompt.
        uncond: Velocity predicted with the negative prompt.
        guidance_scale: 1.0 gives ``cond``; larger follows the prompt more.

    Returns:
        ``uncond + guidance_scale * (cond - uncond)`` in float32.

    References:
        Ho and Salimans 2022, eq. 6 with guidance_scale = 1 + w, https://arxiv.org/abs/2207.12598
    """
    cond, uncond = cond.float(), uncond.float()
    return uncond + guidance_scale * (cond - uncond)
