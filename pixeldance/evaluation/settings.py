"""What an evaluation is asked for: clips, methods, how the model samples, what is measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pixeldance.errors import InputError
from pixeldance.geometry import Size
from pixeldance.request import GenerationRequest

__all__ = [
    "OURS",
    "STICKERS",
    "SWEEPS",
    "EvalSettings",
    "Sampling",
    "Sweep",
]

STICKERS = "stickers"
"""Name of the suite of held-out clips; any other suite is a folder."""

OURS = "ours"
"""Name of the model among the methods."""

MIN_SIDE = 32
"""LPIPS has nothing left to compare in smaller pictures."""

MIN_FRAMES = 5
"""So that there are inner frames."""

_DEFAULTS = GenerationRequest()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the model samples.

    Attributes:
        num_inference_steps: Steps of the solver.
        guidance_scale: How much more the model follows the prompt; 1.0 = off.
        last_frame_strength: Part of the steps during which the last frame steers, 0 to 1.
    """

    num_inference_steps: int = _DEFAULTS.num_inference_steps
    guidance_scale: float = _DEFAULTS.guidance_scale
    last_frame_strength: float = _DEFAULTS.last_frame_strength

    def __str__(self) -> str:
        return (
            f"steps={self.num_inference_steps} guidance={self.guidance_scale:g} "
            f"strength={self.last_frame_strength:g}"
        )


SWEEPS: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "strength": "last_frame_strength",
}
"""What can be swept: name in options, field of ``Sampling``."""


@dataclass(frozen=True)
class Sweep:
    """Several values of one sampling option, the others as in the main setting.

    Attributes:
        name: A key of ``SWEEPS``.
        values: At least two different ones.
    """

    name: str
    values: tuple[float, ...]

    def samplings(self, main: Sampling) -> Iterator[tuple[float, Sampling]]:
        """The settings to compare.

        Args:
            main: Where the other options come from.

        Yields:
            tuple[float, Sampling]: The value and the setting with it.
        """
        for value in self.values:
            change: dict[str, Any] = {SWEEPS[self.name]: value}
            yield value, replace(main, **change)


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """All that an evaluation is asked for; checked when made.

    Attributes:
        suite: ``"stickers"`` or the name of a folder.
        methods: Names of methods, each once.
        num_clips: Number of clips, at least 1; a folder may hold fewer.
        sizes: Sizes that the clips take in turn, sides of at least 32, multiples of 16.
        num_frames: Length of the clips, 4k + 1 and at least 5.
        fps: Frames per second of made-up clips.
        sampling: How the model samples.
        seed_offset: Seed of the first made-up clip; the others count on.
        use_fvd: Whether the Frechet video distance is measured.
        num_adherence: Cases of each kind of text adherence; 0 = off.
        sweeps: Options of the model to vary on the first clips.
        num_sweep_clips: On how many clips.
        reference: A costly setting that the main one is held against, on the clips of the sweeps
            and on text adherence.
        num_filmstrips: How many clips are shown: the first ones, not picked.
    """

    suite: str = STICKERS
    methods: tuple[str, ...] = (OURS,)
    num_clips: int = 256
    sizes: tuple[Size, ...] = (Size(144, 256),)
    num_frames: int = _DEFAULTS.resolved_num_frames
    fps: int = _DEFAULTS.fps
    sampling: Sampling = field(default_factory=Sampling)
    seed_offset: int = 0
    use_fvd: bool = True
    num_adherence: int = 0
    sweeps: tuple[Sweep, ...] = ()
    num_sweep_clips: int = 32
    reference: Sampling | None = None
    num_filmstrips: int = 12

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for size in self.sizes:
            if min(size) < MIN_SIDE:
                raise InputError(
                    f"Sides must be at least {MIN_SIDE} pixels, got {size.width}x{size.height}."
                )
        self._check_model_options()
        for size in self.sizes:
            for sampling in self.samplings():
                # only checked: a name of a picture is as good as a picture
                self.request(size, sampling, seed=self.seed_offset, last_frame="last.png")

    def _check_model_options(self) -> None:
        asked = {
            "num_adherence": self.num_adherence > 0,
            "sweeps": bool(self.sweeps),
            "reference": self.reference is not None,
        }
        unused = [name for name, is_asked in asked.items() if is_asked]
        if OURS not in self.methods and unused:
            raise InputError(
                f"{', '.join(unused)} measures the model, which is not among the methods "
                f"({', '.join(self.methods)}). Add {OURS}, or leave it out."
            )
        names = [sweep.name for sweep in self.sweeps]
        if len(set(names)) < len(names):
            raise InputError(f"Each option can be swept once, got {', '.join(names)}.")

    def samplings(self) -> list[Sampling]:
        """Every setting of the model that is run, each once, the main one first."""
        wanted = [self.sampling]
        for sweep in self.sweeps:
            wanted += [sampling for _, sampling in sweep.samplings(self.sampling)]
        if self.reference is not None:
            wanted.append(self.reference)
        return list(dict.fromkeys(wanted))

    def method_of(self, sampling: Sampling) -> str:
        """Under which name the results of a setting of the model go.

        Args:
            sampling: The setting.

        Returns:
            ``"ours"`` for the main one, else with what is different.
        """
        return OURS if sampling == self.sampling else f"{OURS} {sampling}"

    def size_of(self, place: int) -> Size:
        """Size of a clip.

        Args:
            place: Which clip of the suite, from 0.

        Returns:
            The sizes are taken in turn.
        """
        return self.sizes[place % len(self.sizes)]

    def request(self, size: Size, sampling: Sampling, **fields: object) -> GenerationRequest:
        """What the model is asked for; checks the settings by the rules of every request.

        Args:
            size: Size of the clip.
            sampling: How to sample; the strength is left out where no last frame is given.
            **fields: Further fields of the request: prompt, pictures, seed.

        Returns:
            The checked request.
        """
        has_last_frame = "last_frame" in fields
        strength = {"last_frame_strength": sampling.last_frame_strength} if has_last_frame else {}
        return GenerationRequest.parse(
            {
                "width": size.width,
                "height": size.height,
                "num_frames": self.num_frames,
                "fps": self.fps,
                "num_inference_steps": sampling.num_inference_steps,
                "guidance_scale": sampling.guidance_scale,
                **strength,
                **fields,
            }
        )


_LEAST = {
    "num_clips": 1,
    "num_frames": MIN_FRAMES,
    "num_adherence": 0,
    "num_sweep_clips": 1,
    "num_filmstrips": 0,
}
