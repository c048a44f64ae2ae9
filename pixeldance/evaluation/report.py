"""The comparison for readers: Markdown tables, a JSON file, a contact sheet."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixeldance.errors import InputError
from pixeldance.evaluation.compare import OURS, Comparison, Scores
from pixeldance.evaluation.metrics import MAX_PSNR, Interval, bootstrap_interval
from pixeldance.video import installed_versions
from pixeldance.video.files import check_output_path, new_files
from pixeldance.video.sheet import sheet_frames

SHEET_COLUMNS = 2
SHEET_FRAMES = 6
MAX_TILE_SIDE = 128

_GAP = 4
_NAME_WIDTH = 60
_LINE_HEIGHT = 15
_CAPTION_LINES = 2
_BACKGROUND = (24, 24, 24)
_INK = (230, 230, 230)

# Field of Scores, title, decimals.
_COLUMNS = (
    ("lpips", "LPIPS (lower is better)", 4),
    ("psnr", "PSNR, dB", 2),
    ("ssim", "SSIM", 3),
    ("first_psnr", "first frame, dB", 1),
    ("last_psnr", "last frame, dB", 1),
)


def interval(comparison: Comparison, method: str, metric: str) -> Interval:
    """Mean of a metric over the clips, with its 95 % bootstrap interval.

    Args:
        comparison: All scores.
        method: One of its methods.
        metric: A field of ``Scores``.

    Returns:
        The mean and the interval.
    """
    return bootstrap_interval([getattr(scores, metric) for scores in comparison.scores[method]])


def paired_difference(comparison: Comparison, method: str, other: str) -> Interval:
    """LPIPS of one method minus LPIPS of another, clip by clip; below 0 the first is better.

    Args:
        comparison: All scores.
        method: One of its methods.
        other: Another.

    Returns:
        The mean and its 95 % bootstrap interval.
    """
    pairs = zip(comparison.scores[method], comparison.scores[other], strict=True)
    return bootstrap_interval([mine.lpips - theirs.lpips for mine, theirs in pairs])


def groups(comparison: Comparison) -> dict[str, list[int]]:
    """Which clips show what: by motion of the first character, by camera, and those with a cut.

    Args:
        comparison: All scores.

    Returns:
        Positions in the lists of the comparison by name of the group; a clip is in several.
    """
    found: dict[str, list[int]] = {}
    for place, motion in enumerate(comparison.motions):
        found.setdefault(f"motion: {motion.split()[0]}", []).append(place)
    for place, camera in enumerate(comparison.cameras):
        kind = "static" if camera == "static" else "moving"
        found.setdefault(f"camera: {kind}", []).append(place)
    for place, cut in enumerate(comparison.cuts):
        if cut:
            found.setdefault("with a cut", []).append(place)
    return dict(sorted(found.items()))


def markdown(comparison: Comparison) -> str:
    """The tables, ready for a README.

    Args:
        comparison: All scores.

    Returns:
        Markdown: what was compared, all metrics, paired differences to the model's LPIPS, LPIPS by
        what the clips show.
    """
    parts = [_summary(comparison), _metrics_table(comparison)]
    if OURS in comparison.scores and len(comparison.scores) > 1:
        parts.append(_paired_table(comparison))
    parts.append(_groups_table(comparison))
    return "\n\n".join(parts)


def _summary(comparison: Comparison) -> str:
    settings = comparison.settings
    sampling = (
        f" Ours: {settings.num_inference_steps} steps, guidance {settings.guidance_scale:g}."
        if OURS in comparison.scores
        else ""
    )
    return textwrap.fill(
        f"{len(comparison.seeds)} held-out clips ({sum(comparison.cuts)} with a cut) of "
        f"{settings.num_frames} frames, {settings.width}x{settings.height}; first and last frame "
        f"given, the {settings.num_frames - 2} inner frames compared.{sampling} In brackets: 95 % "
        "bootstrap intervals over the clips.",
        100,
    )


def _metrics_table(comparison: Comparison) -> str:
    rows = [["method", *(title for _, title, _ in _COLUMNS), "s per clip"]]
    for method, scores in comparison.scores.items():
        cells = [
            _cell(interval(comparison, method, metric), decimals, metric.endswith("psnr"))
            for metric, _, decimals in _COLUMNS
        ]
        seconds = float(np.median([score.seconds for score in scores]))
        rows.append([method, *cells, f"{seconds:.1f}"])
    return table(rows)


def _cell(value: Interval, decimals: int, is_psnr: bool) -> str:
    if is_psnr and value.low == MAX_PSNR:
        return "exact"
    mean, low, high = (f"{number:.{decimals}f}" for number in value)
    return f"{mean} [{low}, {high}]"


def _paired_table(comparison: Comparison) -> str:
    rows = [["LPIPS, same clips", "difference", "clips where ours is better"]]
    mine = comparison.scores[OURS]
    for other, theirs in comparison.scores.items():
        if other == OURS:
            continue
        mean, low, high = paired_difference(comparison, OURS, other)
        better = sum(a.lpips < b.lpips for a, b in zip(mine, theirs, strict=True))
        share = f"{better} of {len(mine)}"
        rows.append([f"ours minus {other}", f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", share])
    return table(rows)


def _groups_table(comparison: Comparison) -> str:
    rows = [["LPIPS by what is shown", "clips", *comparison.scores]]
    for name, places in groups(comparison).items():
        means = (
            float(np.mean([scores[place].lpips for place in places]))
            for scores in comparison.scores.values()
        )
        rows.append([name, str(len(places)), *(f"{mean:.4f}" for mean in means)])
    return table(rows)


def table(rows: list[list[str]]) -> str:
    """A Markdown table with even columns.

    Args:
        rows: The header and the rows, of equal length.

    Returns:
        Lines without a final line break; the first column is left-aligned, the others right.

    Raises:
        InputError: If the rows differ in length.
    """
    if not rows or len({len(row) for row in rows}) != 1:
        raise InputError(f"Rows must have equal length, got {[len(row) for row in rows]}.")
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (aligned[0], rule, *aligned[1:]))


def to_json(comparison: Comparison, *, model: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything, as JSON values.

    Args:
        comparison: All scores.
        model: Name and sha256 of the model, if it was compared.

    Returns:
        Settings, means with intervals, and the scores of each clip.
    """
    methods = comparison.scores
    clips = [
        {
            "seed": seed,
            "caption": comparison.captions[place],
            "motion": comparison.motions[place],
            "camera": comparison.cameras[place],
            "has_cut": comparison.cuts[place],
            "scores": {name: scores[place]._asdict() for name, scores in methods.items()},
        }
        for place, seed in enumerate(comparison.seeds)
    ]
    return {
        "settings": asdict(comparison.settings),
        "model": None if model is None else dict(model),
        "versions": installed_versions(),
        "methods": {
            name: {
                metric: interval(comparison, name, metric)._asdict() for metric in Scores._fields
            }
            for name in methods
        },
        "lpips_ours_minus": {
            other: paired_difference(comparison, OURS, other)._asdict()
            for other in methods
            if OURS in methods and other != OURS
        },
        "clips": clips,
    }


