"""The world: same seed, same clip; and everything moves the way its name says."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_world import make_assets, plain
from torch import Tensor

from pixeldance.worlds.assets import WorldAssets
from pixeldance.worlds.stickers import (
    CAMERAS,
    HELDOUT_PANORAMAS,
    MOTIONS,
    Action,
    Actor,
    Background,
    Camera,
    Scene,
    Shot,
    StickerWorld,
    is_heldout,
    read_characters,
)

ASPECT = 1.5
HEIGHT, WIDTH = 48, 72
STATIC = Camera("static", 0.0)


@pytest.fixture(scope="module")
def assets() -> WorldAssets:
    return make_assets()


@pytest.fixture(scope="module")
def world(assets: WorldAssets) -> StickerWorld:
    return StickerWorld("train", assets)


def sampled_shots(world: StickerWorld, motion: str, count: int = 3) -> list[Shot]:
    """Shots as the world draws them, one actor and one action, on black under a still camera."""

    def found() -> Iterator[Shot]:
        for seed in range(20000):
            shot = world.sample_scene(seed, aspect=ASPECT).shots[0]
            actions = shot.actors[0].actions
            is_swap = motion == "swap"
            if shot.camera.motion == "follow" or len(shot.actors) != 1 + is_swap:
                continue
            if len(actions) == 1 and actions[0].motion == motion:
                yield Shot(plain(), STATIC, shot.actors)

    shots = found()
    return [next(shots) for _ in range(count)]


def render(
    world: StickerWorld, *shots: Shot, num_frames: int = 9, channel: int | None = None
) -> Tensor:
    """Brightness ``(frames, HEIGHT, WIDTH)`` of the actors, or one colour of it."""
    video = world.render(Scene(shots, ASPECT), height=HEIGHT, width=WIDTH, num_frames=num_frames)
    return video.sum(1) if channel is None else video[:, channel]


def centre(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid x, y in units of half the height, right and down being positive; NaN if empty."""
    y = (torch.arange(HEIGHT) + 0.5) * 2 / HEIGHT - 1
    x = ((torch.arange(WIDTH) + 0.5) * 2 / WIDTH - 1) * ASPECT
    mass = frames.sum((1, 2))
    return (frames.sum(1) * x).sum(1) / mass, (frames.sum(2) * y).sum(1) / mass


def test_the_same_seed_gives_the_same_clip(world: StickerWorld, assets: WorldAssets) -> None:
    again = StickerWorld("train", assets)
    for seed in range(5):
        scene = world.sample_scene(seed, aspect=ASPECT)
        assert scene == again.sample_scene(seed, aspect=ASPECT)
        first, second = (w.render(scene, height=16, width=24, num_frames=3) for w in (world, again))
        assert torch.equal(first, second)


def test_other_seeds_give_other_scenes(world: StickerWorld) -> None:
    scenes = {world.sample_scene(seed) for seed in range(100)}
    assert len(scenes) == 100


def test_splits_share_neither_characters_nor_panoramas(assets: WorldAssets) -> None:
    train, heldout = StickerWorld("train", assets), StickerWorld("heldout", assets)
    for mine, other in (
        ({c.id for c in train.characters}, {c.id for c in heldout.characters}),
        (set(train.panoramas), set(heldout.panoramas)),
    ):
        assert mine
        assert other
        assert not mine & other
    assert set(heldout.panoramas) == set(HELDOUT_PANORAMAS)
    shot = heldout.sample_scene(0).shots[0]
    assert all(is_heldout(actor.character.id) for actor in shot.actors)


def test_a_tenth_of_the_characters_is_held_out() -> None:
    characters = read_characters()
    share = sum(is_heldout(c.id) for c in characters) / len(characters)
    assert share == pytest.approx(0.1, abs=0.03)


def test_characters_without_pictures_are_left_out(assets: WorldAssets) -> None:
    kept = dict(list(assets.slices.items())[:40])
    world = StickerWorld("train", replace(assets, slices=kept))
    assert {c.id for c in world.characters} < set(kept)


