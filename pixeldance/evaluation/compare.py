"""The comparison: all methods fill in the same held-out clips, all metrics measure them.

Every method is given the first and the last frame; the model is given the caption too. The frames
in between are compared with the truth, and the two ends with the pictures given.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.evaluation.metrics import Lpips, psnr, ssim
from pixeldance.evaluation.peers import (
    Frames,
    Interpolator,
    crossfade,
    hold_first,
    load_rife,
)
from pixeldance.request import GenerationRequest
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import Scene, StickerWorld

if TYPE_CHECKING:
    from pixeldance.api import Model

OURS = "ours"
PEERS: Mapping[str, Callable[[], Interpolator]] = {
    "hold-first": lambda: hold_first,
    "crossfade": lambda: crossfade,
    "rife": load_rife,
}
METHODS = (OURS, *PEERS)

MIN_SIDE = 32
"""LPIPS has nothing left to compare in smaller pictures."""

NUM_SHEET_CLIPS = 12

_DEFAULTS = GenerationRequest()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare on, and how the model samples.

    Attributes:
        num_clips: Number of held-out clips, at least 1.
        width: Pixels, a multiple of 16, at least 32.
        height: Likewise.
        num_frames: Length of the clips, 4k + 1 and at least 5.
        fps: Frames per second of the world.
        num_inference_steps: Steps of the model's solver.
        guidance_scale: How much more the model follows the caption; 1.0 = off.
        seed_offset: Seed of the first clip's scene, caption and noise; the others count on.
    """

    num_clips: int = 64
    width: int = 192
    height: int = 192
    num_frames: int = _DEFAULTS.resolved_num_frames
    fps: int = _DEFAULTS.fps
    num_inference_steps: int = _DEFAULTS.num_inference_steps
    guidance_scale: float = _DEFAULTS.guidance_scale
    seed_offset: int = 0

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise InputError(f"num_clips must be at least 1, got {self.num_clips}.")
        if min(self.width, self.height) < MIN_SIDE:
            raise InputError(
                f"Sides must be at least {MIN_SIDE} pixels, got {self.width}x{self.height}."
            )
        if self.num_frames < 5:
            raise InputError(
                f"num_frames must be at least 5, so that there are inner frames, got "
                f"{self.num_frames}."
            )
        self.request(seed=self.seed_offset)

    def request(self, **fields: object) -> GenerationRequest:
        """What the model is asked for; checks the settings by the rules of every request."""
        return GenerationRequest.parse(
            {
                "width": self.width,
                "height": self.height,
                "num_frames": self.num_frames,
                "fps": self.fps,
                "num_inference_steps": self.num_inference_steps,
                "guidance_scale": self.guidance_scale,
                **fields,
            }
        )


class HeldoutClip(NamedTuple):
    """A clip of characters and backgrounds that training never shows."""

    seed: int
    scene: Scene
    caption: str
    frames: Frames

    @property
    def has_cut(self) -> bool:
        """Whether it has two shots."""
        return len(self.scene.shots) > 1

    @property
    def motion(self) -> str:
        """What the first character does first."""
        return self.scene.shots[0].actors[0].actions[0].motion

    @property
    def camera(self) -> str:
        """What the camera does in the first shot."""
        return self.scene.shots[0].camera.motion


Method = Callable[[HeldoutClip], Frames]
"""Makes a clip of the same shape; may look at the caption and at the two end frames only."""


class Scores(NamedTuple):
    """One method on one clip."""

    lpips: float
    """LPIPS of the inner frames; lower is better."""
    psnr: float
    """PSNR of the inner frames, dB."""
    ssim: float
    """SSIM of the inner frames."""
    first_psnr: float
    """PSNR of the first frame to the picture given, dB."""
    last_psnr: float
    """PSNR of the last frame to the picture given, dB."""
    seconds: float
    """Time that the method took."""


@dataclass(frozen=True)
class Comparison:
    """All scores, clip by clip.

    Attributes:
        settings: What was compared on.
        seeds: Seeds of the clips; all lists below are in this order.
        captions: What the clips show.
        motions: What the first character does first.
        cameras: What the camera does in the first shot.
        cuts: Whether the clip has two shots.
        scores: Of each method.
        sheet: For the first clips, the truth and what the first method made of it.
    """

    settings: Settings
    seeds: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    motions: list[str] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    cuts: list[bool] = field(default_factory=list)
    scores: dict[str, list[Scores]] = field(default_factory=dict)
    sheet: list[tuple[Frames, Frames]] = field(default_factory=list)


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Check names of methods.

    Args:
        names: Some of ``METHODS``.

    Returns:
        The names.

    Raises:
        InputError: If there are none, one is unknown or one is there twice.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) < len(names):
        raise InputError(
            f"methods must be some of {', '.join(METHODS)}, each once, got "
            f"{', '.join(names) or 'none'}."
        )
    return tuple(names)


