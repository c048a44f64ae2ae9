"""The report as one page that needs nothing beside it and asks no network for anything.

What is shown comes partly from strangers' files (names, prompts): the template escapes all of it.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixeldance.errors import DataError
from pixeldance.evaluation.measures import MEASURES
from pixeldance.evaluation.plots import plots
from pixeldance.evaluation.results import PAGE_FILE, Results
from pixeldance.evaluation.runner import shown_methods
from pixeldance.evaluation.settings import EvalSettings
from pixeldance.evaluation.suite import Suite
from pixeldance.video.files import new_files

__all__ = ["filmstrips", "render_page", "write_page"]

ARROWS = {"low": " \N{DOWNWARDS ARROW}", "high": " \N{UPWARDS ARROW}", "truth": ""}
"""Where better is."""


def render_page(report: Mapping[str, Any], strips: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML.

    Args:
        report: What ``build_report`` returned.
        strips: What ``filmstrips`` returned.

    Returns:
        A whole document.

    Raises:
        DataError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise DataError("The page needs jinja2. Install it: pip install jinja2.") from error
    environment = Environment(
        loader=PackageLoader("pixeldance.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    shown = {key for means in report["methods"].values() for key in means}
    return environment.get_template("eval.html.jinja").render(
        report=report,
        measures=[measure for key, measure in MEASURES.items() if key in shown],
        arrows=ARROWS,
        plots=list(plots(report)),
        filmstrips=strips,
        seeds=_seeds([clip["seed"] for clip in report["clips"]]),
    )


def figure(value: float, decimals: int, is_share: bool = False) -> str:
    """A number for readers.

    Args:
        value: The number.
        decimals: How many to show.
        is_share: Whether to show it in percent.

    Returns:
        Such as ``0.123`` or ``12.3 %``.
    """
    return f"{100 * value:.{decimals}f} %" if is_share else f"{value:.{decimals}f}"


def filmstrips(settings: EvalSettings, suite: Suite, results: Results) -> list[dict[str, Any]]:
    """The first clips as pictures.

    Args:
        settings: How many.
        suite: The clips.
        results: Where the pictures are.

    Returns:
        Name, prompt and rows (method, data URI) of each clip.
    """
    return [
        {
            "name": clip.name,
            "prompt": clip.prompt,
            "rows": [
                (method, _data_uri(results.filmstrip_path(clip.key, method)))
                for method in shown_methods(settings)
            ],
        }
        for clip in suite.clips[: settings.num_filmstrips]
    ]


def write_page(folder: Path, html: str) -> Path:
    """Write ``eval.html``, complete or not at all; an earlier one is replaced.

    Args:
        folder: Of the evaluation.
        html: What ``render_page`` returned.

    Returns:
        The path.
    """
    path = folder / PAGE_FILE
    with new_files(path, overwrite=True) as (temporary,):
        temporary.write_text(html, encoding="utf-8")
    return path


def _data_uri(path: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _seeds(seeds: Sequence[int]) -> str:
    """A list of seeds, or where it starts and ends."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
