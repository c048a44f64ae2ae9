"""The evaluation itself: what is missing is done, clip by clip, and kept as soon as it is there.

All methods fill in one clip before the next one comes, so that a run that is stopped has compared
them on the same clips.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.evaluation.adherence import (
    KINDS,
    AdherenceCase,
    Kind,
    adherence_cases,
    judge,
)
from pixeldance.evaluation.fvd import I3d
from pixeldance.evaluation.lpips import Lpips
from pixeldance.evaluation.measures import TruthFeatures, compare_clip, describe_clip
from pixeldance.evaluation.methods import TRUTH, Method, generate_quietly, our_method, peer_method
from pixeldance.evaluation.peers import PEERS, Frames
from pixeldance.evaluation.results import Key, Results
from pixeldance.evaluation.settings import OURS, EvalSettings, Sampling
from pixeldance.evaluation.suite import EvalClip, Suite
from pixeldance.video.sheet import sheet_frames
from pixeldance.worlds.stickers import StickerWorld

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = [
    "EvalProgress",
    "Instruments",
    "adherence_key",
    "adherence_methods",
    "identity",
    "load_peers",
    "model_identity",
    "run",
    "shown_methods",
]

FILMSTRIP_FRAMES = 6
FILMSTRIP_SIDE = 160
FILMSTRIP_GAP = 4
WEBP_QUALITY = 85

IDENTITY_VERSION = 1
"""Raised when a stored result of an earlier version means something else."""


class EvalProgress(NamedTuple):
    """How far an evaluation is."""

    done: int
    """Tasks done in this run."""
    total: int
    """Tasks of this run: what was there already does not count."""
    remaining_s: float
    """Seconds that the rest will take, by what each kind of task took so far."""
    task: str
    """What was done last."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Instruments:
    """What a run needs, loaded before it begins.

    Attributes:
        lpips: The perceptual metric.
        i3d: The network of the Frechet video distance, where it is measured.
        model: The model, where it is among the methods.
        world: The held-out world, where text adherence is measured.
        peers: The other methods by name.
    """

    lpips: Lpips
    i3d: I3d | None = None
    model: "Model | None" = None
    world: StickerWorld | None = None
    peers: Mapping[str, Method]


def identity(settings: EvalSettings) -> dict[str, Any]:
    """All that changes what the stored result of any method means.

    The number of clips, the methods, the sweeps and what else is measured may change from run to
    run: results of the same folder are then added to.

    Args:
        settings: Of the run.

    Returns:
        JSON values.
    """
    return {
        "version": IDENTITY_VERSION,
        "suite": settings.suite,
        "sizes": [f"{size.width}x{size.height}" for size in settings.sizes],
        "num_frames": settings.num_frames,
        "fps": settings.fps,
        "seed_offset": settings.seed_offset,
    }


def model_identity(
    settings: EvalSettings, model: Mapping[str, str] | None
) -> dict[str, Any] | None:
    """All that changes what a stored result of the model means.

    Args:
        settings: Of the run.
        model: ``sha256``, ``dtype`` and ``device`` of the model, if it is among the methods.

    Returns:
        JSON values, or None without a model.
    """
    return None if model is None else {"sampling": asdict(settings.sampling), **model}


def shown_methods(settings: EvalSettings) -> tuple[str, ...]:
    """Whose filmstrips are shown below each other.

    Args:
        settings: With the methods.

    Returns:
        The truth, the model and RIFE, as far as they are compared; else the truth and the first
        two methods.
    """
    chosen = [name for name in (OURS, "rife") if name in settings.methods]
    return (TRUTH, *(chosen or settings.methods[:2]))


def adherence_methods(settings: EvalSettings) -> dict[str, Sampling]:
    """Settings of the model whose text adherence is measured, by the name of their results.

    Args:
        settings: Of the run.

    Returns:
        The main one and the reference.
    """
    samplings = [settings.sampling, *([settings.reference] if settings.reference else [])]
    return {settings.method_of(sampling): sampling for sampling in samplings}


def run(
    settings: EvalSettings,
    suite: Suite,
    results: Results,
    instruments: Instruments,
    *,
    on_progress: Callable[[EvalProgress], object] | None = None,
) -> None:
    """Do whatever is not among the results yet.

    Args:
        settings: What to do.
        suite: The clips.
        results: Where results go.
        instruments: What is needed for it.
        on_progress: Called after each task.
    """
    bench = _Bench(settings, suite, results, instruments)
    _work_through(
        [*bench.clip_tasks(), *bench.floor_tasks(), *bench.adherence_tasks()], on_progress
    )


