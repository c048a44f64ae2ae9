"""What truly moves where between the first and the last frame of a scene."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.worlds.assets import WorldAssets
from pixeldance.worlds.stickers import Actor, Scene, actor_path, camera_path, render_actor

CELL = 4  # pixels along a side of a place for which the motion is told
_HIDDEN = 0.5  # opacity from which an actor counts as in front


class TrueMotion(NamedTuple):
    """Motion between the first frame and the last.

    Attributes:
        flow: ``(2, 2, height / 4, width / 4)``, where each place of the first frame is in the last
            one, and the other way round: x then y, in pixels. Also known for what is hidden there.
        front: ``(2, 1, height / 4, width / 4)``, how much of each place an actor covers, 0 to 1.
    """

    flow: Tensor
    front: Tensor


def true_motion(
    assets: WorldAssets, scene: Scene, *, height: int, width: int, num_frames: int, fps: float
) -> TrueMotion:
    """Motion of a scene of one shot, from its geometry.

    Args:
        assets: The pictures.
        scene: One shot.
        height: Pixels, a multiple of 4.
        width: Pixels, a multiple of 4.
        num_frames: Length of the clip, at least 2; it decides which pose the last frame shows.
        fps: Frames per second.

    Returns:
        The motion.
    """
    (shot,) = scene.shots
    ends = torch.tensor([0.0, 1.0])
    camera = camera_path(shot, ends)
    rows, columns = height // CELL, width // CELL
    aspect = width / height
    x = ((torch.arange(columns) + 0.5) * 2 / columns - 1) * aspect
    y = (torch.arange(rows) + 0.5) * 2 / rows - 1
    screen = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # 2 rows columns, in units
    flow = torch.stack([_background_flow(camera, screen, end) for end in (0, 1)])
    front = torch.zeros(2, 1, rows, columns)
    for actor in shot.actors:
        # two frames of the sprite's loop, as far apart as the clip is long
        pace = fps / (num_frames - 1)
        sprite = render_actor(assets, actor, ends, camera, (height, width), pace)
        covered = F.avg_pool2d(sprite[:, 3:], CELL)
        for end in (0, 1):
            moved = _actor_flow(actor, camera, screen, end)
            flow[end] = torch.where(covered[end] >= _HIDDEN, moved, flow[end])
        front = torch.maximum(front, covered)
    return TrueMotion(flow * (height / 2), front)


def _background_flow(camera: tuple[Tensor, ...], screen: Tensor, end: int) -> Tensor:
    plane = _to_plane(screen, camera, end)
    return _to_screen(plane, camera, 1 - end) - screen


def _actor_flow(actor: Actor, camera: tuple[Tensor, ...], screen: Tensor, end: int) -> Tensor:
    x, y, scale, angle = actor_path(actor, torch.tensor([0.0, 1.0]))
    other = 1 - end
    plane = _to_plane(screen, camera, end)
    local = torch.stack([plane[0] - x[end], plane[1] - y[end]])
    turned = _rotated(local, angle[other] - angle[end]) * (scale[other] / scale[end])
    plane = torch.stack([turned[0] + x[other], turned[1] + y[other]])
    return _to_screen(plane, camera, other) - screen


def _to_plane(screen: Tensor, camera: tuple[Tensor, ...], end: int) -> Tensor:
    x, y, zoom, roll = (part[end] for part in camera)
    plane = _rotated(screen, roll) * zoom
    return torch.stack([plane[0] + x, plane[1] + y])


def _to_screen(plane: Tensor, camera: tuple[Tensor, ...], end: int) -> Tensor:
    x, y, zoom, roll = (part[end] for part in camera)
    return _rotated(torch.stack([plane[0] - x, plane[1] - y]), -roll) / zoom


def _rotated(points: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * points[0] - sin * points[1], sin * points[0] + cos * points[1]])
