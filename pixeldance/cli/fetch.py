"""The command that downloads a checkpoint: fetch."""

from typing import Annotated

import typer

from pixeldance.cli.app import JsonOption, command, print_json
from pixeldance.cli.screen import tell

__all__ = ["fetch"]


@command
def fetch(
    model: Annotated[str, typer.Argument(help="Hub id, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers.")],
    *,
    is_agreed: Annotated[
        bool, typer.Option("--yes", help="Download without asking; sizes are printed all the same.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a checkpoint, after telling how large it is and what its licence is.

    Prints its folder. A checkpoint that is here already is not fetched again.
    """
    from pixeldance.models.hub import cached_checkpoint, fetch_checkpoint, plan_download

    folder = cached_checkpoint(model)
    if folder is None:
        tell(str(plan_download(model)))
        if not is_agreed:
            typer.confirm("Download it?", abort=True, err=True)
        folder = fetch_checkpoint(model)
    if as_json:
        print_json({"model": model, "folder": str(folder)})
    else:
        typer.echo(folder)
