"""Small stand-ins for what an evaluation loads: the world, networks, a model."""

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import torch
from tiny_world import make_assets

from pixeldance.evaluation.lpips import Lpips
from pixeldance.evaluation.peers import Frames, crossfade, hold_first
from pixeldance.evaluation.settings import EvalSettings
from pixeldance.geometry import Size
from pixeldance.request import GenerationRequest
from pixeldance.worlds.stickers import StickerWorld

SIZE = Size(32, 48)


def small_settings(**changes) -> EvalSettings:
    """Three clips of nine frames, everything that costs time off."""
    values = {
        "methods": ("ours", "hold-first", "crossfade"),
        "num_clips": 3,
        "sizes": (SIZE,),
        "num_frames": 9,
        "use_fvd": False,
        "num_sweep_clips": 2,
        "num_filmstrips": 1,
    }
    return EvalSettings(**(values | changes))


def small_world() -> StickerWorld:
    return StickerWorld("heldout", make_assets())


def small_lpips() -> Lpips:
    """A network of the right shape with few channels and random weights."""
    generator = torch.Generator().manual_seed(0)
    kernels = ((4, 3, 11), (4, 4, 5), (4, 4, 3), (4, 4, 3), (4, 4, 3))
    return Lpips(
        convolutions=[
            (torch.randn(c, b, k, k, generator=generator), torch.zeros(c)) for c, b, k in kernels
        ],
        heads=[torch.ones(1, 4, 1, 1)] * 5,
    )


class SmallI3d:
    """Four features of a clip: its mean colours and its mean change."""

    def features(self, clips: Iterable[Frames]) -> np.ndarray:
        return np.stack([self._features(clip.astype(float)) for clip in clips])

    def _features(self, clip: np.ndarray) -> np.ndarray:
        return np.array([*clip.mean(axis=(0, 1, 2)), np.abs(np.diff(clip, axis=0)).mean()])


class SmallModel:
    """Fades between the pictures given, brighter with more steps; remembers what it was asked."""

    name = "small"
    sha256 = "ab" * 32
    dtype = "float32"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest, *, on_step) -> SimpleNamespace:
        self.requests.append(request)
        first = np.asarray(request.first_frame)
        fill = hold_first if request.last_frame is None else crossfade
        last = first if request.last_frame is None else np.asarray(request.last_frame)
        frames = fill(first, last, request.resolved_num_frames)
        brighter = frames.astype(int) + request.num_inference_steps
        return SimpleNamespace(frames=brighter.clip(0, 255).astype(np.uint8))
