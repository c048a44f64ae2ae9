"""The sticker world with made-up pictures: nothing to download, and every answer known on paper."""

import numpy as np

from pixeldance.worlds.assets import SPRITE_SIZE, WorldAssets
from pixeldance.worlds.stickers import HELDOUT_PANORAMAS, Background, read_characters

PANORAMAS = ("city-512", "forest-512", "park-512", *HELDOUT_PANORAMAS)
BLACK = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def make_assets() -> WorldAssets:
    """Every character is the same loop of two frames; panoramas are smooth noise."""
    return WorldAssets(
        sprites=np.stack([_sprite(), _sprite()]),
        slices={character.id: (0, 2) for character in read_characters()},
        panoramas={name: _panorama(seed) for seed, name in enumerate(PANORAMAS)},
    )


def plain(color: tuple[float, float, float] = BLACK[0]) -> Background:
    """A background of one colour."""
    return Background(
        panorama=None, yaw=0.5, pitch=0.5, field=0.2, mirrored=False, colors=(color, color)
    )


def _sprite() -> np.ndarray:
    """An opaque square, its left half red and its right half green, 64 px wide."""
    sprite = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    sprite[32:96, 32:96, 3] = 255
    sprite[32:96, 32:64, 0] = 255
    sprite[32:96, 64:96, 1] = 255
    return sprite


def _panorama(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)