def write_json(
    path: str | os.PathLike[str], values: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write JSON, complete or not at all.

    Args:
        path: Where it goes, ending in ``.json``, in a folder that exists.
        values: JSON values.
        overwrite: Whether a file that is already there may be replaced.

    Returns:
        The path.
    """
    path = check_output_path(path, suffix=".json", overwrite=overwrite)
    with new_files(path, overwrite=overwrite) as (temporary,):
        text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def draw_sheet(comparison: Comparison) -> Image.Image:
    """The first clips in one picture: caption, truth, and what the first method made.

    Args:
        comparison: All scores, with at least one clip.

    Returns:
        An RGB picture, two columns of clips with six frames each. Frames are never enlarged.
    """
    height, width = comparison.sheet[0][0].shape[1:3]
    scale = min(1.0, MAX_TILE_SIDE / max(height, width))
    tile = (round(width * scale), round(height * scale))
    shown = sheet_frames(comparison.settings.num_frames, SHEET_FRAMES)
    method = next(iter(comparison.scores))
    caption_height = _CAPTION_LINES * _LINE_HEIGHT + _GAP
    block = (
        _NAME_WIDTH + len(shown) * (tile[0] + _GAP) + 4 * _GAP,
        caption_height + 2 * (tile[1] + _GAP) + 3 * _GAP,
    )
    columns = min(SHEET_COLUMNS, len(comparison.sheet))
    rows = -(-len(comparison.sheet) // columns)
    sheet = Image.new("RGB", (columns * block[0] + _GAP, rows * block[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_LINE_HEIGHT - 4)
    for place, (truth, made) in enumerate(comparison.sheet):
        left = _GAP + place % columns * block[0]
        top = _GAP + place // columns * block[1]
        text = f"{comparison.seeds[place]}: {comparison.captions[place]}"
        lines = _wrapped(text, draw, font, block[0] - 4 * _GAP)
        draw.multiline_text((left, top), "\n".join(lines), fill=_INK, font=font, spacing=2)
        for row, (name, frames) in enumerate((("truth", truth), (method, made))):
            y = top + caption_height + row * (tile[1] + _GAP)
            draw.text((left, y + tile[1] // 2), name, fill=_INK, font=font, anchor="lm")
            for column, number in enumerate(shown):
                picture = Image.fromarray(frames[number])
                if picture.size != tile:
                    picture = picture.resize(tile, Image.Resampling.LANCZOS)
                sheet.paste(picture, (left + _NAME_WIDTH + column * (tile[0] + _GAP), y))
    return sheet


def _wrapped(
    text: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> list[str]:
    """Lines that fit into a width; a text of too many lines ends in three dots."""
    per_letter = draw.textlength(text, font=font) / len(text)
    return textwrap.wrap(
        text,
        max(8, int(0.95 * width / per_letter)),
        max_lines=_CAPTION_LINES,
        placeholder=" ...",
    )


def write_sheet(
    path: str | os.PathLike[str], comparison: Comparison, *, overwrite: bool = False
) -> Path:
    """Write the contact sheet as PNG, complete or not at all.

    Args:
        path: Where it goes, ending in ``.png``, in a folder that exists.
        comparison: All scores, with at least one clip.
        overwrite: Whether a picture that is already there may be replaced.

    Returns:
        The path.
    """
    path = check_output_path(path, suffix=".png", overwrite=overwrite)
    sheet = draw_sheet(comparison)
    with new_files(path, overwrite=overwrite) as (temporary,):
        sheet.save(temporary, format="PNG")
    return path
