"""Curves of a report as SVG that stands inside a page: no references, colours of the page."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pixeldance.errors import DataError
from pixeldance.evaluation.measures import MEASURES
from pixeldance.evaluation.metrics import MAX_PSNR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "plots"]

PANELS: Mapping[str, Sequence[str]] = {
    "steps": ("lpips", "psnr", "end_jump"),
    "guidance": ("lpips", "psnr", "end_jump"),
    "strength": ("lpips", "last_psnr", "end_jump"),
}
"""Measures that are drawn for each sweep."""

TITLES: Mapping[str, str] = {
    "steps": "Steps against quality",
    "guidance": "Guidance against quality",
    "strength": "Strength of the last frame (τ)",
}

OURS_COLOUR = "#2f7de1"
PEER_COLOURS = ("#e08a1e", "#2fa66a", "#a259d9", "#d94f6a", "#7a8594")

_INK = "#010203"
"""Stands for the page's own colour of text; no plot uses it otherwise."""


class Plot(NamedTuple):
    """Drawings under one heading."""

    title: str
    svgs: tuple[str, ...]


def plots(report: Mapping[str, Any]) -> Iterator[Plot]:
    """Draw the sweeps of a report.

    Args:
        report: What ``build_report`` returned.

    Yields:
        Plot: One for each sweep, and quality against seconds if steps were swept.
    """
    for sweep in report["sweeps"]:
        where = f"first {sweep['num']} clips, 95 % intervals"
        panels = (_curve_svg(sweep, key) for key in PANELS[sweep["name"]])
        yield Plot(f"{TITLES[sweep['name']]}; {where}", tuple(panels))
        if sweep["name"] == "steps":
            yield Plot(f"Quality against seconds; {where}", (_seconds_svg(sweep),))


def _curve_svg(sweep: Mapping[str, Any], key: str) -> str:
    figure = _new_figure()
    with _style():
        axes = figure.add_subplot()
        _curve(axes, sweep, key)
        return _svg(figure)


def _curve(axes: "Axes", sweep: Mapping[str, Any], key: str) -> None:
    values = [point["value"] for point in sweep["points"]]
    order = sorted(range(len(values)), key=values.__getitem__)
    ours = [sweep["points"][place]["measures"][key] for place in order]
    axes.errorbar(
        [values[place] for place in order],
        [each["mean"] for each in ours],
        yerr=_bars(ours),
        color=OURS_COLOUR,
        marker="o",
        capsize=3,
        label="ours",
    )
    for colour, (name, peer) in zip(PEER_COLOURS, sweep["peers"].items(), strict=False):
        if peer[key]["mean"] < MAX_PSNR:  # an exact copy of the picture would squash the rest
            axes.axhline(peer[key]["mean"], color=colour, linestyle="--", linewidth=1, label=name)
    if sweep["name"] == "steps":
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
        axes.minorticks_off()
    axes.set_xlabel(sweep["name"])
    axes.set_title(MEASURES[key].title)


def _seconds_svg(sweep: Mapping[str, Any]) -> str:
    figure = _new_figure()
    with _style():
        axes = figure.add_subplot()
        points = [point["measures"] for point in sweep["points"]]
        axes.errorbar(
            [point["seconds"]["mean"] for point in points],
            [point["lpips"]["mean"] for point in points],
            yerr=_bars([point["lpips"] for point in points]),
            color=OURS_COLOUR,
            linestyle="none",
            marker="o",
            capsize=3,
            label="ours, by steps",
        )
        for point, measures in zip(sweep["points"], points, strict=True):
            place = (measures["seconds"]["mean"], measures["lpips"]["mean"])
            axes.annotate(f"{point['value']:g}", place, (5, 5), textcoords="offset points")
        for colour, (name, peer) in zip(PEER_COLOURS, sweep["peers"].items(), strict=False):
            seconds, lpips = peer["seconds"]["mean"], peer["lpips"]["mean"]
            axes.plot(seconds, lpips, color=colour, linestyle="none", marker="s", label=name)
        axes.set_xlabel("seconds per clip")
        axes.set_title(MEASURES["lpips"].title)
        return _svg(figure)


def _bars(values: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """How far an interval reaches below and above the mean."""
    below = [max(0.0, value["mean"] - value["low"]) for value in values]
    above = [max(0.0, value["high"] - value["mean"]) for value in values]
    return [below, above]


def _new_figure() -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            "The plots need matplotlib. Install it: pip install 'pixeldance[eval]'."
        ) from error
    # no pyplot: it would look for a screen
    return Figure(figsize=(3.6, 3.4), layout="constrained")


def _style() -> Any:
    """Settings of matplotlib for one drawing."""
    from matplotlib import rc_context

    return rc_context(
        {
            "text.color": _INK,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "pixeldance",
        }
    )


def _svg(figure: "Figure") -> str:
    """The drawing alone: without the heading of a file, and without addresses of namespaces."""
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s+(?:xmlns(?::\w+)?)="[^"]*"', "", text)
    return text.replace(_INK, "currentColor")
