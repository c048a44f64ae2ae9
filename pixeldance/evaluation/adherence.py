"""Text adherence: given the first frame only, is the motion made that the sentence asks for?

Cases are scenes of the sticker world in which one thing moves, chosen from those that the world
draws anyway, so sizes, speeds and captions are its own. The judge measures motion by optical flow
and knows of a case only where the character is in the first frame.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.motion import (
    Mask,
    classify_camera,
    classify_direction,
    fit_camera,
    track_object,
)
from pixeldance.evaluation.peers import Frames, Picture
from pixeldance.evaluation.suite import render_frames
from pixeldance.geometry import Size
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import CAMERAS, Background, Scene, StickerWorld

Kind = Literal["direction", "camera", "order"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DIRECTIONS = ("left", "right", "up", "down", "toward", "away")
CAMERA_MOTIONS = CAMERAS[1:]
STILL = "still"
STATIC = "static"
SEQUENCE_AMOUNT = 0.7
"""How long the motions of a sequence are, compared with single ones."""

_MIN_FRAMES = 5
_MIN_SIDE = 32
_MAX_TRIALS = 20
_SCENES_PER_CASE = 50_000
_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class AdherenceCase:
    """One request with a known answer.

    Attributes:
        kind: What is judged.
        seed: Of the caption; also meant for the model's noise.
        prompt: The caption.
        scene: What the world draws for it.
        truth: How it looks, ``frames height width 3``.
        mask: The character in the first frame.
        expected: The label that the truth deserves.
    """

    kind: Kind
    seed: int
    prompt: str
    scene: Scene
    truth: Frames
    mask: Mask
    expected: str

    @property
    def first_frame(self) -> Picture:
        """The only picture that the model is given."""
        picture: Picture = self.truth[0]
        return picture


def labels(kind: Kind) -> tuple[str, ...]:
    """What may be expected in cases of a kind.

    Args:
        kind: One of :data:`KINDS`.

    Returns:
        Directions, camera motions, or ``"one, then other"`` for all pairs of directions.

    Raises:
        InputError: If there is no such kind.
    """
    match kind:
        case "direction":
            return DIRECTIONS
        case "camera":
            return CAMERA_MOTIONS
        case "order":
            return tuple(_sequence(*pair) for pair in itertools.permutations(DIRECTIONS, 2))
    raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")


def adherence_cases(
    world: StickerWorld,
    *,
    kind: Kind,
    num_cases: int,
    width: int = 192,
    height: int = 192,
    num_frames: int = 25,
    fps: float = 12.0,
    seed_offset: int = 0,
) -> Iterator[AdherenceCase]:
    """Draw cases; equal arguments give equal cases, and more cases begin with the same ones.

    * ``direction``: one actor that moves once, a camera at rest; the six directions in turn.
    * ``camera``: one actor that stays, a camera that moves; the eight camera motions in turn.
    * ``order``: one actor that moves twice, a camera at rest; directions as they come.

    All have a photographic background: without texture nobody can tell what the camera does. And
    the judge is right about the truth of all of them: with thin characters, or one that explodes,
    it sometimes is not (2 of 48 directions, 3 of 40 orders, no camera of 72), and the next scene is
    taken.

    Args:
        world: Where the scenes come from; the held-out one for a fair test.
        kind: What is judged.
        num_cases: How many, at least 1.
        width: Pixels.
        height: Pixels.
        num_frames: Length of the clips, at least 5.
        fps: Frames per second.
        seed_offset: Seed of the first case; the others count on.

    Yields:
        AdherenceCase: One for each seed.

    Raises:
        InputError: If an argument is out of range.
        DataError: If the world has no such scene.
    """
    if num_cases < 1 or num_frames < _MIN_FRAMES or min(width, height) < _MIN_SIDE:
        raise InputError(
            f"Adherence needs at least 1 case of {_MIN_FRAMES} frames and sides of {_MIN_SIDE} "
            f"pixels, got {num_cases} of {num_frames} and {width}x{height}."
        )
    wanted = labels(kind)
    for number in range(num_cases):
        allowed = wanted if kind == "order" else (wanted[number % len(wanted)],)
        scenes = _scenes(world, kind, allowed, seed=seed_offset + number, aspect=width / height)
        for scene, expected in itertools.islice(scenes, _MAX_TRIALS):
            case = AdherenceCase(
                kind=kind,
                seed=seed_offset + number,
                prompt=describe(scene, seed_offset + number),
                scene=scene,
                truth=render_frames(
                    world, scene, size=Size(height, width), num_frames=num_frames, fps=fps
                ),
                mask=character_mask(world, scene, width=width, height=height),
                expected=expected,
            )
            if judge(case, case.truth) == expected:
                yield case
                break
        else:
            raise DataError(
                f"Case {seed_offset + number}: no scene that shows {' or '.join(allowed)} alone is "
                f"judged so at {width}x{height}. Use bigger pictures or another world."
            )


def judge(case: AdherenceCase, frames: Frames) -> str:
    """What is seen to happen in a clip that was made for a case.

    Args:
        case: The case; of it only the kind and the mask of the character are used.
        frames: A clip of the same size, at least 5 frames; its length may differ.

    Returns:
        A direction, ``"still"`` or ``"lost"`` (the character dissolves); a camera motion or
        ``"static"``; or two directions in sequence, those of the first and of the second half.

    Raises:
        InputError: If the clip has another size or is too short.
    """
    if frames.shape[1:] != case.first_frame.shape or len(frames) < _MIN_FRAMES:
        raise InputError(
            f"The clip must have at least {_MIN_FRAMES} frames of shape {case.first_frame.shape}, "
            f"got shape {frames.shape}."
        )
    if case.kind == "camera":
        return classify_camera(fit_camera(frames))
    path = track_object(frames, case.mask)
    if case.kind == "direction":
        return classify_direction(path)
    middle = len(frames) // 2
    halves = path.part(0, middle), path.part(middle, len(frames) - 1)
    return _sequence(*(classify_direction(half, amount=SEQUENCE_AMOUNT) for half in halves))


def confusion(expected: Sequence[str], seen: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count what was seen where something was expected.

    Args:
        expected: Label of each case.
        seen: What the judge says of each, as many.

    Returns:
        Counts by expected label, then by seen label, both in the order of their first appearance;
        what was never seen is left out.

    Raises:
        InputError: If the two differ in length.
    """
    if len(expected) != len(seen):
        raise InputError(
            f"There must be as many labels expected as seen, got {len(expected)} and {len(seen)}."
        )
    table: dict[str, dict[str, int]] = {}
    for one, other in zip(expected, seen, strict=True):
        row = table.setdefault(one, {})
        row[other] = row.get(other, 0) + 1
    return table