class _Task(NamedTuple):
    """Something to do; tasks of one kind take about the same time."""

    kind: str
    do: Callable[[], object]


def _work_through(
    tasks: Sequence[_Task], on_progress: Callable[[EvalProgress], object] | None
) -> None:
    left = Counter(task.kind for task in tasks)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for done, task in enumerate(tasks, 1):
        start = time.monotonic()
        task.do()
        spent[task.kind].append(time.monotonic() - start)
        left[task.kind] -= 1
        if on_progress is not None:
            event = EvalProgress(done, len(tasks), _remaining(left, spent), task.kind)
            on_progress(event)


def _remaining(left: Mapping[str, int], spent: Mapping[str, Sequence[float]]) -> float:
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in spent.items()}
    unknown = max(means.values())
    return sum(count * means.get(kind, unknown) for kind, count in left.items())


class _Bench:
    """The tasks of a run. One clip at a time is in memory."""

    def __init__(
        self, settings: EvalSettings, suite: Suite, results: Results, instruments: Instruments
    ) -> None:
        self.settings = settings
        self.suite = suite
        self.results = results
        self.instruments = instruments
        self._truth: tuple[str, Frames, TruthFeatures] | None = None
        self._cases: _Cases | None = None

    # ---- clips

    def clip_tasks(self) -> Iterator[_Task]:
        """All methods on the first clip, then on the second, ..."""
        methods = self._methods()
        for place, clip in enumerate(self.suite.clips):
            for name, method in methods.items():
                is_main = name in (TRUTH, *self.settings.methods)
                if not is_main and place >= self.settings.num_sweep_clips:
                    continue
                has_features = self.settings.use_fvd and is_main
                has_filmstrip = place < self.settings.num_filmstrips and name in self._shown
                do = partial(self._measure, clip, name, method, has_features, has_filmstrip)
                if not self._is_done(clip.key, name, has_features, has_filmstrip):
                    yield _Task(name, do)

    @property
    def _shown(self) -> tuple[str, ...]:
        return shown_methods(self.settings)

    def _methods(self) -> dict[str, Method]:
        methods: dict[str, Method] = {TRUTH: lambda _, truth: truth}
        methods.update(self.instruments.peers)
        if self.instruments.model is not None:
            for sampling in self.settings.samplings():
                name = self.settings.method_of(sampling)
                methods[name] = our_method(self.instruments.model, self.settings, sampling)
        return methods

    def _is_done(self, clip: str, method: str, has_features: bool, has_filmstrip: bool) -> bool:
        return (
            ("clip", clip, method) in self.results
            and (not has_features or self.results.features_path(clip, method).is_file())
            and (not has_filmstrip or self.results.filmstrip_path(clip, method).is_file())
        )

    def _measure(
        self, clip: EvalClip, name: str, method: Method, has_features: bool, has_filmstrip: bool
    ) -> None:
        truth, truth_features = self._load(clip)
        start = time.monotonic()
        made = method(clip, truth)
        seconds = time.monotonic() - start
        if made.shape != truth.shape or made.dtype != np.uint8:
            raise InputError(
                f"{name} made {made.dtype} of shape {made.shape}, "
                f"asked for uint8 of shape {truth.shape}."
            )
        if has_features:
            self._keep_features(clip.key, name, made)
        if has_filmstrip:
            self.results.write_filmstrip(clip.key, name, filmstrip(made))
        if name == TRUTH:
            scores = describe_clip(made)
        else:
            scores = compare_clip(
                truth, made, lpips=self.instruments.lpips, truth_features=truth_features
            )
            scores["seconds"] = seconds
        self.results.add(("clip", clip.key, name), scores)

    def _load(self, clip: EvalClip) -> tuple[Frames, TruthFeatures]:
        if self._truth is None or self._truth[0] != clip.key:
            frames = clip.load()
            self._truth = (clip.key, frames, self.instruments.lpips.features(frames))
        return self._truth[1], self._truth[2]

    def _keep_features(self, clip: str, name: str, frames: Frames) -> None:
        assert self.instruments.i3d is not None, "loaded where it is asked for"
        features = self.instruments.i3d.features([frames])[0]
        self.results.write_features(clip, name, features.astype(np.float32))

    # ---- the floor of the Frechet distance

    def floor_tasks(self) -> Iterator[_Task]:
        """Features of further true clips."""
        if not self.settings.use_fvd:
            return
        for clip in self.suite.further:
            if not self.results.features_path(clip.key, TRUTH).is_file():
                yield _Task("floor", partial(self._measure_floor, clip))

    def _measure_floor(self, clip: EvalClip) -> None:
        self._keep_features(clip.key, TRUTH, clip.load())

    # ---- text adherence

    def adherence_tasks(self) -> Iterator[_Task]:
        """Clips from a first frame and a prompt, judged by their motion."""
        for kind in KINDS:
            for place in range(self.settings.num_adherence):
                for name, sampling in adherence_methods(self.settings).items():
                    if adherence_key(kind, place, name) not in self.results:
                        do = partial(self._judge, kind, place, name, sampling)
                        yield _Task(f"{kind} {name}", do)

    def _judge(self, kind: Kind, place: int, name: str, sampling: Sampling) -> None:
        assert self.instruments.model is not None, "checked by the settings"
        case = self._case(kind, place)
        request = self.settings.request(
            self.settings.sizes[0],
            sampling,
            prompt=case.prompt,
            first_frame=Image.fromarray(case.first_frame),
            seed=case.seed,
        )
        seen = judge(case, generate_quietly(self.instruments.model, request))
        values = {"prompt": case.prompt, "expected": case.expected, "seen": seen}
        self.results.add(adherence_key(kind, place, name), values)

    def _case(self, kind: Kind, place: int) -> AdherenceCase:
        """A case; they are asked for in order, and the last one stays at hand."""
        if self._cases is None or self._cases.kind != kind or self._cases.place > place:
            self._cases = _Cases(kind, self._new_cases(kind))
        return self._cases.advance(place)

    def _new_cases(self, kind: Kind) -> Iterator[AdherenceCase]:
        assert self.instruments.world is not None, "loaded where it is asked for"
        size = self.settings.sizes[0]
        return adherence_cases(
            self.instruments.world,
            kind=kind,
            num_cases=self.settings.num_adherence,
            height=size.height,
            width=size.width,
            num_frames=self.settings.num_frames,
            fps=self.settings.fps,
        )