@pytest.mark.parametrize("num_frames", [1, 5, 25])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (40, 16)])
def test_clips_have_the_shape_asked_for(
    world: StickerWorld, num_frames: int, height: int, width: int
) -> None:
    scenes = [world.sample_scene(seed, aspect=width / height) for seed in range(60)]
    cut = next(scene for scene in scenes if len(scene.shots) == 2)
    for scene in (scenes[0], cut):
        video = world.render(scene, height=height, width=width, num_frames=num_frames)
        assert video.shape == (num_frames, 3, height, width)
        assert video.dtype == torch.float32
        assert 0 <= video.min() < video.max() <= 1


def test_a_clip_has_the_same_ends_whatever_its_length(world: StickerWorld) -> None:
    scene = Scene((sampled_shots(world, "left")[0],), ASPECT)
    short, long = (
        world.render(scene, height=16, width=24, num_frames=n, fps=12.0) for n in (5, 17)
    )
    torch.testing.assert_close(short[[0, 2, 4]], long[[0, 8, 16]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_a_straight_motion_goes_its_way(
    world: StickerWorld, motion: str, axis: int, sign: int
) -> None:
    for shot in sampled_shots(world, motion):
        path = centre(render(world, shot))
        steps = sign * path[axis].diff()
        assert steps.min() > 0
        amount = shot.actors[0].actions[0].amount
        assert sign * (path[axis][-1] - path[axis][0]) == pytest.approx(amount, abs=0.03)
        assert path[1 - axis].diff().abs().max() < 0.03


def test_still_means_still(world: StickerWorld) -> None:
    for shot in sampled_shots(world, "still"):
        frames = render(world, shot)
        torch.testing.assert_close(frames, frames[:1].expand_as(frames), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("motion", "sign"), [("toward", 1), ("away", -1)])
def test_coming_closer_grows_and_going_away_shrinks(
    world: StickerWorld, motion: str, sign: int
) -> None:
    for shot in sampled_shots(world, motion):
        area = render(world, shot).sum((1, 2))
        assert (sign * area.log().diff()).min() > 0
        growth = sign * float((area[-1] / area[0]).log())
        assert growth == pytest.approx(2 * shot.actors[0].actions[0].amount, rel=0.2)


def test_spinning_turns_on_the_spot(world: StickerWorld) -> None:
    for shot in sampled_shots(world, "spin"):
        red, green = (centre(render(world, shot, channel=c)) for c in (0, 1))
        turned = torch.atan2(green[1] - red[1], green[0] - red[0])
        amount = shot.actors[0].actions[0].amount
        assert math.cos(float(turned[-1] - turned[0]) - amount) > 0.99
        x, y = centre(render(world, shot))
        assert max(x.diff().abs().max(), y.diff().abs().max()) < 0.03


def test_bouncing_goes_up_and_comes_down_twice(world: StickerWorld) -> None:
    for shot in sampled_shots(world, "bounce"):
        x, y = centre(render(world, shot, num_frames=17))
        amount = shot.actors[0].actions[0].amount
        assert x.diff().abs().max() < 0.03
        ground = y[[0, 8, 16]] if not shot.actors[0].actions[0].eased else y[[0, 16]]
        assert ground.std() < 0.03
        assert y[0] - y.min() == pytest.approx(amount, abs=0.1)
        rises = (y.diff() < -1e-3).int().diff() == 1
        assert int(rises.sum()) + int(y[1] < y[0] - 1e-3) == 2


@pytest.mark.parametrize(("motion", "sign"), [("arc left", -1), ("arc right", 1)])
def test_leaping_crosses_the_picture_in_an_arc(world: StickerWorld, motion: str, sign: int) -> None:
    for shot in sampled_shots(world, motion):
        x, y = centre(render(world, shot))
        assert (sign * x.diff()).min() > 0
        assert y[-1] == pytest.approx(float(y[0]), abs=0.03)
        assert y[0] - y[4] == pytest.approx(0.6, abs=0.05)


def test_circling_returns_to_its_start(world: StickerWorld) -> None:
    for shot in sampled_shots(world, "orbit"):
        x, y = centre(render(world, shot, num_frames=17))
        radius = shot.actors[0].actions[0].amount
        assert (float(x[-1]), float(y[-1])) == pytest.approx((float(x[0]), float(y[0])), abs=0.03)
        distance = torch.hypot(x - x[0], y - (y[0] + radius))
        torch.testing.assert_close(distance, torch.full_like(distance, radius), atol=0.04, rtol=0)


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_entering_starts_outside(world: StickerWorld, side: str, sign: int) -> None:
    for shot in sampled_shots(world, f"enter {side}"):
        frames = render(world, shot)
        mass, (x, _) = frames.sum((1, 2)), centre(frames)
        assert mass[0] < 1e-3
        assert mass[-1] > 10
        seen = x[mass > 1]
        assert sign * seen[0] > 0.5
        assert (sign * seen.diff()).max() < 0


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_leaving_ends_outside(world: StickerWorld, side: str, sign: int) -> None:
    for shot in sampled_shots(world, f"leave {side}"):
        frames = render(world, shot)
        mass, (x, _) = frames.sum((1, 2)), centre(frames)
        assert mass[-1] < 1e-3
        assert mass[0] > 10
        seen = x[mass > 1]
        assert sign * seen[-1] > 0.5
        assert (sign * seen.diff()).min() > 0


def test_swapping_exchanges_two_places(world: StickerWorld) -> None:
    for shot in sampled_shots(world, "swap"):
        one, two = (centre(render(world, replace(shot, actors=(a,)))) for a in shot.actors)
        assert float(one[0][0]) < float(two[0][0]) - 0.4
        for axis in (0, 1):
            assert float(one[axis][-1]) == pytest.approx(float(two[axis][0]), abs=0.03)
            assert float(two[axis][-1]) == pytest.approx(float(one[axis][0]), abs=0.03)
        assert one[1][4] != pytest.approx(float(two[1][4]), abs=0.1)  # they pass each other


def test_all_motions_and_cameras_occur(world: StickerWorld) -> None:
    shots = [shot for seed in range(3000) for shot in world.sample_scene(seed).shots]
    actors = [actor for shot in shots for actor in shot.actors]
    assert {a.motion for actor in actors for a in actor.actions} == {*MOTIONS, "swap"}
    assert {shot.camera.motion for shot in shots} == {*CAMERAS, "follow"}
    assert {len(shot.actors) for shot in shots} == {1, 2, 3}
    assert {len(actor.actions) for actor in actors} == {1, 2}


def test_motions_in_place_stay_inside_the_picture(world: StickerWorld) -> None:
    for motion in ("left", "right", "up", "down", "arc left", "orbit"):
        for shot in sampled_shots(world, motion, count=5):
            x, y = centre(render(world, shot))
            assert x.abs().max() < ASPECT
            assert y.abs().max() < 1


def test_two_actions_follow_each_other(world: StickerWorld) -> None:
    actor = Actor(
        read_characters()[0],
        (Action("up", 0.5, False), Action("left", 0.6, True)),
        (0.2, 0.3),
        0.4,
        0.0,
    )
    x, y = centre(render(world, Shot(plain(), STATIC, (actor,))))
    assert x[:5].diff().abs().max() < 0.03
    assert y[4] - y[0] == pytest.approx(-0.5, abs=0.03)
    assert y[4:].diff().abs().max() < 0.03
    assert x[8] - x[4] == pytest.approx(-0.6, abs=0.03)


def test_a_simple_scene_is_one_shot_of_one_actor_by_a_still_camera(world: StickerWorld) -> None:
    shot = sampled_shots(world, "left")[0]
    assert Scene((shot,), ASPECT).is_simple
    for shots in (
        (shot, shot),
        (replace(shot, camera=Camera("pan left", 0.3)),),
        (replace(shot, actors=shot.actors * 2),),
    ):
        assert not Scene(shots, ASPECT).is_simple


def test_later_actors_stand_in_front(world: StickerWorld) -> None:
    actor = Actor(read_characters()[0], (Action("still", 0.0, False),), (0.0, 0.0), 0.8, 0.0)
    turned = replace(actor, actions=(Action("spin", math.pi, False),))
    below, above = (
        render(world, Shot(plain(), STATIC, a), channel=0) for a in ((turned,), (actor,))
    )
    both = render(world, Shot(plain(), STATIC, (turned, actor)), channel=0)
    assert not torch.allclose(below[-1], above[-1], atol=0.1)
    torch.testing.assert_close(both[-1, 24, 30:42], above[-1, 24, 30:42], atol=1e-3, rtol=0)


def spot_world(assets: WorldAssets, x: float, y: float) -> tuple[StickerWorld, Background]:
    """A black panorama with one bright square, seen at (x, y) units from the middle."""
    panorama = np.zeros((128, 256, 3), np.uint8)
    row, column = 64 + round(32 * y), 128 + round(32 * x)
    panorama[row - 4 : row + 4, column - 4 : column + 4] = 255
    world = StickerWorld("train", replace(assets, panoramas={"city-512": panorama}))
    return world, replace(plain(), panorama="city-512", field=0.25)


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ("static", (0, 0)),
        ("pan left", (0.4, 0)),
        ("pan right", (-0.4, 0)),
        ("tilt up", (0, 0.4)),
        ("tilt down", (0, -0.4)),
    ],
)
def test_the_background_moves_against_the_camera(
    assets: WorldAssets, camera: str, expected: tuple[float, float]
) -> None:
    world, background = spot_world(assets, 0.0, 0.0)
    x, y = centre(render(world, Shot(background, Camera(camera, 0.4), ())))
    assert (float(x[-1] - x[0]), float(y[-1] - y[0])) == pytest.approx(expected, abs=0.02)
    assert abs(float(x[4])) < 0.03  # half way it looks at the middle
    assert abs(float(y[4])) < 0.03


