"""The command that measures how good a model is: eval."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pixeldance.cli.app import JsonOption, app, command_of, print_json
from pixeldance.cli.screen import INTERRUPTED, TaskProgress, silence_libraries, tell
from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest

if TYPE_CHECKING:
    from pixeldance.api import Model
    from pixeldance.evaluation.runner import EvalProgress
    from pixeldance.evaluation.settings import EvalSettings, Sampling, Sweep
    from pixeldance.geometry import Size

__all__ = ["evaluate"]

ALL_METHODS = "ours,hold-first,crossfade,flow-warp,rife,rife-v3"

_DEFAULTS = GenerationRequest()

Number = TypeVar("Number", int, float)


@command_of(app, "eval")
def evaluate(
    *,
    suite: Annotated[
        str, typer.Option(help="stickers (held-out clips), or a folder of MP4 and MOV files.")
    ] = "stickers",
    methods: Annotated[
        str, typer.Option(help="What is compared, separated by commas.")
    ] = ALL_METHODS,
    num_clips: Annotated[int, typer.Option(help="Number of clips; 256 or more for results.")] = 256,
    size: Annotated[
        str, typer.Option(metavar="WxH[,WxH...]", help="Sizes that the clips take in turn.")
    ] = "256x144",
    num_frames: Annotated[
        int, typer.Option(help="Length of the clips, one more than a multiple of 4.")
    ] = _DEFAULTS.resolved_num_frames,
    fps: Annotated[int, typer.Option(help="Frames per second of made-up clips.")] = _DEFAULTS.fps,
    steps: Annotated[
        int, typer.Option(help="Sampling steps of ours.")
    ] = _DEFAULTS.num_inference_steps,
    guidance_scale: Annotated[
        float, typer.Option(help="Guidance of ours, 1 = off.")
    ] = _DEFAULTS.guidance_scale,
    last_frame_strength: Annotated[
        float, typer.Option(help="Part of the steps that the last frame steers, 0 to 1.")
    ] = _DEFAULTS.last_frame_strength,
    seed_offset: Annotated[
        int, typer.Option(help="Seed of the first made-up clip; the others count on.")
    ] = 0,
    fvd: Annotated[bool, typer.Option(help="Measure the Frechet video distance.")] = True,
    adherence: Annotated[
        int,
        typer.Option(
            help="Cases of each kind of text adherence: direction, camera, order. 0 = off."
        ),
    ] = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Also vary steps, guidance or strength of ours; may be given for each.",
        ),
    ] = None,
    sweep_clips: Annotated[
        int, typer.Option(help="On how many of the first clips sweeps and the reference are run.")
    ] = 32,
    reference: Annotated[
        str | None,
        typer.Option(metavar="STEPS,GUIDANCE", help="A costly setting to hold ours against."),
    ] = None,
    filmstrips: Annotated[int, typer.Option(help="How many of the first clips are shown.")] = 12,
    model: Annotated[
        str, typer.Option(help="Name of the model, or a local folder with one.")
    ] = _DEFAULTS.model,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda.")] = "auto",
    output_dir: Annotated[
        Path, typer.Option(help="Folder of the evaluation: results, report and page.")
    ] = Path("pixeldance-eval"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away earlier results in the folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the model with other methods on clips it has never seen; write a report and a page.

    Prints the main tables and the paths of eval.json and eval.html. Stopped at any moment, the same
    command goes on where it was; more clips, methods or sweeps add to what is there.
    """
    sizes = tuple(_size(text) for text in size.split(","))
    from pixeldance.evaluation.settings import STICKERS, EvalSettings, Sampling

    sampling = Sampling(
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        last_frame_strength=last_frame_strength,
    )
    settings = EvalSettings(
        suite=suite if suite == STICKERS else Path(suite).resolve().name,
        methods=tuple(name.strip() for name in methods.split(",")),
        num_clips=num_clips,
        sizes=sizes,
        num_frames=num_frames,
        fps=fps,
        sampling=sampling,
        seed_offset=seed_offset,
        use_fvd=fvd,
        num_adherence=adherence,
        sweeps=tuple(_sweep(text) for text in sweep or ()),
        num_sweep_clips=sweep_clips,
        reference=None if reference is None else _reference(reference, sampling),
        num_filmstrips=filmstrips,
    )
    folder = None if suite == STICKERS else Path(suite)
    _measure(settings, folder, output_dir, model, device, overwrite=overwrite, as_json=as_json)


def _measure(
    settings: "EvalSettings",
    folder: Path | None,
    output_dir: Path,
    model: str,
    device: str,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    from pixeldance.evaluation.evaluate import evaluate as measure
    from pixeldance.evaluation.text import markdown

    def load_model() -> "Model":
        tell(f"Loading {model}")
        from pixeldance.api import load

        silence_libraries()
        return load(model, device=device)

    try:
        evaluation = measure(
            settings,
            output_dir,
            suite_folder=folder,
            load_model=load_model,
            overwrite=overwrite,
            on_progress=_progress(),
        )
    except KeyboardInterrupt:
        tell(f"\nStopped. What is measured is kept in {output_dir}: the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    report = evaluation.report
    paths = {"report": str(evaluation.report_path), "page": str(evaluation.page_path)}
    if as_json:
        shown = ("run", "num_clips", "warnings", "targets", "methods", "ratios", "fvd", "skipped")
        print_json({**paths, **{name: report[name] for name in shown}})
        return
    for warning in report["warnings"]:
        tell(f"warning: {warning}")
    typer.echo(markdown(report))
    for path in paths.values():
        typer.echo(path)


# ---- options


def _size(text: str) -> "Size":
    from pixeldance.geometry import Size

    width, _, height = text.strip().lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"--size must be WIDTHxHEIGHT such as 256x144, got {text!r}.")
    return Size(int(height), int(width))


def _sweep(text: str) -> "Sweep":
    from pixeldance.evaluation.settings import SWEEPS, Sweep

    name, _, listed = text.partition("=")
    if name not in SWEEPS:
        raise InputError(
            f"--sweep must be one of {', '.join(SWEEPS)} with values, such as steps=2,4,8, got "
            f"{text!r}."
        )
    values: Sequence[float] = _numbers("--sweep", listed, int if name == "steps" else float)
    if len(values) < 2 or len(set(values)) < len(values):
        raise InputError(f"--sweep needs at least two different values, got {text!r}.")
    return Sweep(name, tuple(values))


def _reference(text: str, main: "Sampling") -> "Sampling":
    from dataclasses import replace

    steps, _, guidance = text.partition(",")
    (num_inference_steps,) = _numbers("--reference", steps, int)
    (guidance_scale,) = _numbers("--reference", guidance, float)
    reference = replace(
        main, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
    )
    if reference == main:
        raise InputError(f"--reference must differ from the main setting, got {text!r} for both.")
    return reference


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} needs numbers, got {text!r}.") from None


# ---- progress


def _progress() -> "Callable[[EvalProgress], None]":
    line = TaskProgress()

    def on_progress(event: "EvalProgress") -> None:
        line.show(event.done, event.total, "done", event.remaining_s, f", last: {event.task}")

    return on_progress
