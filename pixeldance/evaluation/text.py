"""A report in a terminal: the tables that matter, as Markdown that can be pasted."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pixeldance.errors import InputError
from pixeldance.evaluation.measures import MEASURES
from pixeldance.evaluation.metrics import MAX_PSNR
from pixeldance.evaluation.page import figure

__all__ = ["markdown", "table"]

COLUMNS = ("lpips", "psnr", "ssim", "first_psnr", "last_psnr", "end_jump", "seconds")
"""Measures in the table of methods; all of them are in the page."""


def markdown(report: Mapping[str, Any]) -> str:
    """The main tables, ready for a README.

    Args:
        report: What ``build_report`` returned.

    Returns:
        Methods, ratios, what the clips show, text adherence and targets, as far as there are any.
    """
    return "\n\n".join(_parts(report))


def _parts(report: Mapping[str, Any]) -> Iterator[str]:
    yield _summary(report)
    yield _methods(report)
    if report["ratios"]:
        yield _ratios(report)
    if report["groups"]:
        yield _groups(report)
    if report["adherence"]:
        yield _adherence(report)
    if report["model"] is not None:
        yield _targets(report)


def _summary(report: Mapping[str, Any]) -> str:
    settings, sampling = report["settings"], report["settings"]["sampling"]
    text = (
        f"{report['num_clips']} clips of {settings['num_frames']} frames, "
        f"{', '.join(settings['sizes'])} ({settings['suite']}); first and last frame given, inner "
        "frames compared; 95 % intervals in brackets."
    )
    if report["model"] is not None:
        text += (
            f" Ours: {report['model']['name']}, {sampling['num_inference_steps']} steps, guidance "
            f"{sampling['guidance_scale']:g}, strength {sampling['last_frame_strength']:g}."
        )
    return text


def _methods(report: Mapping[str, Any]) -> str:
    fvd = report["fvd"]
    rows = [["method", *(MEASURES[key].title for key in COLUMNS), *(["FVD"] if fvd else [])]]
    for method in report["settings"]["methods"]:
        means = report["methods"][method]
        cells = [_cell(means[key], MEASURES[key].decimals, key) for key in COLUMNS]
        rows.append([method, *cells, *([f"{fvd['distances'][method]:.0f}"] if fvd else [])])
    return table(rows)


def _cell(value: Mapping[str, float], decimals: int, key: str = "") -> str:
    if key.endswith("psnr") and value["low"] == MAX_PSNR:
        return "exact"
    mean, low, high = (figure(value[name], decimals) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _ratios(report: Mapping[str, Any]) -> str:
    rows = [["same clips", "ratio", "clips where ours is better"]]
    for ratio in report["ratios"]:
        name = f"{MEASURES[ratio['measure']].title}: ours / {ratio['other']}"
        share = f"{ratio['num_better']} of {ratio['ratio']['num']}"
        rows.append([name, _cell(ratio["ratio"], 3), share])
    return table(rows)


def _groups(report: Mapping[str, Any]) -> str:
    methods = report["settings"]["methods"]
    rows = [["LPIPS by what is shown", "clips", *methods]]
    for group in report["groups"]:
        means = (figure(group["methods"][method]["mean"], 4) for method in methods)
        rows.append([f"{group['kind']}: {group['name']}", str(group["num"]), *means])
    return table(rows)


def _adherence(report: Mapping[str, Any]) -> str:
    rows = [["text adherence", "setting", "as asked", "clips"]]
    for each in report["adherence"]:
        share = each["share"]
        low, high = figure(share["low"], 1, True), figure(share["high"], 1, True)
        cell = f"{figure(share['mean'], 1, True)} [{low}, {high}]"
        rows.append([each["kind"], each["method"], cell, str(share["num"])])
    return table(rows)


def _targets(report: Mapping[str, Any]) -> str:
    rows = [["target", "ours", "wanted", "met"]]
    for row in report["targets"]:
        shown = (row["decimals"], row["is_share"])
        ours = "-" if row["ours"] is None else figure(row["ours"]["mean"], *shown)
        sign = "<=" if row["is_ceiling"] else ">="
        met = {None: "not measured", True: "yes", False: "no"}[row["met"]]
        rows.append([row["measure"], ours, f"{sign} {figure(row['limit'], *shown)}", met])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
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
