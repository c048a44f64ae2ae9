"""Text adherence: cases with known answers, and a judge that sees what is there."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from tiny_world import make_assets

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.adherence import (
    CAMERA_MOTIONS,
    DIRECTIONS,
    AdherenceCase,
    Kind,
    adherence_cases,
    confusion,
    judge,
    labels,
)
from pixeldance.worlds.stickers import StickerWorld

pytest.importorskip("cv2", reason="optical flow needs the extra eval")

OPPOSITE = dict(
    itertools.chain.from_iterable(
        (pair, pair[::-1])
        for pair in (
            *(("left", "right"), ("up", "down"), ("toward", "away"), ("pan left", "pan right")),
            *(("tilt up", "tilt down"), ("zoom in", "zoom out"), ("roll left", "roll right")),
        )
    )
)


@pytest.fixture(scope="module")
def world() -> StickerWorld:
    return StickerWorld("heldout", make_assets())


def cases(world: StickerWorld, kind: Kind, num_cases: int, **options) -> list[AdherenceCase]:
    options = {"width": 96, "height": 96, "num_frames": 13} | options
    return list(adherence_cases(world, kind=kind, num_cases=num_cases, **options))


def test_labels_are_the_words_of_the_world() -> None:
    assert labels("direction") == DIRECTIONS
    assert labels("camera") == CAMERA_MOTIONS
    assert len(labels("order")) == 30
    assert "left, then up" in labels("order")
    with pytest.raises(InputError, match="direction, camera, order, got 'speed'"):
        labels("speed")


def test_direction_cases_show_one_motion(world: StickerWorld) -> None:
    found = cases(world, "direction", 8)
    assert [case.expected for case in found] == [*DIRECTIONS, "left", "right"]
    for case in found:
        (shot,) = case.scene.shots
        (actor,) = shot.actors
        assert [action.motion for action in actor.actions] == [case.expected]
        assert shot.camera.motion == "static"
        assert case.prompt.startswith(actor.character.noun) or "camera" in case.prompt
    assert [case.seed for case in found] == list(range(8))


def test_camera_cases_rest_and_order_cases_have_two_motions(world: StickerWorld) -> None:
    for case, expected in zip(cases(world, "camera", 3), CAMERA_MOTIONS, strict=False):
        (actor,) = case.scene.shots[0].actors
        assert case.scene.shots[0].camera.motion == case.expected == expected
        assert [action.motion for action in actor.actions] == ["still"]
    for case in cases(world, "order", 3):
        (actor,) = case.scene.shots[0].actors
        assert ", then ".join(action.motion for action in actor.actions) == case.expected
        assert " then " in case.prompt


def test_the_same_cases_whatever_their_number(world: StickerWorld) -> None:
    one, other = cases(world, "direction", 3)[2], cases(world, "direction", 1, seed_offset=2)[0]
    assert one.seed == other.seed == 2
    assert cases(world, "direction", 5)[2].scene == one.scene
    assert cases(world, "direction", 5)[2].prompt == one.prompt
    assert other.scene != one.scene  # the first case of whatever offset is the first direction
    assert other.expected == DIRECTIONS[0]


def test_the_mask_covers_the_character(world: StickerWorld) -> None:
    # The tiny world's characters are squares, half as wide as their picture.
    for case in cases(world, "direction", 3):
        (actor,) = case.scene.shots[0].actors
        side = actor.size / 2 * 96
        assert case.mask.sum() == pytest.approx(side**2, rel=0.1)
        rows, columns = np.nonzero(case.mask)
        x, y = actor.position
        assert columns.mean() == pytest.approx((x + 1) * 48 - 0.5, abs=1)
        assert rows.mean() == pytest.approx((y + 1) * 48 - 0.5, abs=1)


@pytest.mark.parametrize(("kind", "num_cases"), [("direction", 6), ("camera", 8), ("order", 4)])
def test_truth_is_judged_right_without_a_choice_of_scenes(
    world: StickerWorld, kind: Kind, num_cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixeldance.evaluation.adherence._MAX_TRIALS", 1)
    found = cases(world, kind, num_cases)
    assert [judge(case, case.truth) for case in found] == [case.expected for case in found]


def test_scenes_that_the_judge_gets_wrong_are_passed_over(
    world: StickerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = cases(world, "direction", 1)
    wrong = iter(["lost", "up"])
    monkeypatch.setattr(
        "pixeldance.evaluation.adherence.judge", lambda case, _: next(wrong, case.expected)
    )
    (third,) = cases(world, "direction", 1)
    assert third.seed == first.seed
    assert third.scene != first.scene
    monkeypatch.setattr("pixeldance.evaluation.adherence.judge", lambda *_: "lost")
    with pytest.raises(DataError, match="no scene that shows left alone is judged so at 96x96"):
        cases(world, "direction", 1)


def test_truth_in_reverse_is_judged_as_the_opposite(world: StickerWorld) -> None:
    for case in cases(world, "camera", 8)[::2]:
        assert judge(case, case.truth[::-1]) == OPPOSITE[case.expected]


def test_the_first_frame_alone_is_judged_still(world: StickerWorld) -> None:
    rest = {"direction": "still", "camera": "static", "order": "still, then still"}
    for kind, expected in rest.items():
        (case,) = cases(world, kind, 1)
        assert judge(case, np.repeat(case.first_frame[None], 9, axis=0)) == expected


def test_swapped_order_is_seen(world: StickerWorld) -> None:
    case = cases(world, "order", 1)[0]
    first, second = case.expected.split(", then ")
    middle = len(case.truth) // 2
    there = case.truth[: middle + 1]
    back_again = np.concatenate([there, there[-2::-1]])
    assert judge(case, back_again) == f"{first}, then {OPPOSITE[first]}"
    assert judge(case, case.truth) == f"{first}, then {second}"


def test_clips_that_do_not_fit_the_case_are_refused(world: StickerWorld) -> None:
    (case,) = cases(world, "direction", 1)
    with pytest.raises(InputError, match=r"shape \(96, 96, 3\).*got shape \(13, 96, 48, 3\)"):
        judge(case, case.truth[:, :, :48])
    with pytest.raises(InputError, match="at least 5 frames"):
        judge(case, case.truth[:4])


@pytest.mark.parametrize(
    "options", [{"num_cases": 0}, {"num_frames": 4}, {"width": 16}, {"kind": "speed"}]
)
def test_wrong_settings_are_refused(world: StickerWorld, options) -> None:
    with pytest.raises(InputError, match="got"):
        cases(world, **{"kind": "direction", "num_cases": 1} | options)


def test_a_world_without_such_scenes_is_an_error(world: StickerWorld, monkeypatch) -> None:
    scene = world.sample_scene(0)
    crowded = replace(scene.shots[0], actors=scene.shots[0].actors * 3)
    empty = replace(scene, shots=(crowded,))
    monkeypatch.setattr(world, "sample_scene", lambda *_, **__: empty)
    with pytest.raises(DataError, match="no scene that shows left"):
        cases(world, "direction", 1)


def test_confusion_counts() -> None:
    table = confusion(["left", "left", "up", "left"], ["left", "up", "up", "left"])
    assert table == {"left": {"left": 2, "up": 1}, "up": {"up": 1}}
    assert list(table) == ["left", "up"]
    with pytest.raises(InputError, match="got 2 and 1"):
        confusion(["left", "up"], ["left"])
