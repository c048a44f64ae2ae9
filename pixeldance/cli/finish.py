"""Commands for a clip that is there: finish, sign, verify."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixeldance.cli.app import JsonOption, OverwriteOption, command, print_json
from pixeldance.cli.screen import FAILED, tell
from pixeldance.errors import InputError

if TYPE_CHECKING:
    from pixeldance.finishing.finisher import Estimate, FinishedSize
    from pixeldance.video import ClipFile

__all__ = ["finish", "sign", "verify"]

ClipArgument = Annotated[Path, typer.Argument(help="A clip: MP4, MOV or WebM.")]


@command
def finish(
    clip: ClipArgument,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the finished clip goes; its ending says how."),
    ],
    fps_factor: Annotated[
        int, typer.Option(help="2 or 4 times as many frames per second, by RIFE.")
    ] = 1,
    upscale: Annotated[
        int, typer.Option(help="2 or 4 times as high and wide, by Real-ESRGAN.")
    ] = 1,
    clip_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="mp4, webm, av1 (.webm or .mp4), prores (.mov), gif, webp, png (a folder) or zip; "
            "by default the output's ending says it.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and stop.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give a clip more frames, more pixels or another file format.

    Says the expected time and memory before it starts. The recipe goes along, with what was done.
    """
    from pixeldance.finishing.finisher import finished_size, load_finisher, with_finishing
    from pixeldance.video import read_clip
    from pixeldance.video.export import check_export_path, check_fits, export_clip

    name = check_export_path(output, clip_format=clip_format, overwrite=overwrite)
    _check_asked(clip, output, name, fps_factor=fps_factor, upscale=upscale)
    source = read_clip(clip)
    size = finished_size(source.frames.shape, source.fps, fps_factor=fps_factor, upscale=upscale)
    check_fits(name, height=size.height, width=size.width, fps=size.fps)
    finisher = load_finisher(fps_factor=fps_factor, upscale=upscale, device=device)
    estimate = finisher.estimate(source.frames)
    tell(_plan(source, size, estimate))
    if not dry_run:
        with _frame_progress() as on_frame:
            frames = finisher.run(source.frames, on_frame=on_frame)
        recipe = source.recipe
        if recipe is None:
            tell("The file holds no recipe of a clip, so the finished one holds none either.")
        else:
            recipe = with_finishing(
                recipe,
                source=source.frames,
                finished=frames,
                fps=size.fps,
                fps_factor=fps_factor,
                upscale=upscale,
                clip_format=name,
            )
        export_clip(
            output, frames, fps=size.fps, clip_format=name, recipe=recipe, overwrite=overwrite
        )
    if as_json:
        print_json(_as_json(None if dry_run else output, name, size, estimate))
    elif not dry_run:
        typer.echo(output)


@command
def sign(
    clip: Annotated[
        Path, typer.Argument(help="A finished file that holds its recipe: MP4, MOV, GIF or WebP.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the signed file goes.")],
    certificate: Annotated[
        Path, typer.Option(help="Your certificate and those above it, in one PEM file.")
    ],
    key: Annotated[Path, typer.Option(help="Its private key, a PEM file.")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a clip with C2PA: content credentials that say it was made by a model.

    Do it last: whatever changes the file afterwards breaks the signature.
    """
    from pixeldance.finishing.provenance import sign_clip

    sign_clip(clip, output, certificate=certificate, key=key, overwrite=overwrite)
    if as_json:
        print_json({"path": str(output)})
    else:
        typer.echo(output)


@command
def verify(
    clip: Annotated[Path, typer.Argument(help="A file that may be signed with C2PA.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whether a file's content credentials are intact, who signed it and what they claim.

    The exit code is 0 if they are intact and 1 if not, or if there are none. Whether the signer is
    to be trusted is another question: a certificate that anyone can make is shown as untrusted.
    """  # noqa: DOC501 - this text is the help
    from pixeldance.finishing.provenance import read_credentials

    found = read_credentials(clip)
    if as_json:
        print_json({"signed": found is not None, **({} if found is None else found._asdict())})
    elif found is None:
        typer.echo("not signed")
    else:
        typer.echo(found.summary())
    if found is None or not found.is_intact:
        raise typer.Exit(FAILED)


def _check_asked(clip: Path, output: Path, name: str, *, fps_factor: int, upscale: int) -> None:
    if output.resolve() == clip.resolve():
        raise InputError(
            f"'{output}' is the clip itself, which stays as it is. Choose another output name."
        )
    if fps_factor == upscale == 1 and name == "mp4" and clip.suffix.lower() == ".mp4":
        raise InputError(
            "There is nothing to do. Give --fps-factor 2, --upscale 2 or another output format."
        )


def _plan(source: "ClipFile", size: "FinishedSize", estimate: "Estimate") -> str:
    num_frames, height, width = source.frames.shape[:3]
    time_text = f"about {estimate.seconds:.0f} s" if estimate.seconds >= 1 else "about a second"
    return (
        f"{_described(num_frames, width, height, source.fps)} -> "
        f"{_described(size.num_frames, size.width, size.height, size.fps)}; {time_text}, "
        f"up to {estimate.memory_bytes / 1024**3:.1f} GiB of memory"
    )


def _described(num_frames: int, width: int, height: int, fps: Fraction) -> str:
    return f"{num_frames} frames, {width} x {height}, {float(fps):g} fps"


def _as_json(
    output: Path | None, name: str, size: "FinishedSize", estimate: "Estimate"
) -> dict[str, Any]:
    return {
        "path": None if output is None else str(output),
        "format": name,
        **{**size._asdict(), "fps": str(size.fps)},
        "estimated_s": round(estimate.seconds, 1),
        "estimated_memory_bytes": estimate.memory_bytes,
    }


@contextmanager
def _frame_progress() -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a line that is rewritten on a terminal, else a line per tenth."""
    is_terminal = sys.stderr.isatty()
    start = time.monotonic()
    tenths = 0

    def show(done: int, total: int) -> None:
        nonlocal tenths
        remaining_s = (time.monotonic() - start) / done * (total - done)
        text = f"frame {done}/{total}, {remaining_s:.0f} s left"
        if is_terminal:
            typer.echo(f"\r{text:<40}", nl=False, err=True)
        elif 10 * done // total > tenths:
            tell(text)
        tenths = 10 * done // total

    try:
        yield show
    finally:
        if is_terminal:
            tell("")