def load_methods(
    names: Sequence[str], settings: Settings, load_model: Callable[[], "Model"]
) -> dict[str, Method]:
    """Prepare methods, so that nothing is missing later.

    Args:
        names: Some of ``METHODS``.
        settings: How the model samples.
        load_model: Gives the model; called only if it is one of the methods.

    Returns:
        The methods by name, in the order of the names.
    """
    return {
        name: our_method(load_model(), settings) if name == OURS else peer_method(PEERS[name]())
        for name in check_methods(names)
    }


def our_method(model: "Model", settings: Settings) -> Method:
    """The model: given the caption and both pictures, the clip's seed for the noise.

    Args:
        model: A loaded model.
        settings: How it samples.

    Returns:
        The method.
    """

    def generate(clip: HeldoutClip) -> Frames:
        request = settings.request(
            prompt=clip.caption,
            first_frame=Image.fromarray(clip.frames[0]),
            last_frame=Image.fromarray(clip.frames[-1]),
            seed=clip.seed,
        )
        # A listener, even one that does nothing, takes the place of the progress bar.
        return model.generate(request, on_step=lambda _: None).frames

    return generate


def peer_method(interpolate: Interpolator) -> Method:
    """An interpolator as a method: it is given both pictures and nothing else.

    Args:
        interpolate: Fills in the frames between two pictures.

    Returns:
        The method.
    """
    return lambda clip: interpolate(clip.frames[0], clip.frames[-1], len(clip.frames))


def heldout_clips(world: StickerWorld, settings: Settings) -> Iterator[HeldoutClip]:
    """Draw the clips; equal settings give equal clips, and more clips begin with the same ones.

    Args:
        world: The held-out world.
        settings: Number, size and length of the clips.

    Yields:
        HeldoutClip: One clip for each seed.
    """
    for seed in range(settings.seed_offset, settings.seed_offset + settings.num_clips):
        scene = world.sample_scene(seed, aspect=settings.width / settings.height)
        video = world.render(
            scene,
            height=settings.height,
            width=settings.width,
            num_frames=settings.num_frames,
            fps=settings.fps,
        )
        frames = (video * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        yield HeldoutClip(seed, scene, describe(scene, seed), frames)


def compare(
    methods: Mapping[str, Method],
    settings: Settings,
    *,
    world: StickerWorld,
    lpips: Lpips,
    on_clip: Callable[[int], object] | None = None,
) -> Comparison:
    """Run all methods on all clips.

    Args:
        methods: By name; the first one is shown on the contact sheet.
        settings: What to compare on.
        world: The held-out world.
        lpips: The perceptual metric.
        on_clip: Called after each clip with the number of clips done.

    Returns:
        The scores.

    Raises:
        InputError: If a method returns a clip of another shape.
    """
    result = Comparison(settings, scores={name: [] for name in methods})
    for number, clip in enumerate(heldout_clips(world, settings)):
        result.seeds.append(clip.seed)
        result.captions.append(clip.caption)
        result.motions.append(clip.motion)
        result.cameras.append(clip.camera)
        result.cuts.append(clip.has_cut)
        truth_features = lpips.features(clip.frames[1:-1])
        for place, (name, method) in enumerate(methods.items()):
            start = time.monotonic()
            made = method(clip)
            seconds = time.monotonic() - start
            if made.shape != clip.frames.shape or made.dtype != np.uint8:
                raise InputError(
                    f"{name} made {made.dtype} of shape {made.shape}, "
                    f"asked for uint8 of shape {clip.frames.shape}."
                )
            distance = lpips.compare(truth_features, lpips.features(made[1:-1]))
            result.scores[name].append(_scores(clip.frames, made, distance, seconds))
            if place == 0 and number < NUM_SHEET_CLIPS:
                result.sheet.append((clip.frames, made))
        if on_clip is not None:
            on_clip(number + 1)
    return result


def _scores(truth: Frames, made: Frames, lpips: float, seconds: float) -> Scores:
    inner = slice(1, -1)
    return Scores(
        lpips=lpips,
        psnr=psnr(truth[inner], made[inner]),
        ssim=ssim(truth[inner], made[inner]),
        first_psnr=psnr(truth[:1], made[:1]),
        last_psnr=psnr(truth[-1:], made[-1:]),
        seconds=seconds,
    )
