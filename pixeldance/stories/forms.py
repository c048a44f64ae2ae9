"""Stories that are asked for often: a loop, a time-lapse between pictures, one shot made anew."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pixeldance.errors import InputError
from pixeldance.stories.story import Story

if TYPE_CHECKING:
    from pixeldance.pictures import PictureInput

__all__ = ["LOOP_STRENGTH", "loop_story", "morph_story", "redone"]

LOOP_STRENGTH = 1.0
"""How strongly a loop is steered back to its picture. Chosen for the embedded model: at 1 it does
not freeze (something moves in 99 % of the steps, and the seam is half of a typical step), while
below 1 the decoder loses sight of the picture at the end and characters dissolve on the way."""


def loop_story(
    picture: "PictureInput",
    prompt: str = "",
    *,
    strength: float = LOOP_STRENGTH,
    duration: float | None = None,
    **fields: Any,
) -> Story:
    """A shot that ends where it began. The frame that would be shown twice is left out.

    Args:
        picture: What it starts with and is steered back to.
        prompt: What happens.
        strength: Part of the steps during which it is steered back, 0 to 1: less gives a model
            that freezes between equal pictures more freedom, and a seam.
        duration: Seconds; about two if not given.
        **fields: Further fields of ``Story``.

    Returns:
        The story.

    Raises:
        InputError: If a value is not allowed.
    """
    shot = {
        "prompt": prompt,
        "transition": "cut",
        "first_frame": picture,
        "last_frame": picture,
        "last_frame_strength": strength,
        "duration": duration,
    }
    return Story.parse({**fields, "shots": [shot], "loop": True})


def morph_story(
    pictures: "Sequence[PictureInput]",
    prompts: str | Sequence[str] = "",
    *,
    duration: float | None = None,
    **fields: Any,
) -> Story:
    """A time-lapse: from each picture to the next, without a frame shown twice.

    Args:
        pictures: At least two, in order. With ``loop=True`` end with the first one again.
        prompts: What happens: one text for all, or one for each way from picture to picture.
        duration: Seconds of each way; about two if not given.
        **fields: Further fields of ``Story``.

    Returns:
        The story.

    Raises:
        InputError: If there are too few pictures, another number of prompts, or a value is not
            allowed.
    """
    num_ways = len(pictures) - 1
    if num_ways < 1:
        raise InputError(f"A time-lapse needs at least 2 pictures, got {len(pictures)}.")
    texts = [prompts] * num_ways if isinstance(prompts, str) else list(prompts)
    if len(texts) != num_ways:
        raise InputError(
            f"There are {num_ways} ways between {len(pictures)} pictures and {len(texts)} prompts. "
            "Give one prompt for all, or one for each way."
        )
    shots: list[dict[str, Any]] = [
        {"prompt": text, "transition": "morph", "last_frame": picture, "duration": duration}
        for text, picture in zip(texts, pictures[1:], strict=True)
    ]
    shots[0] |= {"transition": "cut", "first_frame": pictures[0]}
    return Story.parse({**fields, "shots": shots})


def redone(story: Story, name: str, *, seed: int | None = None) -> Story:
    """The same story with another seed for one shot: it, and what goes on from it, is made anew.

    Args:
        story: The story.
        name: Name of the shot.
        seed: Its new seed; drawn at random if not given.

    Returns:
        The story.

    Raises:
        InputError: If there is no such shot.
    """
    return story.with_shot(name, seed=secrets.randbits(32) if seed is None else seed)