def character_mask(world: StickerWorld, scene: Scene, *, width: int, height: int) -> Mask:
    """Pixels of the first frame that the first shot's actors cover by more than half.

    The actors are drawn on black and on white: where they are opaque, both look the same.

    Args:
        world: Draws them.
        scene: Who is where.
        width: Pixels.
        height: Pixels.

    Returns:
        ``height width``.
    """
    shot = scene.shots[0]
    black, white = (
        world.render(
            replace(scene, shots=(replace(shot, background=_plain(shot.background, color)),)),
            height=height,
            width=width,
            num_frames=1,
        )[0]
        for color in (_BLACK, _WHITE)
    )
    mask: Mask = ((white - black).mean(dim=0) < 0.5).numpy()
    return mask


def _scenes(
    world: StickerWorld, kind: Kind, allowed: Sequence[str], *, seed: int, aspect: float
) -> Iterator[tuple[Scene, str]]:
    """Suitable ones of the run of the world's scenes that belongs to a seed, with their labels."""
    start = seed * _SCENES_PER_CASE
    for number in range(start, start + _SCENES_PER_CASE):
        scene = world.sample_scene(number, aspect=aspect)
        label = _label(scene, kind)
        if label is not None and label in allowed:
            yield scene, label


def _label(scene: Scene, kind: Kind) -> str | None:
    """What a scene is a case of, or None."""
    shot = scene.shots[0]
    if len(scene.shots) > 1 or len(shot.actors) > 1 or shot.background.panorama is None:
        return None
    motions = [action.motion for action in shot.actors[0].actions]
    camera = shot.camera.motion
    if kind == "camera":
        return camera if camera in CAMERA_MOTIONS and motions == [STILL] else None
    if camera != STATIC or any(motion not in DIRECTIONS for motion in motions):
        return None
    if kind == "direction":
        return motions[0] if len(motions) == 1 else None
    return _sequence(*motions) if len(motions) == 2 else None


def _sequence(first: str, second: str) -> str:
    return f"{first}, then {second}"


def _plain(background: Background, color: tuple[float, float, float]) -> Background:
    return replace(background, panorama=None, colors=(color, color))