class _Cases:
    """The cases of a kind, of which one is in memory."""

    def __init__(self, kind: Kind, cases: Iterator[AdherenceCase]) -> None:
        self.kind = kind
        self.place = -1
        self._cases = cases
        self._current: AdherenceCase | None = None

    def advance(self, place: int) -> AdherenceCase:
        """The case at a place, not before the one asked for last."""
        while self._current is None or self.place < place:
            self._current = next(self._cases)
            self.place += 1
        return self._current


def adherence_key(kind: str, place: int, method: str) -> Key:
    """Key of a judged clip.

    Args:
        kind: Kind of text adherence.
        place: Which case of it, from 0.
        method: Name of the setting of the model.

    Returns:
        The key.
    """
    return ("adherence", kind, str(place), method)


def filmstrip(frames: Frames) -> bytes:
    """Some frames of a clip side by side, the first and the last among them.

    Args:
        frames: A clip.

    Returns:
        A WebP file.
    """
    shown = sheet_frames(len(frames), FILMSTRIP_FRAMES)
    height, width = frames.shape[1:3]
    scale = min(1.0, FILMSTRIP_SIDE / max(height, width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    strip_width = len(shown) * (tile[0] + FILMSTRIP_GAP) - FILMSTRIP_GAP
    strip = Image.new("RGBA", (strip_width, tile[1]))
    for place, number in enumerate(shown):
        picture = Image.fromarray(frames[number]).resize(tile, Image.Resampling.LANCZOS)
        strip.paste(picture, (place * (tile[0] + FILMSTRIP_GAP), 0))
    buffer = BytesIO()
    strip.save(buffer, format="WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def load_peers(names: Iterable[str]) -> dict[str, Method]:
    """Load the methods that are no model, so that nothing is missing later.

    Args:
        names: Names of methods; the model is left out.

    Returns:
        The methods by name.
    """
    return {name: peer_method(PEERS[name]()) for name in names if name != OURS}
