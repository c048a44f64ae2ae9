"""Instructions: which pictures the clip must contain, where, and how strictly.

At inference :func:`place_keyframes` puts encoded pictures into the latent grid, and
:func:`last_frame_steps` is the paper's τ. In training :func:`sample_instructions` is its whole
recipe: task mixture, last frame drawn from a window of three, noise on the instruction, dropped
last frame.

References:
    Zeng et al. 2023, "Make Pixels Dance", https://arxiv.org/abs/2311.10982, sections 3.2 to 3.4.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pixeldance.errors import ConfigError, InputError
from pixeldance.geometry import check_num_frames, latent_slot, resolve_frame_index

Task = Literal["text", "first", "first_last", "last", "keyframes"]


class Conditions(NamedTuple):
    """Instructions on the latent grid.

    Attributes:
        mask: ``(batch, temporal_factor, latent_frames, latent_height, latent_width)``; channel i
            of a latent frame is 1 if pixel frame i inside it is given. The first latent frame holds
            one pixel frame: all its channels agree.
        latents: ``(batch, channels, latent_frames, latent_height, latent_width)``; zero where
            nothing is given.
    """

    mask: Tensor
    latents: Tensor

    def stacked(self) -> Tensor:
        """Mask, then latents, as channels (Wan's order); appended to the noisy latents."""
        return torch.cat([self.mask, self.latents], dim=1)


def place_keyframes(
    keyframes: Sequence[Mapping[int, Float[Tensor, "channels latent_height latent_width"]]],
    *,
    num_frames: int,
    channels: int,
    latent_height: int,
    latent_width: int,
    temporal_factor: int = 4,
) -> Conditions:
    """Put given pictures into the latent grid.

    Args:
        keyframes: For each clip, pixel frame (-1 is the last) to the picture's latent.
        num_frames: Length of the clips in pixel frames, ``4k + 1``.
        channels: Latent channels.
        latent_height: Rows of the latent grid.
        latent_width: Columns of the latent grid.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        Float32 conditions, one per clip.

    Raises:
        InputError: If a frame is outside the clip or two pictures fall into one latent frame.
    """
    check_num_frames(num_frames, temporal_factor)
    grid = ((num_frames - 1) // temporal_factor + 1, latent_height, latent_width)
    mask = torch.zeros(len(keyframes), temporal_factor, *grid)
    latents = torch.zeros(len(keyframes), channels, *grid)
    for clip, pictures in enumerate(keyframes):
        taken: dict[int, int] = {}
        for index, picture in pictures.items():
            frame = resolve_frame_index(index, num_frames)
            slot, inside = latent_slot(frame, temporal_factor)
            if slot in taken:
                raise InputError(
                    f"key frames {taken[slot]} and {frame} fall into the same group of "
                    f"{temporal_factor} frames ({_frames_of(slot, temporal_factor)}), and only one "
                    "can be given. Move one of them."
                )
            taken[slot] = frame
            latents[clip, :, slot] = picture
            mask[clip, slice(None) if inside is None else inside, slot] = 1.0
    return Conditions(mask, latents)


def _frames_of(slot: int, temporal_factor: int) -> str:
    last = slot * temporal_factor
    return "frame 0" if slot == 0 else f"frames {last - temporal_factor + 1} to {last}"


def last_frame_steps(last_frame_strength: float, num_steps: int) -> int:
    """The paper's τ: for how many of the first steps the last frame is an instruction.

    Args:
        last_frame_strength: In [0, 1]; 0 = never, 1 = to the end.
        num_steps: Sampler steps, at least 1.

    Returns:
        ``round(last_frame_strength * num_steps)``, halves rounded up.

    Raises:
        InputError: If an argument is out of range.
    """
    if not 0 <= last_frame_strength <= 1:
        raise InputError(
            f"last_frame_strength must be in [0, 1], got {last_frame_strength}. "
            "Use 1 to follow the last frame to the end, 0 to ignore it."
        )
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}.")
    return math.floor(last_frame_strength * num_steps + 0.5)


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How instructions are drawn in training; the defaults are the paper's where it states them.

    Attributes:
        tasks: Weight of each task; they are normalised.
        last_frame_window: The last frame is drawn from this many frames at the end of the clip.
        last_frame_drop: Probability that a last frame is removed (zero latents and zero mask).
        text_drop: Probability that the caption is removed, for classifier-free guidance.
        noise_steps: Noise on the instruction latents, in steps of a 1000-step DDPM schedule.
        noise_probability: Share of the samples whose instructions are noised.
    """

    tasks: Mapping[Task, float] = field(
        default_factory=lambda: {
            "text": 0.15,
            "first": 0.25,
            "first_last": 0.40,
            "last": 0.10,
            "keyframes": 0.10,
        }
    )
    last_frame_window: int = 3
    last_frame_drop: float = 0.25
    text_drop: float = 0.10
    noise_steps: int = 100
    noise_probability: float = 1.0

    def __post_init__(self) -> None:
        unknown = set(self.tasks) - set(get_args(Task))
        if unknown or sum(self.tasks.values()) <= 0 or min(self.tasks.values()) < 0:
            raise ConfigError(
                f"tasks must give non-negative weights for {', '.join(get_args(Task))}, "
                f"got {dict(self.tasks)}."
            )
        if not 1 <= self.last_frame_window <= 4:
            raise ConfigError(f"last_frame_window must be in 1 to 4, got {self.last_frame_window}.")
        if not 0 <= self.noise_steps < 1000:
            raise ConfigError(f"noise_steps must be in 0 to 999, got {self.noise_steps}.")
        for name in ("last_frame_drop", "text_drop", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}.")


class SampledInstructions(NamedTuple):
    """What one training sample is told.

    Attributes:
        task: The drawn task.
        sources: Pixel frame the instruction claims -> real frame its picture is taken from.
        noise: Standard deviation of the noise on the instruction latents; their signal is
            ``sqrt(1 - noise**2)``.
        keep_text: Whether the caption is seen.
    """

    task: Task
    sources: dict[int, int]
    noise: float
    keep_text: bool


def sample_instructions(
    num_frames: int, recipe: TrainingRecipe, rng: random.Random, *, temporal_factor: int = 4
) -> SampledInstructions:
    """Draw the instructions of one training sample.

    Args:
        num_frames: Length of the clip, ``4k + 1``.
        recipe: Probabilities.
        rng: Source of randomness.
        temporal_factor: Pixel frames per latent frame.

    Returns:
        The instructions; ``sources`` never holds two frames of one latent frame.
    """
    tasks = list(recipe.tasks)
    task = rng.choices(tasks, weights=[recipe.tasks[name] for name in tasks])[0]
    last = num_frames - 1
    sources: dict[int, int] = {}
    if task in ("first", "first_last") or (task == "last" and last == 0):
        sources[0] = 0
    if task in ("first_last", "last") and last > 0:
        drawn = rng.randint(max(1, num_frames - recipe.last_frame_window), last)
        if rng.random() >= recipe.last_frame_drop:
            sources[last] = drawn
    if task == "keyframes":
        slots = range((num_frames - 1) // temporal_factor + 1)
        for slot in rng.sample(slots, min(len(slots), rng.randint(1, 3))):
            frame = (
                0 if slot == 0 else (slot - 1) * temporal_factor + rng.randint(1, temporal_factor)
            )
            sources[frame] = frame
    noisy = rng.random() < recipe.noise_probability
    noise = ddpm_noise_level(recipe.noise_steps) if noisy else 0.0
    return SampledInstructions(task, sources, noise, rng.random() >= recipe.text_drop)


def ddpm_noise_level(steps: int) -> float:
    """Noise after some steps of the 1000-step DDPM schedule (Ho et al. 2020, section 4).

    Args:
        steps: In 0 to 999. 100 steps give noise .32 and signal .947.

    Returns:
        ``sqrt(1 - prod(1 - beta_t))`` with the linear beta from 1e-4 to 0.02.
    """
    betas = torch.linspace(1.0e-4, 0.02, 1000, dtype=torch.float64)
    return float((1 - (1 - betas[:steps]).prod()).sqrt())
