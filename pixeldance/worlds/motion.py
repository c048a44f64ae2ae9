"""What truly moves where between the first and the last frame of a scene."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.models.carrying import FINE, NUM_DETOURS
from pixeldance.models.reading import NUM_SUBJECTS
from pixeldance.worlds.assets import WorldAssets
from pixeldance.worlds.stickers import Actor, Scene, actor_path, camera_path, render_actor

_HIDDEN = 0.5  # opacity from which an actor counts as in front


class TrueMotion(NamedTuple):
    """Motion between the first frame and the last.

    Attributes:
        flow: ``(2, 2, height / 4, width / 4)``, where each place of the first frame is in the last
            one, and the other way round: x then y, in pixels. Also known for what is hidden there.
        front: ``(2, 1, height / 4, width / 4)``, how much of each place an actor covers, 0 to 1.
        detour: ``(2, 3, 2, height / 4, width / 4)``, how far the place is from where uniform motion
            would have brought it after 1/4, 2/4 and 3/4 of the way from its own end.
    """

    flow: Tensor
    front: Tensor
    detour: Tensor


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
    moments = torch.linspace(0, 1, NUM_DETOURS + 2)
    ends = moments[[0, -1]]
    camera = camera_path(shot, moments)
    camera_at_ends = camera_path(shot, ends)
    rows, columns = height // FINE, width // FINE
    aspect = width / height
    x = ((torch.arange(columns) + 0.5) * 2 / columns - 1) * aspect
    y = (torch.arange(rows) + 0.5) * 2 / rows - 1
    screen = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # 2 rows columns, in units
    paths = torch.stack([_background_path(camera, screen, end) for end in (0, 1)])
    front = torch.zeros(2, 1, rows, columns)
    for actor in shot.actors:
        # two frames of the sprite's loop, as far apart as the clip is long
        pace = fps / (num_frames - 1)
        sprite = render_actor(assets, actor, ends, camera_at_ends, (height, width), pace)
        covered = F.avg_pool2d(sprite[:, 3:], FINE)
        for end in (0, 1):
            moved = _actor_path_on_screen(actor, moments, camera, screen, end)
            paths[end] = torch.where(covered[end] >= _HIDDEN, moved, paths[end])
        front = torch.maximum(front, covered)
    paths = paths * (height / 2)
    flow = paths[:, -1]
    uniform = moments[1:-1, None, None, None] * flow[:, None]
    return TrueMotion(flow, front, paths[:, :-1] - uniform)


class MotionInWords(NamedTuple):
    """What the text of a scene says about motion, in numbers that do not depend on the size.

    Attributes:
        camera: ``(2, 4, 4)``, the similarity of what stands still on the screen, from each end,
            after 1/4, 2/4, 3/4 and all of the way: shift in halves of the picture's sides, log of
            the scale, turn in radians.
        subjects: ``(3, 2, 4, 4)``, the same of each actor in the order in which they are named;
            they grow and turn around their own centres. Zero where there are fewer.
        named: ``(3,)``, 1 for those that there are, else 0.
    """

    camera: Tensor
    subjects: Tensor
    named: Tensor


def motion_in_words(scene: Scene) -> MotionInWords:
    """Motion of a scene of one shot, without its pictures.

    Args:
        scene: One shot.

    Returns:
        The motion.
    """
    (shot,) = scene.shots
    moments = torch.linspace(0, 1, NUM_DETOURS + 2)
    camera = camera_path(shot, moments)
    shift = torch.stack([camera[0], camera[1]], dim=1)
    sides = torch.tensor([scene.aspect, 1.0])
    similarities = []
    for here, there in _ways(len(moments)):
        moved = _rotated(shift[here] - shift[there], -camera[3][there]) / camera[2][there]
        scale = (camera[2][here] / camera[2][there]).log()
        turn = camera[3][here] - camera[3][there]
        similarities.append(torch.stack([*(moved / sides), scale, turn]))
    of_camera = torch.stack(similarities).view(2, NUM_DETOURS + 1, 4)
    subjects = torch.zeros(NUM_SUBJECTS, *of_camera.shape)
    for number, actor in enumerate(shot.actors):
        subjects[number] = _of_actor(actor, moments, camera, sides)
        subjects[number, ..., 2:] += of_camera[..., 2:]  # what the camera grows and turns
    named = (torch.arange(NUM_SUBJECTS) < len(shot.actors)).float()
    return MotionInWords(of_camera, subjects, named)


def _of_actor(actor: Actor, moments: Tensor, camera: tuple[Tensor, ...], sides: Tensor) -> Tensor:
    """Similarities ``(2, 4, 4)``: shift on the screen, scale and turn in the plane."""
    x, y, size, angle = actor_path(actor, moments)
    on_screen = torch.stack(
        [_to_screen(torch.stack([x[m], y[m]]), camera, m) for m in range(len(moments))]
    )
    of_actor = []
    for here, there in _ways(len(moments)):
        moved = (on_screen[there] - on_screen[here]) / sides
        grown = (size[there] / size[here]).log()
        of_actor.append(torch.stack([*moved, grown, angle[there] - angle[here]]))
    return torch.stack(of_actor).view(2, NUM_DETOURS + 1, 4)


def _ways(num_moments: int) -> list[tuple[int, int]]:
    """From each end to the later moments on its way: pairs of from and to."""
    return [(-end, there) for end in (0, 1) for there in _elapsed(num_moments, end)]


def _elapsed(num_moments: int, end: int) -> list[int]:
    """The later moments on the way from an end to the other one."""
    return list(range(1, num_moments)) if end == 0 else list(range(num_moments - 2, -1, -1))


def _background_path(camera: tuple[Tensor, ...], screen: Tensor, end: int) -> Tensor:
    """Displacements ``(moments, 2, rows, columns)`` on the way from an end."""
    plane = _to_plane(screen, camera, -end)
    moments = _elapsed(len(camera[0]), end)
    return torch.stack([_to_screen(plane, camera, moment) - screen for moment in moments])


def _actor_path_on_screen(
    actor: Actor, moments: Tensor, camera: tuple[Tensor, ...], screen: Tensor, end: int
) -> Tensor:
    """The same of what moves with an actor."""
    x, y, scale, angle = actor_path(actor, moments)
    plane = _to_plane(screen, camera, -end)
    local = torch.stack([plane[0] - x[-end], plane[1] - y[-end]])
    path = []
    for moment in _elapsed(len(moments), end):
        grown = scale[moment] / scale[-end]
        turned = _rotated(local, angle[moment] - angle[-end]) * grown
        plane = torch.stack([turned[0] + x[moment], turned[1] + y[moment]])
        path.append(_to_screen(plane, camera, moment) - screen)
    return torch.stack(path)


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
