"""Clips and recipes that the tests of video files share."""

from fractions import Fraction

import numpy as np
from PIL import Image

from pixeldance.video import build_recipe


def moving_square(num_frames, height=48, width=64):
    """A bright square that moves to the right over a soft gradient."""
    ramp = np.linspace(40, 120, width, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (num_frames, height, width, 3)).copy()
    for i in range(num_frames):
        left = 2 * (i % 24)
        frames[i, 16:32, left : left + 16] = (240, 200, 40)
    return frames


def noise_picture(width=32, height=24, seed=0):
    """A picture that no compression makes smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_recipe(request=None, **changes):
    """A complete recipe, with parts exchanged."""
    parts = {
        "seed": 7,
        "frames": moving_square(5),
        "fps": Fraction(12),
        "model": {"name": "pixeldance-mini", "sha256": "ab" * 32},
        "versions": {"pixeldance": "0.1.0"},
        "timings": {"sample": 1.23456},
        "pictures": {},
    }
    return build_recipe(request or {"prompt": "a fox jumps"}, **(parts | changes))
