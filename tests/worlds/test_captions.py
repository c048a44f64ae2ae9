"""Captions say who does what, where it goes and how the camera moves, and nothing that is false."""

import pytest
from tiny_world import make_assets, plain

from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import (
    CAMERAS,
    MOTIONS,
    Action,
    Actor,
    Camera,
    Character,
    Scene,
    Shot,
    StickerWorld,
)

SEEDS = range(40)
FOX = Character("1f98a", "a fox", "blinks")
OWL = Character("1f989", "an owl", "nods")
# At least one of these words tells each motion from all others.
WORDS = {
    "left": ("left",),
    "right": ("right",),
    "up": ("up", "rises", "upward"),
    "down": ("down", "sinks", "downward"),
    "toward": ("closer", "toward", "approaches", "larger"),
    "away": ("away", "smaller"),
    "spin": ("spins", "rotates", "turns"),
    "bounce": ("bounces", "jumps", "hops"),
    "arc left": ("left",),
    "arc right": ("right",),
    "orbit": ("circle", "circles", "loop"),
    "enter left": ("left",),
    "enter right": ("right",),
    "leave left": ("left",),
    "leave right": ("right",),
}
CAMERA_WORDS = {
    "pan left": ("pan", "left"),
    "pan right": ("pan", "right"),
    "tilt up": ("up",),
    "tilt down": ("down",),
    "zoom in": ("zoom", "in"),
    "zoom out": ("zoom", "out"),
    "roll left": ("left",),
    "roll right": ("right",),
    "follow": ("camera",),
}


def actor(*motions: str, character: Character = FOX) -> Actor:
    return Actor(character, tuple(Action(m, 0.5, False) for m in motions), (0.0, 0.0), 0.4, 0.0)


def scene(*actors: Actor, camera: str = "static", panorama: str | None = None) -> Scene:
    background = Shot(plain(), Camera(camera, 0.3), actors).background
    background = type(background)(panorama, 0.5, 0.5, 0.2, False, background.colors)
    return Scene((Shot(background, Camera(camera, 0.3), actors),), 1.0)


def captions(described: Scene) -> list[str]:
    return [describe(described, seed) for seed in SEEDS]


@pytest.mark.parametrize("motion", MOTIONS[1:])
def test_every_wording_names_the_character_and_its_motion(motion: str) -> None:
    texts = captions(scene(actor(motion)))
    for text in texts:
        assert text.startswith(("a fox ", "static camera", "the camera stays still"))
        assert "a fox " in text
        assert any(word in text.replace(",", "").split() for word in WORDS[motion]), text
    opposite = {"left": "right", "right": "left"}.get(motion.split()[-1])
    assert not any(opposite and opposite in text for text in texts)
    assert len(set(texts)) > 3


@pytest.mark.parametrize(
    ("motion", "verbs"),
    [
        ("enter left", ("enters", "comes in")),
        ("leave left", ("leaves", "exits", "goes out")),
        ("arc left", ("jumps", "leaps", "hops")),
    ],
)
def test_motions_to_one_side_are_told_apart(motion: str, verbs: tuple[str, ...]) -> None:
    assert all(any(verb in text for verb in verbs) for text in captions(scene(actor(motion))))


def test_a_still_character_gets_no_direction() -> None:
    words = {"left", "right", "up", "down", "closer"}
    for text in captions(scene(actor("still"))):
        assert not words & set(text.split())
        assert "blinks" in text or "stays" in text or "does not move" in text


@pytest.mark.parametrize("camera", [*CAMERAS[1:], "follow"])
def test_a_moving_camera_is_always_named(camera: str) -> None:
    for text in captions(scene(actor("still"), camera=camera)):
        assert all(word in text for word in CAMERA_WORDS[camera]), text
    starts = [t.startswith("a fox") for t in captions(scene(actor("still"), camera=camera))]
    assert True in starts
    assert False in starts


def test_a_still_camera_may_be_left_unsaid() -> None:
    texts = captions(scene(actor("spin")))
    assert {"camera" in text for text in texts} == {True, False}
    assert not any(word in text for text in texts for word in ("pan", "zoom", "tilt", "roll"))


@pytest.mark.parametrize(("first", "second"), [("up", "left"), ("left", "up"), ("bounce", "away")])
def test_two_actions_are_told_in_their_order(first: str, second: str) -> None:
    for text in captions(scene(actor(first, second))):
        before, after = text.split(" then ")
        assert any(word in before.replace(",", "").split() for word in WORDS[first])
        assert any(word in after.replace(",", "").split() for word in WORDS[second])


def test_all_characters_are_named_in_order() -> None:
    for text in captions(scene(actor("up"), actor("left", character=OWL))):
        assert 0 <= text.index("a fox") < text.index(" and an owl")
        assert "left" in text[text.index("an owl") :]


def test_a_swap_names_both_at_once() -> None:
    pair = (actor("swap"), actor("swap", character=OWL))
    for text in captions(scene(*pair)):
        assert "a fox and an owl " in text
        assert " places" in text
        assert text.count("a fox") == 1


def test_the_place_is_named_in_some_captions_and_is_right() -> None:
    texts = captions(scene(actor("up"), panorama="forest-1024"))
    assert {"in a forest" in text for text in texts} == {True, False}
    assert not any("city" in text for text in texts)
    assert not any(" in a " in text for text in captions(scene(actor("up"))))


def test_a_cut_joins_two_descriptions() -> None:
    first, second = scene(actor("up")), scene(actor("left", character=OWL))
    cut = Scene(first.shots + second.shots, 1.0)
    for text in captions(cut):
        before, after = text.split(". Cut to ")
        assert "a fox" in before
        assert "an owl" in after


def test_the_same_seed_gives_the_same_words() -> None:
    described = scene(actor("left", "spin"), camera="zoom in", panorama="city-512")
    assert captions(described) == captions(described)
    assert len(set(captions(described))) > 20


def test_whatever_the_world_draws_can_be_described() -> None:
    world = StickerWorld("train", make_assets())
    for seed in range(300):
        drawn = world.sample_scene(seed)
        text = describe(drawn, seed)
        assert all(a.character.noun in text for shot in drawn.shots for a in shot.actors)
        assert "  " not in text
        assert ", ," not in text
        assert text == text.strip(" ,")
