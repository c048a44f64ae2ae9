"""Captions of the sticker world: what happens in a scene, in varied plain English."""

import random

from pixeldance.worlds.stickers import Actor, Background, Scene, Shot

_MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("moves to the left", "goes left", "travels left", "moves left"),
    "right": ("moves to the right", "goes right", "travels right", "moves right"),
    "up": ("rises up", "moves up", "floats upward", "goes up"),
    "down": ("sinks down", "moves down", "drops downward", "goes down"),
    "toward": ("comes closer", "moves toward the camera", "approaches", "grows larger"),
    "away": ("moves away", "goes away from the camera", "backs away", "gets smaller"),
    "spin": ("spins around", "rotates", "spins", "turns around and around"),
    "bounce": ("bounces up and down", "bounces", "jumps up and down", "hops in place"),
    "arc left": ("jumps to the left", "leaps left", "hops over to the left"),
    "arc right": ("jumps to the right", "leaps right", "hops over to the right"),
    "orbit": ("moves in a circle", "circles around", "flies in a loop"),
    "enter left": ("enters from the left", "comes in from the left"),
    "enter right": ("enters from the right", "comes in from the right"),
    "leave left": ("leaves to the left", "exits left", "goes out of the picture to the left"),
    "leave right": ("leaves to the right", "exits right", "goes out of the picture to the right"),
}
_STILL_PHRASES = ("stays in place", "stays still", "does not move away", "")
_SWAP_PHRASES = ("swap places", "trade places", "change places")
_CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "static": ("static camera", "the camera stays still", "", ""),
    "pan left": ("the camera pans left", "camera pan to the left"),
    "pan right": ("the camera pans right", "camera pan to the right"),
    "tilt up": ("the camera tilts up", "camera moving up"),
    "tilt down": ("the camera tilts down", "camera moving down"),
    "zoom in": ("the camera zooms in", "slow zoom in"),
    "zoom out": ("the camera zooms out", "slow zoom out"),
    "roll left": ("the camera rolls left", "the view rotates to the left"),
    "roll right": ("the camera rolls right", "the view rotates to the right"),
    "follow": ("the camera follows", "the camera moves along"),
}
_PLACES: dict[str, str] = {
    "apartment": "in an empty apartment",
    "bridge": "on a covered bridge",
    "city": "in a city",
    "dawn": "in the desert at dawn",
    "esplanade": "in a shopping mall",
    "forest": "in a forest",
    "hall": "in a large hall",
    "lab": "in an old hospital",
    "lobby": "in a lobby",
    "night": "in a field at dusk",
    "park": "on a meadow",
    "sky": "above the clouds",
    "studio": "in a photo studio",
    "sunrise": "on a meadow at sunrise",
    "sunset": "on a square by the sea",
    "venice": "at the waterfront",
    "warehouse": "in a warehouse",
    "workshop": "in a workshop",
    "courtyard": "in a courtyard",
    "interior": "in a hotel room",
}


def describe(scene: Scene, seed: int) -> str:
    """One caption of a scene; different seeds give different wordings of the same facts."""
    rng = random.Random(seed)
    return ". Cut to ".join(_describe_shot(shot, rng) for shot in scene.shots)


def _describe_shot(shot: Shot, rng: random.Random) -> str:
    if any(action.motion == "swap" for actor in shot.actors for action in actor.actions):
        first, second = (actor.character.noun for actor in shot.actors)
        subject = f"{first} and {second} {rng.choice(_SWAP_PHRASES)}"
    else:
        subject = " and ".join(_describe_actor(actor, rng) for actor in shot.actors)
    parts = [subject, _describe_place(shot.background, rng)]
    camera = rng.choice(_CAMERA_PHRASES[shot.camera.motion])
    if camera and rng.random() < 0.15:
        return ", ".join(part for part in (camera, *parts) if part)
    return ", ".join(part for part in (*parts, camera) if part)


def _describe_actor(actor: Actor, rng: random.Random) -> str:
    motions = [rng.choice(_MOTION_PHRASES.get(a.motion, _STILL_PHRASES)) for a in actor.actions]
    motion = rng.choice((", then ", " and then ")).join(motions)
    verb = actor.character.verb
    if not motion:
        return f"{actor.character.noun} {verb}"
    if rng.random() < 0.5:
        return f"{actor.character.noun} {motion}"
    return f"{actor.character.noun} {verb} and {motion}"


def _describe_place(background: Background, rng: random.Random) -> str:
    if background.panorama is None or rng.random() < 0.5:
        return ""
    return _PLACES[background.panorama.rpartition("-")[0]]
