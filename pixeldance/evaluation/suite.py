"""Suites: the clips that all methods fill in.

``sticker_suite`` makes up clips of characters and backgrounds that training never shows, by a fixed
list of seeds. ``folder_suite`` takes somebody's own videos: of every MP4 or MOV file directly in
the folder the first frames, at the file's own pace, each fitted to the wanted size by scaling and
cropping around the middle (``geometry.fit_picture``). A file that cannot be used is listed with
the reason.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.peers import Frames
from pixeldance.evaluation.settings import EvalSettings
from pixeldance.geometry import Size, fit_picture
from pixeldance.video import read_clip
from pixeldance.video.schema import printable
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import Scene, StickerWorld

__all__ = ["EvalClip", "Skipped", "Suite", "folder_suite", "render_frames", "sticker_suite"]

READ = (".mp4", ".mov", ".m4v")
NOT_READ = (".avi", ".gif", ".mkv", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
"""Videos too, so they are listed as skipped; all other files are no concern of a suite."""

FURTHER_SEEDS = 1_000_000
"""Distance of the seeds of the further clips: more clips of the suite never run into them."""

MAX_PROMPT_BYTES = 16 * 1024


@dataclass(frozen=True, eq=False)
class EvalClip:
    """One clip of a suite.

    Attributes:
        key: Tells it from all others, by its content; part of file names.
        name: What a reader knows it by.
        seed: Of the model's noise.
        prompt: What happens in it; may be empty.
        load: Gives its frames.
        groups: What is shown, such as ``{"motion": "spin", "camera": "moving"}``.
    """

    key: str
    name: str
    seed: int
    prompt: str
    load: Callable[[], Frames]
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Suite:
    """Clips in a fixed order; with more clips, the first ones stay the same.

    Attributes:
        clips: At least one.
        skipped: Files that cannot be used.
        further: As many clips of the same kind, for the floor of the Frechet video distance; none
            if there are no more.
    """

    clips: tuple[EvalClip, ...]
    skipped: tuple[Skipped, ...] = ()
    further: tuple[EvalClip, ...] = ()


def sticker_suite(settings: EvalSettings, world: StickerWorld) -> Suite:
    """The clips of the seeds from ``seed_offset`` on.

    Args:
        settings: Number, sizes and length of the clips.
        world: The held-out world.

    Returns:
        The suite; equal settings give equal clips.
    """

    def clips(start: int) -> tuple[EvalClip, ...]:
        return tuple(
            _sticker_clip(settings, world, settings.seed_offset + place, settings.size_of(place))
            for place in range(start, start + settings.num_clips)
        )

    return Suite(clips(0), further=clips(FURTHER_SEEDS))


def _sticker_clip(settings: EvalSettings, world: StickerWorld, seed: int, size: Size) -> EvalClip:
    scene = world.sample_scene(seed, aspect=size.width / size.height)

    def load() -> Frames:
        return render_frames(
            world, scene, size=size, num_frames=settings.num_frames, fps=settings.fps
        )

    return EvalClip(
        key=f"seed-{seed:06d}-{size.width}x{size.height}",
        name=f"seed {seed}",
        seed=seed,
        prompt=describe(scene, seed),
        load=load,
        groups=_groups(scene),
    )


def render_frames(
    world: StickerWorld, scene: Scene, *, size: Size, num_frames: int, fps: float
) -> Frames:
    """Draw a scene as users get frames.

    Args:
        world: Where it is.
        scene: The scene.
        size: Pixels.
        num_frames: Length.
        fps: Frames per second.

    Returns:
        The frames.
    """
    video = world.render(
        scene, height=size.height, width=size.width, num_frames=num_frames, fps=fps
    )
    frames: Frames = (video * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return frames


def _groups(scene: Scene) -> dict[str, str]:
    """What the first character does first, what the camera does, how many shots there are."""
    shot = scene.shots[0]
    return {
        "motion": shot.actors[0].actions[0].motion.split()[0],
        "camera": shot.camera.motion.split()[0],
        "shots": "two, with a cut" if len(scene.shots) > 1 else "one",
    }


def folder_suite(settings: EvalSettings, folder: str | os.PathLike[str]) -> Suite:
    """The usable videos directly in a folder, by name; of each file the first frames.

    The prompt is that of the clip's recipe, else the text in a file of the same name ending in
    ``.txt``, else empty.

    Args:
        settings: Number, sizes and length of the clips.
        folder: Where the videos are.

    Returns:
        At most ``num_clips`` clips; files after the last one needed are not looked at.

    Raises:
        InputError: If there is no such folder.
        DataError: If no file in it can be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"The suite '{folder}' is no folder. Give 'stickers' or a folder of clips."
        )
    clips: list[EvalClip] = []
    skipped: list[Skipped] = []
    for path in sorted(folder.iterdir()):
        if len(clips) == settings.num_clips:
            break
        if path.suffix.lower() in NOT_READ:
            skipped.append(
                Skipped(printable(path.name), "Only MP4 and MOV files are read. Convert it.")
            )
        elif path.suffix.lower() in READ:
            try:
                clips.append(_folder_clip(settings, path, settings.size_of(len(clips))))
            except (DataError, InputError) as error:
                reason = str(error).replace(f"{folder}{os.sep}", "")
                skipped.append(Skipped(printable(path.name), printable(reason)))
    if not clips:
        reasons = " ".join(f"{each.name}: {each.reason}" for each in skipped[:3])
        raise DataError(
            f"No video in '{folder}' can be used ({len(skipped)} looked at). {reasons}".rstrip()
        )
    return Suite(tuple(clips), tuple(skipped))


def _folder_clip(settings: EvalSettings, path: Path, size: Size) -> EvalClip:
    """Read the file once to see that it can be used; its content is its key."""
    frames, recipe = _read(path, size, settings.num_frames)
    prompt = _prompt(path, recipe)
    settings.request(size, settings.sampling, prompt=prompt, last_frame="last.png")
    digest = hashlib.sha256(f"{path.name}\n{prompt}\n".encode(errors="surrogateescape"))
    digest.update(frames.data)
    return EvalClip(
        key=digest.hexdigest()[:16],
        name=printable(path.name),
        seed=int(digest.hexdigest()[:8], 16),
        prompt=prompt,
        load=lambda: _read(path, size, settings.num_frames)[0],
    )


def _read(path: Path, size: Size, num_frames: int) -> tuple[Frames, dict[str, Any] | None]:
    file = read_clip(path)
    if len(file.frames) < num_frames:
        raise InputError(
            f"'{path}' has {len(file.frames)} frames, {num_frames} are needed. Use a longer clip, "
            "or a smaller num_frames."
        )
    fitted = [
        np.asarray(fit_picture(Image.fromarray(frame), size)) for frame in file.frames[:num_frames]
    ]
    return np.stack(fitted), file.recipe


def _prompt(path: Path, recipe: dict[str, Any] | None) -> str:
    if recipe is not None:
        return str(recipe["request"].get("prompt", ""))
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ""
    with beside.open("rb") as file:
        data = file.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise InputError(
            f"'{beside}' is larger than {MAX_PROMPT_BYTES} bytes. Write a shorter prompt."
        )
    try:
        return " ".join(data.decode("utf-8").split())
    except UnicodeDecodeError as error:
        raise InputError(f"'{beside}' is not UTF-8 text. Save it as UTF-8.") from error
