"""The sticker world: animated characters on photographic backgrounds, seen by a moving camera.

A clip is made in three steps, each deterministic: :meth:`StickerWorld.sample_scene` turns a seed
into a :class:`Scene` (pure data: who, where, which motion, which camera),
:meth:`StickerWorld.render` draws it at any size, length and frame rate, and
:func:`pixeldance.worlds.captions.describe` says in words what happens.

Coordinates: the background is a plane measured in *units* of half the picture height, y down,
origin where the camera looks at half time. The camera maps a screen point ``q`` (same units) to the
plane: ``p = position + zoom * rotation(roll) @ q``. Characters stand in the plane, so the camera
moves them too.
"""

import hashlib
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.worlds.assets import SPRITE_FPS, SPRITE_SIZE, WorldAssets, load_assets

Split = Literal["train", "heldout"]
HELDOUT_PANORAMAS = ("dawn-512", "lobby-512", "courtyard-1024")

MOTIONS = (
    "still",
    "left",
    "right",
    "up",
    "down",
    "toward",
    "away",
    "spin",
    "bounce",
    "arc left",
    "arc right",
    "orbit",
    "enter left",
    "enter right",
    "leave left",
    "leave right",
)
CAMERAS = (
    "static",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll left",
    "roll right",
)
_SEQUENCE_MOTIONS = ("left", "right", "up", "down", "toward", "away", "spin", "bounce")
_FOLLOW_MOTIONS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Character:
    """One row of ``characters.tsv``: id, noun phrase with article, what its animation shows."""

    id: str
    noun: str
    verb: str


@dataclass(frozen=True)
class Action:
    """One motion over a part of the clip.

    Attributes:
        motion: One of :data:`MOTIONS`, or ``"swap"``.
        amount: Size of the motion: units for a shift, log scale for toward/away, radians for spin.
        eased: Whether it starts and stops softly.
    """

    motion: str
    amount: float
    eased: bool


@dataclass(frozen=True)
class Actor:
    """A character in the scene.

    Attributes:
        character: Who.
        actions: One or two actions, each taking an equal share of the shot.
        position: Where it starts, in units.
        size: Half its height, in units.
        phase: First frame of its loop, as a fraction.
    """

    character: Character
    actions: tuple[Action, ...]
    position: tuple[float, float]
    size: float
    phase: float


@dataclass(frozen=True)
class Camera:
    """What the camera does. ``follow`` cameras keep the first actor where it is on the screen."""

    motion: str
    amount: float


@dataclass(frozen=True)
class Background:
    """A view into a panorama, or a vertical gradient between two colours if ``panorama`` is None.

    Attributes:
        panorama: Name in the assets, or None.
        yaw: Horizontal centre, as a fraction of the width.
        pitch: Vertical centre, as a fraction of the height.
        field: Half of the view's height, as a fraction of the panorama's height.
        mirrored: Whether the panorama is flipped.
        colors: Top and bottom colour, RGB in [0, 1], of a gradient.
    """

    panorama: str | None
    yaw: float
    pitch: float
    field: float
    mirrored: bool
    colors: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Shot:
    """One uncut stretch: its background, camera and actors (drawn in order)."""

    background: Background
    camera: Camera
    actors: tuple[Actor, ...]


@dataclass(frozen=True)
class Scene:
    """One clip: one shot, or two with a cut half way; ``aspect`` is width / height."""

    shots: tuple[Shot, ...]
    aspect: float

    @property
    def is_simple(self) -> bool:
        """Whether it is one shot of one actor by a camera that stands still."""
        shot = self.shots[0]
        is_alone = len(self.shots) == 1 and len(shot.actors) == 1
        return is_alone and shot.camera.motion == "static"


def is_heldout(identifier: str) -> bool:
    """Whether a character is kept out of training: one in ten, by a hash of its id."""
    return hashlib.sha256(f"heldout:{identifier}".encode()).digest()[0] < 26


