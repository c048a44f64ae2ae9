"""Making what is planned: clip after clip into the cache, then all of them into one film."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.geometry import TEMPORAL_FACTOR
from pixeldance.stories.cache import ClipCache
from pixeldance.stories.colour import Picture, hold_colours
from pixeldance.stories.plan import PlannedClip, PlannedShot, StoryPlan
from pixeldance.stories.recipe import film_comment, film_recipe
from pixeldance.video.write import check_clip_path, write_frames

if TYPE_CHECKING:
    from pixeldance.api import Model, StepEvent

__all__ = ["ShotState", "StoryEvent", "StoryListener", "make_clips", "shot_states", "write_film"]


class ShotState(NamedTuple):
    """How far a shot is."""

    shot: PlannedShot
    num_made: int
    """Clips that are in the cache."""

    @property
    def is_made(self) -> bool:
        """Whether nothing is left to be made."""
        return self.num_made == len(self.shot.clips)


class StoryEvent(NamedTuple):
    """Progress, after each step and each clip."""

    shot: PlannedShot
    """The shot in hand."""
    clip: int
    """Which of its clips, from 1."""
    num_made: int
    """Clips of this run that are finished."""
    num_clips: int
    """Clips of this run."""
    step: "StepEvent | None"
    """The step of the clip; None when the clip is finished and stored."""
    elapsed_s: float
    """Seconds since the start of the run."""


StoryListener = Callable[[StoryEvent], object]
"""Called after each step and each clip; raise ``GenerationCancelled`` in it to stop. Finished clips
stay in the cache. Results are ignored."""


@dataclass(frozen=True)
class _Task:
    """A clip that is missing, and where it belongs."""

    shot: PlannedShot
    place: int

    @property
    def clip(self) -> PlannedClip:
        return self.shot.clips[self.place]


def shot_states(plan: StoryPlan, cache: ClipCache) -> list[ShotState]:
    """Say shot by shot what is made and what is not.

    Args:
        plan: The plan.
        cache: What is made.

    Returns:
        One state for each shot.
    """
    return [ShotState(shot, sum(clip.key in cache for clip in shot.clips)) for shot in plan.shots]


def make_clips(
    plan: StoryPlan, cache: ClipCache, model: "Model", *, on_event: StoryListener | None = None
) -> int:
    """Make the clips that are not in the cache, in order; each is stored as soon as it is made.

    Args:
        plan: The plan.
        cache: Where clips are found and stored.
        model: The model that the plan was made for.
        on_event: Called after each step and each clip.

    Returns:
        How many were made.

    Raises:
        InputError: If the plan was made for another model.
    """
    if model.sha256 != plan.target.sha256:
        raise InputError(
            f"The plan is for the model {plan.target.name!r} ({plan.target.sha256[:12]}), this one "
            f"is {model.name!r} ({model.sha256[:12]}). Plan again."
        )
    tasks = [
        _Task(shot, place)
        for shot in plan.shots
        for place, clip in enumerate(shot.clips)
        if clip.key not in cache
    ]
    start = time.monotonic()

    def report(step: "StepEvent | None", num_made: int, task: _Task) -> None:
        if on_event is not None:
            elapsed = time.monotonic() - start
            on_event(StoryEvent(task.shot, task.place + 1, num_made, len(tasks), step, elapsed))

    for number, task in enumerate(tasks):
        on_step = partial(report, num_made=number, task=task)
        frames = _make(task.clip, plan, cache, model, on_step)
        cache.keep(task.clip.key, frames, fps=plan.story.fps)
        report(None, number + 1, task)
    return len(tasks)


def _make(
    clip: PlannedClip,
    plan: StoryPlan,
    cache: ClipCache,
    model: "Model",
    on_step: "Callable[[StepEvent], None]",
) -> npt.NDArray[np.uint8]:
    """The new frames of a clip."""
    keyframes: dict[int, Image.Image] = dict(clip.pictures)
    if clip.window:
        tail = cache.tail(clip.history, clip.overlap)
        given = range(0, clip.overlap, TEMPORAL_FACTOR)
        keyframes |= {frame: Image.fromarray(tail[frame]) for frame in given}
    request = clip.request.model_copy(
        update={"keyframes": keyframes, "last_frame": clip.last_frame, "model": model.name}
    )
    made = model.generate(request, on_step=on_step)
    frames = made.frames[clip.overlap :]
    strength = plan.story.colour_anchor
    if clip.anchor is None or not strength:
        return frames
    return hold_colours(frames, cache.frame(*clip.anchor), strength=strength)


def film_frames(plan: StoryPlan, cache: ClipCache) -> Iterator[Picture]:
    """The frames of a finished film one after another; only one is in memory.

    Args:
        plan: The plan.
        cache: Holds all its clips.

    Returns:
        An iterator over ``plan.num_frames`` frames.

    Raises:
        InputError: If clips are not made yet.
    """
    missing = [state.shot.name for state in shot_states(plan, cache) if not state.is_made]
    if missing:
        raise InputError(f"Not all is made yet: {', '.join(missing)}. Make the clips first.")
    frames = itertools.chain.from_iterable(cache.frames(clip.key) for clip in plan.clips)
    return itertools.islice(frames, plan.num_frames)


def write_film(
    path: str | os.PathLike[str], plan: StoryPlan, cache: ClipCache, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write a finished film with its recipe in it and beside it; complete or not at all.

    However long the film is, only one frame of it is in memory.

    Args:
        path: Where it goes, ending in ``.mp4``; its recipe goes to the same name in ``.json``.
        plan: The plan.
        cache: Holds all its clips.
        overwrite: Whether files that are already there may be replaced.

    Returns:
        The recipe; ``story_of_recipe`` gives the story back.

    Raises:
        InputError: If clips are not made yet, or a file would be overwritten.
        PixelDanceError: If encoding or writing fails; nothing is left behind.
    """
    path = check_clip_path(Path(path), overwrite=overwrite)
    recipe = film_recipe(plan, film_frames(plan, cache))
    write_frames(
        path,
        film_frames(plan, cache),
        fps=plan.story.fps,
        comment=film_comment(recipe),
        beside=json.dumps(recipe, indent=1) + "\n",
        overwrite=overwrite,
    )
    return recipe
