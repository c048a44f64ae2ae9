"""Noise levels of the sampler's steps."""

import torch
from jaxtyping import Float
from torch import Tensor

from pixeldance.errors import ConfigError

SAMPLING_SHIFT = 3.0
"""Timestep shift of generation; the refiner trains on what generation makes with it."""

SAMPLING_START = 0.8
"""Noise level at which generation starts from a draft, if there is one (``models/draft.py``)."""


def shift_sigmas(sigmas: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """Move noise levels towards noise; 0 and 1 stay where they are.

    Args:
        sigmas: Levels in [0, 1].
        shift: Timestep shift, greater than 0; 1.0 changes nothing.

    Returns:
        ``shift * sigma / (1 + (shift - 1) * sigma)``.

    Raises:
        ConfigError: If ``shift`` is not greater than 0.

    References:
        Esser et al. 2024, eq. 23 (there alpha = shift), https://arxiv.org/abs/2403.03206
    """
    _check_shift(shift)
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def shifted_sigmas(
    num_steps: int, *, shift: float = 1.0, start: float = 1.0
) -> Float[Tensor, " {num_steps}+1"]:
    """Noise levels from ``start`` down to 0 (data), shifted towards noise.

    Args:
        num_steps: Number of sampler steps, at least 1.
        shift: Timestep shift; 1.0 is uniform, larger spends more steps near noise.
        start: First level, in (0, 1]; 1 is pure noise.

    Returns:
        ``num_steps + 1`` float32 levels on the CPU, strictly decreasing.

    Raises:
        ConfigError: If ``num_steps < 1``, ``shift <= 0``, or ``start`` is outside of (0, 1].
    """
    if not 0 < start <= 1:
        raise ConfigError(f"start must be in (0, 1], got {start}. Use 1.0 to start from noise.")
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}. Use 1 or more.")
    # float64 inside, so that the float32 levels are the nearest ones.
    _check_shift(shift)
    first = float(shift_sigmas(torch.tensor(start, dtype=torch.float64), 1 / shift))
    uniform = torch.linspace(first, 0.0, num_steps + 1, dtype=torch.float64)
    return shift_sigmas(uniform, shift).float()


def _check_shift(shift: float) -> None:
    if not shift > 0:
        raise ConfigError(f"shift must be greater than 0, got {shift}. Use 1.0 for no shift.")