def read_characters() -> tuple[Character, ...]:
    """The usable rows of the hand-written table ``characters.tsv``."""
    lines = (Path(__file__).with_name("characters.tsv")).read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    rows = (dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:])
    return tuple(Character(r["id"], r["noun"], r["verb"]) for r in rows if r["use"] == "yes")


class StickerWorld:
    """Scenes from one split of the characters and backgrounds.

    Args:
        split: ``"train"``, or ``"heldout"``: only characters and panoramas never seen in training.
        assets: The pictures; the cached ones if absent.
    """

    def __init__(self, split: Split = "train", assets: WorldAssets | None = None) -> None:
        heldout = split == "heldout"
        self.assets = assets or load_assets()
        self.characters = [
            c
            for c in read_characters()
            if c.id in self.assets.slices and is_heldout(c.id) == heldout
        ]
        self.panoramas = [
            name for name in self.assets.panoramas if (name in HELDOUT_PANORAMAS) == heldout
        ]

    def sample_scene(self, seed: int, *, aspect: float = 1.0) -> Scene:
        """Scene number ``seed``; the same seed gives the same scene.

        Args:
            seed: Any integer.
            aspect: Width / height of the picture, so that actors stay inside.

        Returns:
            The scene: one shot, or two with a cut half way.
        """
        rng = random.Random(seed)
        shots = [self._sample_shot(rng, aspect)]
        if rng.random() < 0.04:
            shots.append(self._sample_shot(rng, aspect))
        return Scene(tuple(shots), aspect)

    def _sample_shot(self, rng: random.Random, aspect: float) -> Shot:
        camera = _sample_camera(rng, aspect)
        count = rng.choices((1, 2, 3), weights=(0.62, 0.3, 0.08))[0]
        if count == 1 and rng.random() < 0.08:
            return self._sample_follow(rng, aspect)
        if count == 2 and rng.random() < 0.12:
            actors = self._sample_swap(rng, aspect)
        else:
            chosen = rng.sample(self.characters, count)
            actors = tuple(_sample_actor(rng, character, aspect, count) for character in chosen)
        return Shot(self._sample_background(rng), camera, actors)

    def _sample_follow(self, rng: random.Random, aspect: float) -> Shot:
        motion = rng.choice(_FOLLOW_MOTIONS)
        action = Action(motion, _amount(rng, motion, aspect), eased=rng.random() < 0.5)
        actor = Actor(
            rng.choice(self.characters),
            (action,),
            (rng.uniform(-0.3, 0.3) * aspect, rng.uniform(-0.2, 0.3)),
            rng.uniform(0.32, 0.6),
            rng.random(),
        )
        return Shot(self._sample_background(rng), Camera("follow", action.amount), (actor,))

    def _sample_swap(self, rng: random.Random, aspect: float) -> tuple[Actor, ...]:
        first, second = rng.sample(self.characters, 2)
        reach = rng.uniform(0.35, 0.6) * aspect
        height = rng.uniform(-0.2, 0.3)
        eased = rng.random() < 0.7
        size = min(rng.uniform(0.28, 0.45), 0.8 * reach)
        swap = (Action("swap", 2 * reach, eased),)
        back = (Action("swap", -2 * reach, eased),)
        return (
            Actor(first, swap, (-reach, height), size, rng.random()),
            Actor(second, back, (reach, height), size, rng.random()),
        )

    def _sample_background(self, rng: random.Random) -> Background:
        def color() -> tuple[float, float, float]:
            return rng.random(), rng.random(), rng.random()

        return Background(
            panorama=rng.choice(self.panoramas) if rng.random() < 0.94 else None,
            yaw=rng.random(),
            pitch=rng.uniform(0.42, 0.58),
            field=rng.uniform(0.16, 0.27),
            mirrored=rng.random() < 0.5,
            colors=(color(), color()),
        )

    def render(
        self, scene: Scene, *, height: int, width: int, num_frames: int, fps: float = 12.0
    ) -> Tensor:
        """Draw a scene.

        Args:
            scene: What to draw.
            height: Pixels.
            width: Pixels; ``width / height`` should be the scene's ``aspect``.
            num_frames: Frames, at least 1.
            fps: Frames per second; it sets the pace of the characters' own animation only.

        Returns:
            Frames ``(num_frames, 3, height, width)``, float32 in [0, 1]. Motions span the whole
            clip, whatever its length.
        """
        cut = num_frames if len(scene.shots) == 1 else max(1, num_frames // 2)
        parts = [_render_shot(self.assets, scene.shots[0], height, width, cut, fps)]
        if cut < num_frames:
            parts.append(
                _render_shot(self.assets, scene.shots[1], height, width, num_frames - cut, fps)
            )
        return torch.cat(parts)


def _sample_camera(rng: random.Random, aspect: float) -> Camera:
    motion = "static" if rng.random() < 0.4 else rng.choice(CAMERAS[1:])
    amount = {
        "static": 0.0,
        "pan": rng.uniform(0.25, 0.7) * aspect,
        "tilt": rng.uniform(0.2, 0.5),
        "zoom": rng.uniform(0.3, 0.6),
        "roll": rng.uniform(0.15, 0.4),
    }[motion.split()[0]]
    return Camera(motion, amount)


def _amount(rng: random.Random, motion: str, aspect: float) -> float:
    """Size of a motion, in the unit that :class:`Action` names for it."""
    kind = motion.split()[0]
    return {
        "still": 0.0,
        "left": rng.uniform(0.5, 1.1) * aspect,
        "right": rng.uniform(0.5, 1.1) * aspect,
        "up": rng.uniform(0.4, 0.9),
        "down": rng.uniform(0.4, 0.9),
        "toward": rng.uniform(0.35, 0.75),
        "away": rng.uniform(0.35, 0.75),
        "spin": rng.uniform(1.5, 4.0) * rng.choice((-1, 1)),
        "bounce": rng.uniform(0.25, 0.5),
        "arc": rng.uniform(0.5, 1.0) * aspect,
        "orbit": rng.uniform(0.25, 0.45),
        "enter": rng.uniform(1.0, 1.4) * aspect,
        "leave": rng.uniform(1.2, 1.6) * aspect,
    }[kind]


def _sample_actor(rng: random.Random, character: Character, aspect: float, count: int) -> Actor:
    if rng.random() < 0.15:
        motions = rng.sample(_SEQUENCE_MOTIONS, 2)
        actions = tuple(
            Action(motion, 0.7 * _amount(rng, motion, aspect), rng.random() < 0.7)
            for motion in motions
        )
    else:
        motion = "still" if rng.random() < 0.12 else rng.choice(MOTIONS[1:])
        actions = (Action(motion, _amount(rng, motion, aspect), rng.random() < 0.5),)
    size = rng.uniform(0.3, 0.62) * (1.0 if count == 1 else 0.8)
    if any(action.motion == "toward" for action in actions):
        size *= 0.7
    actor = Actor(character, actions, (0.0, 0.0), size, rng.random())
    return replace(actor, position=_place(rng, actor, aspect))


def _place(rng: random.Random, actor: Actor, aspect: float) -> tuple[float, float]:
    """A start from which the path stays in the picture (entering and leaving cross its side)."""
    x, y, _, _ = actor_path(actor, torch.linspace(0, 1, 17))
    place = []
    for path, half in ((x, aspect), (y, 1.0)):
        margin = min(0.55 * actor.size, 0.6 * half)
        low = -half + margin - float(path.min())
        high = half - margin - float(path.max())
        place.append(rng.uniform(low, high) if low < high else (low + high) / 2)
    motion = actor.actions[0].motion
    side = aspect + actor.size
    if motion == "enter left":
        place[0] = -side
    elif motion == "enter right":
        place[0] = side
    elif motion == "leave left":
        place[0] = actor.actions[0].amount - side - rng.uniform(0, 0.2)
    elif motion == "leave right":
        place[0] = side + rng.uniform(0, 0.2) - actor.actions[0].amount
    return place[0], place[1]


def actor_path(actor: Actor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Path in the plane: x, y (units), scale and angle at times in [0, 1] of the shot."""
    x = torch.full_like(time, actor.position[0])
    y = torch.full_like(time, actor.position[1])
    log_scale, angle = torch.zeros_like(time), torch.zeros_like(time)
    share = 1.0 / len(actor.actions)
    for index, action in enumerate(actor.actions):
        u = ((time - index * share) / share).clamp(0, 1)
        if action.eased:
            u = u * u * (3 - 2 * u)
        dx, dy, dscale, dangle = _displacement(action, u)
        x, y, log_scale, angle = x + dx, y + dy, log_scale + dscale, angle + dangle
    return x, y, log_scale.exp(), angle


def _displacement(action: Action, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shift (units), log scale and rotation (radians) after a part ``u`` in [0, 1] of an action."""
    zero = torch.zeros_like(u)
    amount = action.amount
    kind, _, side = action.motion.partition(" ")
    sign = -1.0 if side == "left" else 1.0
    match kind:
        case "still":
            return zero, zero, zero, zero
        case "left":
            return -amount * u, zero, zero, zero
        case "right":
            return amount * u, zero, zero, zero
        case "up":
            return zero, -amount * u, zero, zero
        case "down":
            return zero, amount * u, zero, zero
        case "toward":
            return zero, zero, amount * u, zero
        case "away":
            return zero, zero, -amount * u, zero
        case "spin":
            return zero, zero, zero, amount * u
        case "bounce":
            return zero, -amount * (2 * math.pi * u).sin().abs(), zero, zero
        case "arc":
            return sign * amount * u, -0.6 * 4 * u * (1 - u), zero, zero
        case "orbit":
            turn = 2 * math.pi * u
            return amount * turn.sin(), amount * (1 - turn.cos()), zero, zero
        case "enter":  # "enter left" comes in from the left side
            return -sign * amount * u, zero, zero, zero
        case "leave":
            return sign * amount * u, zero, zero, zero
        case "swap":
            return amount * u, -0.25 * amount / abs(amount) * (math.pi * u).sin(), zero, zero
    raise ValueError(f"motion must be one of {', '.join(MOTIONS)} or swap, got {action.motion!r}.")


def camera_path(shot: Shot, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Camera at times in [0, 1]: x, y (units), zoom (plane per screen unit), roll (radians)."""
    zero = torch.zeros_like(time)
    one = torch.ones_like(time)
    amount = shot.camera.amount
    centred = time - 0.5
    kind, _, side = shot.camera.motion.partition(" ")
    match kind:
        case "static":
            return zero, zero, one, zero
        case "pan":
            return (amount if side == "right" else -amount) * centred, zero, one, zero
        case "tilt":
            return zero, (amount if side == "down" else -amount) * centred, one, zero
        case "zoom":
            inward = -amount * time if side == "in" else -amount * (1 - time)
            return zero, zero, inward.exp(), zero
        case "roll":
            sign = -1.0 if side == "right" else 1.0
            return zero, zero, 0.85 * one, sign * amount * centred
        case "follow":
            x, y, _, _ = actor_path(shot.actors[0], time)
            return x - shot.actors[0].position[0], y - shot.actors[0].position[1], one, zero
    raise ValueError(f"camera must be one of {', '.join(CAMERAS)} or follow, got {kind!r}.")


def _render_shot(
    assets: WorldAssets, shot: Shot, height: int, width: int, num_frames: int, fps: float
) -> Tensor:
    time = torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.zeros(1)
    camera = camera_path(shot, time)
    video = _render_background(assets, shot.background, camera, height, width)
    for actor in shot.actors:
        sprite = render_actor(assets, actor, time, camera, (height, width), fps)
        video = video * (1 - sprite[:, 3:]) + sprite[:, :3]
    return video.clamp_(0, 1)


def _affine(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """Stack the entries of 2 x 3 matrices, one per frame."""
    return torch.stack([torch.stack([xx, xy, x], -1), torch.stack([yx, yy, y], -1)], -2)


def _render_background(
    assets: WorldAssets,
    background: Background,
    camera: tuple[Tensor, Tensor, Tensor, Tensor],
    height: int,
    width: int,
) -> Tensor:
    x, y, zoom, roll = camera
    picture = _background_picture(assets, background)
    rows, columns = picture.shape[1:]
    # one unit is `field * rows` pixels; grid coordinates run over [-1, 1]
    unit = background.field * rows
    to_x, to_y = 2 * unit / columns, 2 * unit / rows
    pitch = 2 * background.pitch - 1
    cos, sin = zoom * roll.cos(), zoom * roll.sin()
    aspect = width / height
    theta = _affine(
        to_x * cos * aspect,
        -to_x * sin,
        to_x * x,
        to_y * sin * aspect,
        to_y * cos,
        pitch + to_y * y,
    )
    grid = F.affine_grid(theta, [len(x), 3, height, width], align_corners=False)
    return F.grid_sample(
        picture[None].expand(len(x), -1, -1, -1),
        grid,
        padding_mode="reflection",
        align_corners=False,
    )


def _background_picture(assets: WorldAssets, background: Background) -> Tensor:
    """The part of the panorama that a camera may see, turned so that the view is in its middle."""
    if background.panorama is None:
        top, bottom = (torch.tensor(color)[:, None, None] for color in background.colors)
        mix = torch.linspace(0, 1, 128)[None, :, None]
        return ((1 - mix) * top + mix * bottom).expand(3, 128, 256)
    panorama = assets.panoramas[background.panorama]
    columns = panorama.shape[1]
    shift = columns // 2 - round(background.yaw * columns)
    turned: npt.NDArray[np.uint8] = np.roll(panorama, shift, axis=1)
    if background.mirrored:
        turned = turned[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).float() / 255


def render_actor(
    assets: WorldAssets,
    actor: Actor,
    time: Tensor,
    camera: tuple[Tensor, Tensor, Tensor, Tensor],
    size: tuple[int, int],
    fps: float,
) -> Tensor:
    """Premultiplied RGBA ``(frames, 4, height, width)`` of one actor as the camera sees it."""
    height, width = size
    start, length = assets.slices[actor.character.id]
    steps = torch.arange(len(time)) * (SPRITE_FPS / fps) + actor.phase * length
    frames = assets.sprites[start + (steps.long() % length).numpy()]
    sprite = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255

    x, y, scale, angle = actor_path(actor, time)
    camera_x, camera_y, zoom, roll = camera
    # plane -> screen: rotate back by the roll and divide by the zoom
    dx, dy = x - camera_x, y - camera_y
    cos, sin = roll.cos() / zoom, roll.sin() / zoom
    screen_x, screen_y = cos * dx + sin * dy, cos * dy - sin * dx
    half = actor.size * scale / zoom
    while sprite.shape[-1] > 16 and float(half.max()) * height < 0.55 * sprite.shape[-1]:
        sprite = F.avg_pool2d(sprite, 2)  # never skip pixels when drawing small

    turn = angle - roll
    cos, sin = turn.cos() / half, turn.sin() / half
    aspect = width / height
    theta = _affine(
        cos * aspect,
        sin,
        -(cos * screen_x + sin * screen_y),
        -sin * aspect,
        cos,
        -(cos * screen_y - sin * screen_x),
    )
    grid = F.affine_grid(theta, [len(time), 4, height, width], align_corners=False)
    return F.grid_sample(sprite, grid, padding_mode="zeros", align_corners=False)


assert SPRITE_SIZE & (SPRITE_SIZE - 1) == 0, "sprites are halved repeatedly"
