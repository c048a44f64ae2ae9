"""The solver: Euler steps along the predicted velocity."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from pixeldance.errors import ConfigError

VelocityFn = Callable[[Tensor, Tensor, int], Tensor]
"""``velocity_fn(latents, sigma, step) -> velocity``; ``sigma`` is a float32 scalar tensor."""

StepFn = Callable[[int, Tensor], Tensor | None]
"""``on_step(step, latents)``; returned latents replace the current ones."""


def sample_euler(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, " batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    on_step: StepFn | None = None,
) -> Float[Tensor, " batch *shape"]:
    """Integrate ``d latents / d sigma = velocity`` from ``sigmas[0]`` to ``sigmas[-1]``.

    Args:
        velocity_fn: Gives the velocity at (latents, sigma, step); step counts from 0.
        noise: Latents at ``sigmas[0]``.
        sigmas: Decreasing noise levels, at least two; one step for each neighbouring pair.
        on_step: Called after each step with the step and the new latents. It may return
            latents that replace them, and it may raise (``GenerationCancelled``) to stop at once.

    Returns:
        Latents at ``sigmas[-1]`` in float32.

    Raises:
        ConfigError: If there are fewer than two levels.
    """
    if len(sigmas) < 2:
        raise ConfigError(f"sigmas must hold at least 2 levels, got {len(sigmas)}.")
    latents = noise.float()
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        velocity = velocity_fn(latents, sigma, step).float()
        # A Python float: no device transfer, and exact, for the levels are float32.
        latents = latents + float(sigma_next - sigma) * velocity
        if on_step is not None:
            replaced = on_step(step, latents)
            latents = latents if replaced is None else replaced.float()
    return latents
