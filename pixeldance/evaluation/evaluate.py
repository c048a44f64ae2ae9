"""An evaluation from beginning to end: load, run what is missing, write the report and the page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pixeldance.errors import InputError
from pixeldance.evaluation import fvd
from pixeldance.evaluation.fvd import load_i3d
from pixeldance.evaluation.lpips import load_lpips
from pixeldance.evaluation.methods import check_methods
from pixeldance.evaluation.page import filmstrips, render_page, write_page
from pixeldance.evaluation.report import build_report, write_report
from pixeldance.evaluation.results import Results
from pixeldance.evaluation.runner import (
    EvalProgress,
    Instruments,
    identity,
    load_peers,
    model_identity,
    run,
)
from pixeldance.evaluation.settings import OURS, STICKERS, EvalSettings
from pixeldance.evaluation.suite import Suite, folder_suite, sticker_suite
from pixeldance.worlds.stickers import StickerWorld

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = ["Evaluation", "evaluate"]


class Evaluation(NamedTuple):
    """What an evaluation leaves behind."""

    report: dict[str, Any]
    """JSON values, as in the file."""
    report_path: Path
    """``eval.json``."""
    page_path: Path
    """``eval.html``."""


def evaluate(
    settings: EvalSettings,
    output_dir: Path,
    *,
    suite_folder: Path | None = None,
    load_model: Callable[[], "Model"],
    overwrite: bool = False,
    on_progress: Callable[[EvalProgress], object] | None = None,
) -> Evaluation:
    """Measure whatever is not measured yet, then write ``eval.json`` and ``eval.html``.

    Stopped at any moment, the same call goes on where it was.

    Args:
        settings: What to do.
        output_dir: Folder of the evaluation; made if missing.
        suite_folder: Where the clips are, unless the suite is that of the stickers.
        load_model: Gives the model; called only if it is among the methods.
        overwrite: Whether to throw away results of an earlier evaluation in the folder.
        on_progress: Called after each task.

    Returns:
        The report and where it is.
    """
    check_methods(settings.methods)
    _check_length(settings)
    has_world = settings.suite == STICKERS or settings.num_adherence > 0
    world = StickerWorld("heldout") if has_world else None
    suite = _suite(settings, world, suite_folder)
    model = load_model() if OURS in settings.methods else None
    instruments = Instruments(
        lpips=load_lpips(),
        i3d=load_i3d() if settings.use_fvd else None,
        model=model,
        world=world,
        peers=load_peers(settings.methods),
    )
    described = None if model is None else _described(model)
    results = Results(
        output_dir,
        identity(settings),
        model=model_identity(settings, described),
        overwrite=overwrite,
    )
    run(settings, suite, results, instruments, on_progress=on_progress)
    report = build_report(settings, suite, results, model=described)
    html = render_page(report, filmstrips(settings, suite, results))
    return Evaluation(report, write_report(output_dir, report), write_page(output_dir, html))


def _check_length(settings: EvalSettings) -> None:
    if settings.use_fvd and settings.num_frames < fvd.MIN_FRAMES:
        raise InputError(
            f"FVD needs clips of at least {fvd.MIN_FRAMES} frames, got {settings.num_frames}. Make "
            "them longer, or switch it off with --no-fvd."
        )


def _suite(settings: EvalSettings, world: StickerWorld | None, folder: Path | None) -> Suite:
    if settings.suite == STICKERS:
        assert world is not None, "loaded above"
        return sticker_suite(settings, world)
    if folder is None:
        raise InputError(f"The suite {settings.suite!r} needs its folder. Give suite_folder.")
    return folder_suite(settings, folder)


def _described(model: "Model") -> dict[str, str]:
    """What of the model changes its clips; it goes into the identity of the run."""
    return {
        "name": model.name,
        "sha256": model.sha256,
        "dtype": model.dtype,
        "device": model.device.type,
    }
