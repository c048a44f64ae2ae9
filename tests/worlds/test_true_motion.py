"""True motion: known on paper for cameras and actors, and what is drawn agrees with it."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_world import make_assets, plain

from pixeldance.models.layers import warp
from pixeldance.worlds.assets import WorldAssets
from pixeldance.worlds.captions import describe
from pixeldance.worlds.motion import TrueMotion, motion_in_words, true_motion
from pixeldance.worlds.stickers import (
    Action,
    Actor,
    Background,
    Camera,
    Scene,
    Shot,
    StickerWorld,
    read_characters,
)

HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 9, 12.0
HALF = HEIGHT / 2  # pixels of one unit
PANORAMA = Background("city-512", 0.5, 0.5, 0.45, False, ((0.0,) * 3, (0.0,) * 3))


@pytest.fixture(scope="module")
def assets() -> WorldAssets:
    return make_assets()


def scene_of(
    camera: Camera, *actions: Action, background: Background = PANORAMA, size: float = 0.6
) -> Scene:
    actors = (Actor(read_characters()[0], actions, (-0.5, 0.0), size, 0.0),) if actions else ()
    return Scene((Shot(background, camera, actors),), WIDTH / HEIGHT)


def motion_of(assets: WorldAssets, scene: Scene) -> TrueMotion:
    return true_motion(assets, scene, height=HEIGHT, width=WIDTH, num_frames=FRAMES, fps=FPS)


@pytest.mark.parametrize(
    ("camera", "x", "y"),
    [("pan right", -1, 0), ("pan left", 1, 0), ("tilt up", 0, 1), ("tilt down", 0, -1)],
)
def test_the_picture_moves_against_the_camera(
    assets: WorldAssets, camera: str, x: int, y: int
) -> None:
    flow, front, _ = motion_of(assets, scene_of(Camera(camera, 0.5)))
    expected = torch.tensor([x, y]).view(2, 1, 1) * 0.5 * HALF
    torch.testing.assert_close(flow[0], expected.expand_as(flow[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(flow[1], -flow[0])
    assert not front.any()


def test_zooming_in_moves_everything_away_from_the_centre(assets: WorldAssets) -> None:
    flow, _, _ = motion_of(assets, scene_of(Camera("zoom in", math.log(2))))
    corner = torch.tensor([-WIDTH / 2 + 2, -HEIGHT / 2 + 2])  # of the first place, in pixels
    torch.testing.assert_close(flow[0, :, 0, 0], corner, atol=1e-4, rtol=0)
    torch.testing.assert_close(flow[1, :, 0, 0], -corner / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("camera", ["pan left", "tilt down", "zoom in", "zoom out", "roll right"])
def test_each_end_can_be_fetched_from_the_other(assets: WorldAssets, camera: str) -> None:
    scene = scene_of(Camera(camera, 0.3))
    video = StickerWorld("train", assets).render(
        scene, height=HEIGHT, width=WIDTH, num_frames=FRAMES, fps=FPS
    )
    flow, _, _ = motion_of(assets, scene)
    fine = F.interpolate(flow, scale_factor=4, mode="bilinear")
    inner = (..., slice(24, 40), slice(32, 64))
    for end, other in ((0, -1), (1, 0)):
        fetched = warp(video[other][None], fine[[end]])[0]
        shown = video[-end]
        assert (fetched - shown)[inner].abs().mean() < 0.03
    assert (video[-1] - video[0]).abs().mean() > 0.03  # or nothing would be shown


def test_an_actor_moves_by_its_action_before_a_background_that_rests(assets: WorldAssets) -> None:
    flow, front, _ = motion_of(
        assets,
        scene_of(Camera("static", 0.0), Action("right", 1.0, eased=True), background=plain()),
    )
    # half its height is 0.6 units, and its drawing fills half of that: 19.2 pixels about -16, 16
    for end, sign in ((0, 1), (1, -1)):
        assert float(front[end].sum()) == pytest.approx((19.2 / 4) ** 2, rel=0.1)
        covered = front[end, 0] > 0.5
        assert (flow[end, 0][covered] == sign * HALF).all()
        assert not flow[end][:, front[end, 0] == 0].any()


def test_growing_and_turning_go_round_the_actors_own_centre(assets: WorldAssets) -> None:
    still = Camera("static", 0.0)
    for action in (Action("toward", math.log(2), eased=False), Action("spin", 2.0, eased=False)):
        flow, front, _ = motion_of(assets, scene_of(still, action, background=plain(), size=0.9))
        covered = (front[0] > 0.99).expand(2, -1, -1)
        assert flow[0][covered].abs().max() > 5
        mean = flow[0].flatten(1)[:, (front[0, 0] > 0.99).flatten()].mean(1)
        assert mean.abs().max() < 2.5, action.motion


def test_the_way_of_an_arc_bends_by_its_height_and_that_of_a_bounce_comes_back(
    assets: WorldAssets,
) -> None:
    rest = Camera("static", 0.0)
    arc = scene_of(rest, Action("arc right", 1.0, eased=False), background=plain())
    bounce = scene_of(rest, Action("bounce", 0.5, eased=False), background=plain())
    for scene, shift, bends in (
        (arc, 1.0, [-0.45, -0.6, -0.45]),  # 0.6 * 4 u (1 - u)
        (bounce, 0.0, [-0.5, 0.0, -0.5]),  # two hops
    ):
        flow, front, detour = motion_of(assets, scene)
        for end, sign in ((0, 1), (1, -1)):
            covered = front[end, 0] > 0.5
            assert flow[end, 0][covered].mean() == pytest.approx(sign * shift * HALF, abs=1e-3)
            for moment, bend in enumerate(bends):
                assert detour[end, moment, 0][covered].abs().max() < 1e-3
                assert detour[end, moment, 1][covered].mean() == pytest.approx(
                    bend * HALF, abs=1e-3
                )
            assert not detour[end][..., front[end, 0] == 0].any()


def test_a_scene_with_a_cut_has_no_motion(assets: WorldAssets) -> None:
    shot = scene_of(Camera("static", 0.0)).shots[0]
    with pytest.raises(ValueError, match="unpack"):
        motion_of(assets, Scene((shot, shot), WIDTH / HEIGHT))


@pytest.mark.parametrize(
    "camera", ["pan left", "tilt down", "zoom in", "zoom out", "roll right", "follow"]
)
def test_what_words_say_of_the_camera_is_how_the_background_moves(
    assets: WorldAssets, camera: str
) -> None:
    action = Action("right", 0.7, eased=False)
    scene = scene_of(Camera(camera, 0.4), action, background=plain())
    flow, front, detour = motion_of(assets, scene)
    words = motion_in_words(scene)
    x = (torch.arange(WIDTH // 4) + 0.5) * 4 - WIDTH / 2
    y = (torch.arange(HEIGHT // 4) + 0.5) * 4 - HEIGHT / 2
    place = torch.complex(*torch.meshgrid(x, y, indexing="xy"))
    behind = front[:, 0] == 0
    for end in (0, 1):
        for moment in range(4):
            across, down, log_scale, turn = words.camera[end, moment]
            factor = torch.exp(torch.complex(log_scale, turn))
            moved = factor * place + torch.complex(WIDTH / 2 * across, HALF * down) - place
            truth = flow[end] if moment == 3 else detour[end, moment] + (moment + 1) / 4 * flow[end]
            expected = torch.complex(truth[0], truth[1])
            torch.testing.assert_close(moved[behind[end]], expected[behind[end]], atol=1e-3, rtol=0)


def test_what_words_say_of_the_subject_is_how_its_centre_moves(assets: WorldAssets) -> None:
    scene = scene_of(
        Camera("pan right", 0.4), Action("arc right", 0.7, eased=False), background=plain()
    )
    flow, front, detour = motion_of(assets, scene)
    words = motion_in_words(scene)
    sides = torch.tensor([WIDTH / 2, HALF])
    for end in (0, 1):
        covered = front[end, 0] > 0.5
        for moment in range(4):
            truth = flow[end] if moment == 3 else detour[end, moment] + (moment + 1) / 4 * flow[end]
            torch.testing.assert_close(
                words.subjects[0][end, moment, :2] * sides,
                truth[:, covered].mean(1),
                atol=1e-3,
                rtol=0,
            )


def test_what_words_say_of_the_subject_is_how_it_grows_and_turns(assets: WorldAssets) -> None:
    rest = Camera("static", 0.0)
    for action, log_scale, turn in (
        (Action("toward", 0.5, eased=False), 0.5, 0.0),
        (Action("away", 0.5, eased=False), -0.5, 0.0),
        (Action("spin", -2.0, eased=False), 0.0, -2.0),
    ):
        words = motion_in_words(scene_of(rest, action, background=plain()))
        elapsed = torch.arange(1, 5) / 4
        for end, sign in ((0, 1), (1, -1)):
            torch.testing.assert_close(words.subjects[0][end, :, 2], sign * log_scale * elapsed)
            torch.testing.assert_close(words.subjects[0][end, :, 3], sign * turn * elapsed)
            assert words.subjects[0][end, :, :2].abs().max() < 1e-6
    zoomed = motion_in_words(scene_of(Camera("zoom in", 0.3), Action("still", 0.0, eased=False)))
    assert zoomed.subjects[0][0, -1, 2] == pytest.approx(0.3, abs=1e-5)


def test_every_actor_is_told_of_in_the_order_of_the_caption() -> None:
    actors = tuple(
        Actor(read_characters()[number], (Action(motion, 0.5, eased=False),), (x, 0.0), 0.4, 0.0)
        for number, (motion, x) in enumerate((("left", 0.5), ("up", -0.5)))
    )
    scene = Scene((Shot(plain(), Camera("static", 0.0), actors),), WIDTH / HEIGHT)
    words = motion_in_words(scene)
    assert words.named.tolist() == [1, 1, 0]
    ends = torch.tensor([[-0.5 * HEIGHT / WIDTH, 0.0], [0.0, -0.5], [0.0, 0.0]])
    torch.testing.assert_close(words.subjects[:, 0, -1, :2], ends)
    torch.testing.assert_close(words.subjects[:, 1, -1, :2], -ends)
    assert describe(scene, 0).index(actors[0].character.noun) < describe(scene, 0).index(
        actors[1].character.noun
    )
