"""Flow matching: the noise convention, schedules, guidance and the solver.

Functions only, in float32. ``flow`` owns the convention that everything else follows.
"""

from pixeldance.diffusion.flow import add_noise, denoised_from, timesteps_of, velocity_target
from pixeldance.diffusion.guidance import guided_velocity
from pixeldance.diffusion.sampler import sample_euler
from pixeldance.diffusion.schedule import shifted_sigmas

__all__ = [
    "add_noise",
    "denoised_from",
    "guided_velocity",
    "sample_euler",
    "shifted_sigmas",
    "timesteps_of",
    "velocity_target",
]