@pytest.mark.parametrize(("camera", "sign"), [("zoom in", 1), ("zoom out", -1)])
def test_zooming_in_enlarges(assets: WorldAssets, camera: str, sign: int) -> None:
    world, background = spot_world(assets, 0.0, 0.0)
    area = render(world, Shot(background, Camera(camera, 0.5), ())).sum((1, 2))
    assert float((area[-1] / area[0]).log()) == pytest.approx(2 * sign * 0.5, abs=0.1)


@pytest.mark.parametrize(("camera", "sign"), [("roll left", -1), ("roll right", 1)])
def test_rolling_turns_the_view(assets: WorldAssets, camera: str, sign: int) -> None:
    world, background = spot_world(assets, 0.7, 0.0)
    x, y = centre(render(world, Shot(background, Camera(camera, 0.4), ())))
    # The right side of the picture rises when the view turns left (anticlockwise).
    assert float(torch.atan2(y, x)[-1] - torch.atan2(y, x)[0]) == pytest.approx(
        sign * 0.4, abs=0.03
    )


@pytest.mark.parametrize(
    "camera", [Camera("pan left", 0.5), Camera("zoom in", 0.4), Camera("roll left", 0.4)]
)
def test_characters_stand_on_the_background(assets: WorldAssets, camera: Camera) -> None:
    world, background = spot_world(assets, 0.5, 0.25)
    actor = Actor(read_characters()[0], (Action("still", 0.0, False),), (0.5, 0.25), 0.25, 0.0)
    spot = centre(render(world, Shot(background, camera, ())))
    character = centre(render(world, Shot(plain(), camera, (actor,))))
    for there, here in zip(spot, character, strict=True):
        torch.testing.assert_close(there, here, atol=0.03, rtol=0)


