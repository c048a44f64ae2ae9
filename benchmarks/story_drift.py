"""How a long film drifts: our continuation against going on from the last frame alone.

A held-out character is told to move to and fro, two seconds each way, from one picture. Colour,
sharpness and the character (followed by the tracker of ``pixeldance eval``) are compared with that
picture. Clips are kept in a folder, so that a run that was stopped goes on.

Run: python benchmarks/story_drift.py --num-films 2 --seconds 30 --output drift (needs the extra
eval; about 3 minutes of processor time for a film of 30 s with 4 steps).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import color

from pixeldance.api import Model, load
from pixeldance.evaluation.adherence import AdherenceCase, adherence_cases
from pixeldance.evaluation.lpips import Lpips, load_lpips
from pixeldance.evaluation.metrics import colour_drift
from pixeldance.evaluation.motion import LOST, track_object
from pixeldance.evaluation.optical_flow import load_opencv
from pixeldance.evaluation.peers import Frames, Picture
from pixeldance.stories import (
    ClipCache,
    Story,
    Target,
    film_frames,
    make_clips,
    plan_story,
    write_film,
)
from pixeldance.video import write_contact_sheet
from pixeldance.worlds.stickers import StickerWorld

WIDTH, HEIGHT, FPS = 192, 112, 12
SHOT_S = 2
PART_S = 5
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "last frame alone": {"window": 1, "colour_anchor": 0.0},
}
MEASURES = {
    "colour": "mean colour, ΔE2000",
    "typical": "typical pixel, ΔE76",
    "sharpness": "sharpness, share",
    "identity": "character, LPIPS",
    "lost": "character lost, share",
    "step": "change per frame",
}
CROP = 64


def to_and_fro(case: AdherenceCase, seconds: int, **fields: Any) -> Story:
    """The story of one film."""
    noun = case.scene.shots[0].actors[0].character.noun
    ways = ("left", "right") if case.expected != "right" else ("right", "left")
    shots = [
        {"prompt": f"{noun} moves {ways[place % 2]}, static camera", "num_frames": FPS * SHOT_S}
        for place in range(seconds // SHOT_S)
    ]
    shots[0] |= {"first_frame": case.first_frame, "num_frames": FPS * SHOT_S + 1}
    size = {"width": WIDTH, "height": HEIGHT}
    return Story.parse({**size, "fps": FPS, "seed": 1000 * case.seed, "shots": shots, **fields})


def sharpness(frames: Frames) -> Any:
    """Variance of the Laplacian of each frame, as a share of that of the first one."""
    cv2 = load_opencv()
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in frames)
    values = np.array([cv2.Laplacian(grey, cv2.CV_32F).var() for grey in greys])
    return values / values[0]


def typical_difference(first: Picture, frames: Frames) -> float:
    """How far the median pixel has gone from its colour (CIELAB); what moves hardly counts."""
    rgb2lab: Any = color.rgb2lab  # has no annotations
    shifts = [np.median(rgb2lab(frame) - rgb2lab(first), axis=(0, 1)) for frame in frames]
    return float(np.linalg.norm(shifts, axis=1).mean())


def crops(frames: Frames, case: AdherenceCase, path: Any) -> Frames:
    """The character in each frame, where the tracker says it is, at one size."""
    rows, columns = np.nonzero(case.mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    half = np.array([right - left, bottom - top]) / 2

    def crop(frame: Picture, x: float, y: float, log_scale: float) -> Picture:
        centre = middle + np.array([x * WIDTH, y * HEIGHT])
        reach = half * np.exp(log_scale)
        box = (*(centre - reach), *(centre + reach))
        cut = Image.fromarray(frame).transform(
            (CROP, CROP), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
        )
        return np.asarray(cut)

    places = zip(frames, path.x, path.y, path.log_scale, strict=True)
    return np.stack([crop(*place) for place in places])


def measure(frames: Frames, case: AdherenceCase, lpips: Lpips) -> list[dict[str, float]]:
    """The measures of each part of a film."""
    path = track_object(frames, case.mask)
    character = crops(frames, case, path)
    reference = lpips.features(character[:1])
    sharp = sharpness(frames)
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    parts = []
    for start in range(1, len(frames), FPS * PART_S):
        here = slice(start, start + FPS * PART_S)
        some = range(start, min(start + FPS * PART_S, len(frames)), FPS // 2)
        distances = [lpips.compare(reference, lpips.features(character[[i]])) for i in some]
        parts.append(
            {
                "from_s": (start - 1) / FPS,
                "colour": colour_drift(np.concatenate([frames[:1], frames[here]])),
                "typical": typical_difference(frames[0], frames[list(some)]),
                "sharpness": float(sharp[here].mean()),
                "identity": float(np.mean(distances)),
                "lost": float((path.error[here] > LOST).mean()),
                "step": float(steps[start - 1 : start - 1 + FPS * PART_S].mean()),
            }
        )
    return parts


def make(story: Story, model: Model, output: Path, name: str) -> Frames:
    """Make one film, its contact sheet and its frames."""
    plan = plan_story(story, Target.of(model))
    cache = ClipCache(output / "clips")
    make_clips(plan, cache, model)
    write_film(output / f"{name}.mp4", plan, cache, overwrite=True)
    frames = np.stack(list(film_frames(plan, cache)))
    sheet = output / f"{name}.png"
    write_contact_sheet(sheet, frames, columns=6, max_frames=24, overwrite=True)
    return frames


def mean_of(films: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The mean of the films, part by part."""
    return [
        {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        for parts in zip(*films, strict=True)
    ]


def table(means: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """All methods, parts and measures as Markdown."""
    lines = ["| seconds | method | " + " | ".join(MEASURES.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(MEASURES))
    for place in range(len(next(iter(means.values())))):
        for method, parts in means.items():
            part = parts[place]
            values = " | ".join(f"{part[key]:.2f}" for key in MEASURES)
            span = f"{part['from_s']:.0f} to {part['from_s'] + PART_S:.0f}"
            lines.append(f"| {span} | {method} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """Make the films and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-films", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="pixeldance-mini")
    parser.add_argument("--output", type=Path, default=Path("story-drift"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model, lpips = load(options.model), load_lpips()
    cases = adherence_cases(
        StickerWorld("heldout"),
        kind="direction",
        num_cases=options.num_films,
        width=WIDTH,
        height=HEIGHT,
    )
    films: dict[str, list[list[dict[str, float]]]] = {method: [] for method in METHODS}
    for case in cases:
        for method, fields in METHODS.items():
            story = to_and_fro(case, options.seconds, num_inference_steps=options.steps, **fields)
            name = f"{case.seed}-{method.replace(' ', '-')}"
            films[method].append(measure(make(story, model, options.output, name), case, lpips))
    means = {method: mean_of(parts) for method, parts in films.items()}
    result = {
        "model": {"name": model.name, "sha256": model.sha256},
        "num_films": options.num_films,
        "steps": options.steps,
        "films": films,
        "means": means,
    }
    (options.output / "drift.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(means))  # noqa: T201


if __name__ == "__main__":
    main()
