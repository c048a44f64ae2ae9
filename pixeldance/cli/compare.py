"""Commands that show clips: compare two of them, lay one out as a contact sheet."""

from pathlib import Path
from typing import Annotated

import typer

from pixeldance.cli.app import JsonOption, OverwriteOption, command, print_json
from pixeldance.cli.screen import tell

__all__ = ["compare", "sheet"]

_UNITS = {"psnr": " dB", "ssim": "", "lpips": ""}


@command
def compare(
    first: Annotated[Path, typer.Argument(help="A clip: MP4, MOV or WebM.")],
    second: Annotated[Path, typer.Argument(help="Another clip.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where both go side by side with their difference, as MP4."
        ),
    ] = None,
    convert: Annotated[
        bool,
        typer.Option("--convert", help="Bring the second clip to the first one's size and times."),
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how alike two clips are and show them side by side.

    PSNR (higher is more alike), SSIM (1 is equal) and LPIPS (0 is equal), each the mean over the
    frames; --json gives every frame.
    """
    from pixeldance.video import check_clip_path, read_clip, write_clip

    if output is not None:
        check_clip_path(output, overwrite=overwrite)
    clips = read_clip(first), read_clip(second)
    from pixeldance.evaluation.compare import compare_frames, match_clip

    one, other, conversions = match_clip(*clips, convert=convert)
    for conversion in conversions:
        tell(f"Converted: {conversion}.")
    found = compare_frames(one, other)
    for name, reason in found.missing.items():
        tell(f"No {name.upper()}: {reason}")
    if output is not None:
        from pixeldance.video.side_by_side import side_by_side

        captions = [
            f"frame {i}   "
            + "   ".join(
                f"{name.upper()} {values[i]:.3f}{_UNITS[name]}"
                for name, values in found.per_frame.items()
            )
            for i in range(len(one))
        ]
        page = side_by_side(one, other, labels=(first.name, second.name), captions=captions)
        write_clip(output, page, fps=clips[0].fps, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "path": None if output is None else str(output),
                "num_frames": len(one),
                "conversions": conversions,
                "mean": found.mean,
                "per_frame": dict(found.per_frame),
            }
        )
        return
    for name, value in found.mean.items():
        typer.echo(f"{name.upper():6}{value:.3f}{_UNITS[name]}")
    if output is not None:
        typer.echo(output)


@command
def sheet(
    clip: Annotated[Path, typer.Argument(help="A clip: MP4, MOV or WebM.")],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the picture goes, ending in .png.")
    ],
    columns: Annotated[int, typer.Option(min=1, help="Frames per row.")] = 5,
    max_frames: Annotated[int, typer.Option(min=1, help="How many frames to show at most.")] = 10,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Lay frames of a clip out in one picture: evenly chosen, the first and the last among them."""
    from pixeldance.video import read_clip, write_contact_sheet
    from pixeldance.video.files import check_output_path

    check_output_path(output, suffix=".png", overwrite=overwrite)
    write_contact_sheet(
        output,
        read_clip(clip).frames,
        columns=columns,
        max_frames=max_frames,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"path": str(output)})
    else:
        typer.echo(output)
