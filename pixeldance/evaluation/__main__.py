"""``python -m pixeldance.evaluation compare``: the model and its peers on held-out clips."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.request import GenerationRequest

if TYPE_CHECKING:
    from pixeldance.api import Model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; tables go to stdout, progress and errors to stderr.

    Args:
        arguments: Those of the command line if absent.

    Returns:
        Exit status: 0, or 2 after an error that a message explains.
    """
    options = _parser().parse_args(arguments)
    try:
        _compare(options)
    except PixelDanceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = GenerationRequest()
    parser = argparse.ArgumentParser(prog="python -m pixeldance.evaluation")
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser(
        "compare",
        help="compare the model with ways to interpolate",
        description="Fill in held-out clips between their first and last frames with the model and "
        "its peers, and compare the inner frames with the truth. Tables go to stdout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = compare.add_argument
    add("--num-clips", type=int, default=64, help="number of held-out clips")
    add("--size", default="192x192", help="WIDTHxHEIGHT in pixels, multiples of 16")
    add("--num-frames", type=int, default=defaults.resolved_num_frames, help="length, 4k + 1")
    add("--steps", type=int, default=defaults.num_inference_steps, help="the model's steps")
    add("--guidance-scale", type=float, default=defaults.guidance_scale, help="1 = off")
    add("--seed-offset", type=int, default=0, help="seed of the first clip; the others count on")
    add(
        "--methods",
        default="ours,hold-first,crossfade,rife",
        help="methods, separated by commas; the first one is on the sheet",
    )
    add("--model", default=defaults.model, help="name of a model, or a folder with one")
    add("--device", default="auto", help="where the model runs: auto, cpu, cuda")
    add("--json", default="comparison.json", help="where all scores go")
    add("--sheet", default=None, help="where a picture (.png) of the first 12 clips goes")
    add("--overwrite", action="store_true", help="replace files that are already there")
    return parser


def _compare(options: argparse.Namespace) -> None:
    """Check everything first, then run, then write."""
    width, height = _size(options.size)
    _check_outputs(options)

    from pixeldance.evaluation.compare import Settings, check_methods, compare, load_methods

    settings = Settings(
        num_clips=options.num_clips,
        width=width,
        height=height,
        num_frames=options.num_frames,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        seed_offset=options.seed_offset,
    )
    names = check_methods([name.strip() for name in options.methods.split(",")])

    from pixeldance.evaluation.metrics import load_lpips
    from pixeldance.evaluation.report import markdown, to_json, write_json, write_sheet
    from pixeldance.worlds.stickers import StickerWorld

    model: dict[str, str] = {}

    def load_model() -> "Model":
        from pixeldance.api import load

        loaded = load(options.model, device=options.device)
        model.update(name=loaded.name, sha256=loaded.sha256, dtype=loaded.dtype)
        return loaded

    lpips = load_lpips()
    world = StickerWorld("heldout")
    methods = load_methods(names, settings, load_model)
    progress = _Progress(settings.num_clips)
    comparison = compare(methods, settings, world=world, lpips=lpips, on_clip=progress)
    print(markdown(comparison))  # noqa: T201
    values = to_json(comparison, model=model or None)
    written = [write_json(options.json, values, overwrite=options.overwrite)]
    if options.sheet is not None:
        written.append(write_sheet(options.sheet, comparison, overwrite=options.overwrite))
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)  # noqa: T201


def _check_outputs(options: argparse.Namespace) -> None:
    from pixeldance.video.files import check_output_path

    check_output_path(options.json, suffix=".json", overwrite=options.overwrite)
    if options.sheet is not None:
        check_output_path(options.sheet, suffix=".png", overwrite=options.overwrite)


def _size(text: str) -> tuple[int, int]:
    """Width and height."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"--size must be WIDTHxHEIGHT, such as 192x192, got {text!r}.")
    return int(width), int(height)


class _Progress:
    """One line on stderr, rewritten on a terminal; what remains follows from the pace so far."""

    def __init__(self, num_clips: int) -> None:
        self.num_clips = num_clips
        self.start = time.monotonic()

    def __call__(self, done: int) -> None:
        elapsed = time.monotonic() - self.start
        remaining = round(elapsed / done * (self.num_clips - done))
        line = f"clip {done}/{self.num_clips}, {remaining // 60}:{remaining % 60:02d} min left"
        is_terminal = sys.stderr.isatty()
        end = "\r" if is_terminal and done < self.num_clips else "\n"
        print(f"{line}   " if is_terminal else line, end=end, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
