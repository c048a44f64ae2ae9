"""Small films: 32 x 48 pixels, 1 step."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tiny import picture, tiny_pipeline

from pixeldance.api import Model
from pixeldance.stories import ClipCache, Story, StoryPlan, Target, film_frames, plan_story

SMALL: dict[str, Any] = {
    "height": 32,
    "width": 48,
    "num_inference_steps": 1,
    "clip_frames": 13,
    "window": 2,
}
TARGET = Target("tiny", "0" * 64, pixel_budget=48 * 48, size_multiple=16)


def tiny_model() -> Model:
    return Model(name="tiny", pipeline=tiny_pipeline(), sha256="0" * 64)


def three_shots(**fields: Any) -> Story:
    """A cut of 9 frames, then 8 that go on, then 8 that arrive at a picture."""
    shots = [
        {"prompt": "a red fox", "first_frame": picture(1), "num_frames": 9},
        {"prompt": "jumps", "num_frames": 8},
        {"prompt": "moves left", "transition": "morph", "last_frame": picture(2), "num_frames": 8},
    ]
    return Story.parse({**SMALL, "shots": shots, **fields})


def plan(story: Story) -> StoryPlan:
    return plan_story(story, TARGET)


def keys(story: Story) -> list[str]:
    """Keys of the clips of each shot, joined."""
    return ["+".join(clip.key for clip in shot.clips) for shot in plan(story).shots]


def frames_of(story: Story, folder: Path) -> npt.NDArray[np.uint8]:
    return np.stack(list(film_frames(plan(story), ClipCache(folder))))