def test_a_following_camera_keeps_its_actor_in_place(world: StickerWorld) -> None:
    scenes = (world.sample_scene(seed, aspect=ASPECT) for seed in range(2000))
    shots = [s.shots[0] for s in scenes if s.shots[0].camera.motion == "follow"][:5]
    assert len(shots) == 5
    for shot in shots:
        x, y = centre(render(world, replace(shot, background=plain())))
        assert max(x.diff().abs().max(), y.diff().abs().max()) < 0.02


def test_behind_a_followed_actor_the_background_moves(assets: WorldAssets) -> None:
    world, background = spot_world(assets, 0.0, 0.0)
    actor = Actor(read_characters()[0], (Action("right", 0.6, False),), (0.0, 0.7), 0.1, 0.0)
    frames = render(world, Shot(background, Camera("follow", 0.6), (actor,)), channel=2)
    x, _ = centre(frames)  # the actor has no blue
    assert x[-1] - x[0] == pytest.approx(-0.6, abs=0.03)


@pytest.mark.parametrize(("num_frames", "cut"), [(9, 4), (2, 1), (25, 12), (1, 1)])
def test_a_cut_changes_the_shot_half_way(world: StickerWorld, num_frames: int, cut: int) -> None:
    red, blue = (Shot(plain(color), STATIC, ()) for color in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    reds = render(world, red, blue, num_frames=num_frames, channel=0).mean((1, 2))
    assert reds.tolist() == [1.0] * cut + [0.0] * (num_frames - cut)


def test_a_mirrored_panorama_is_flipped(assets: WorldAssets) -> None:
    world, background = spot_world(assets, 0.6, 0.0)
    mirrored = replace(background, mirrored=True)
    (x, _), (flipped, _) = (
        centre(render(world, Shot(b, STATIC, ()))) for b in (background, mirrored)
    )
    assert float(x[0]) == pytest.approx(0.6, abs=0.05)
    assert float(flipped[0]) == pytest.approx(-0.6, abs=0.05)


def test_yaw_turns_around_the_joined_edges(assets: WorldAssets) -> None:
    world, background = spot_world(assets, 0.0, 0.0)
    x, _ = centre(render(world, Shot(replace(background, yaw=0.45), STATIC, ())))
    assert float(x[0]) == pytest.approx(0.05 * 256 / 32, abs=0.03)
    away = render(world, Shot(replace(background, yaw=0.0), STATIC, ()))
    assert away.sum() == 0


def test_animations_run_at_their_own_speed(assets: WorldAssets) -> None:
    sprites = assets.sprites.copy()
    sprites[1] //= 2  # every second frame of the loop is darker
    world = StickerWorld("train", replace(assets, sprites=sprites))
    actor = Actor(read_characters()[0], (Action("still", 0.0, False),), (0.0, 0.0), 0.5, 0.0)

    def levels(fps: float, phase: float) -> list[bool]:
        scene = Scene((Shot(plain(), STATIC, (replace(actor, phase=phase),)),), ASPECT)
        video = world.render(scene, height=16, width=24, num_frames=4, fps=fps)
        brightness = video.sum((1, 2, 3))
        return (brightness > 0.7 * brightness.max()).tolist()

    assert levels(12.0, 0.0) == [True, False, True, False]
    assert levels(6.0, 0.0) == [True, True, True, True]
    assert levels(24.0, 0.0) == [True, True, False, False]
    assert levels(12.0, 0.5) == [False, True, False, True]


@pytest.mark.parametrize(("motion", "camera"), [("sideways", "static"), ("still", "dolly in")])
def test_unknown_motions_are_refused(world: StickerWorld, motion: str, camera: str) -> None:
    actor = Actor(read_characters()[0], (Action(motion, 1.0, False),), (0.0, 0.0), 0.5, 0.0)
    with pytest.raises(ValueError, match=r"must be one of .*got '(sideways|dolly)"):
        render(world, Shot(plain(), Camera(camera, 0.0), (actor,)))
