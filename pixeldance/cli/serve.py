"""The command that runs the server."""

import os
import secrets
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from pixeldance.backbones.options import ModelOptions
from pixeldance.cli.app import command
from pixeldance.cli.loading import DeviceOption, DtypeOption, LoraOption, MemoryOption
from pixeldance.cli.screen import tell
from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest
from pixeldance.server.settings import LOOPBACK, ServerSettings

__all__ = ["serve"]

TOKEN_VARIABLE = "PIXELDANCE_TOKEN"


@command
def serve(
    *,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. Where others can reach it, a token is needed; without "
            "--token one is made."
        ),
    ] = LOOPBACK,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; by default the first free one from 7860."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of jobs and clips; by default $PIXELDANCE_DATA, or your own."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Whoever has it may use the server; everybody who can reach it if it is not "
            f"given. ${TOKEN_VARIABLE} does not show in lists of processes."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name of the server, such as its proxy's; may be repeated."),
    ] = None,
    model: Annotated[
        str, typer.Option(help=GenerationRequest.model_fields["model"].description)
    ] = ServerSettings.model,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    max_upload_mb: Annotated[
        int, typer.Option(min=1, help="Most megabytes of an upload.")
    ] = ServerSettings.max_upload_bytes // 1024**2,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most clips that may wait.")
    ] = ServerSettings.max_queued,
    page: Annotated[bool, typer.Option(help="Whether there is a page, or the API alone.")] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve the page and the HTTP API until Ctrl-C; clips are made meanwhile.

    Prints the address. Jobs are kept: what waits when the server ends is made when it is back.
    One model is in memory at a time; LoRAs are for --model alone.
    """  # noqa: DOC501 - the help
    folder = Path(model).expanduser()
    settings = ServerSettings(
        host=host,
        token=_token(token or os.environ.get(TOKEN_VARIABLE), host),
        allowed_hosts=tuple(allowed_host or ()),
        model=str(folder.resolve()) if folder.is_dir() else model,
        model_options=ModelOptions(
            device=device, dtype=dtype, memory=memory, loras=tuple(lora)
        ).with_whole_paths(),
        max_upload_bytes=max_upload_mb * 1024**2,
        max_queued=max_queue,
    )
    if open_page and not page:
        raise InputError("--open needs the page. Leave out --no-page.")

    def on_ready(address: str) -> None:
        typer.echo(address)
        tell("Press Ctrl-C to end.")
        if open_page:
            webbrowser.open(address)

    from pixeldance.server.launch import serve as run

    run(
        settings,
        folder=data_dir,
        port=port,
        has_page=page,
        on_ready=on_ready,
    )


def _token(given: str | None, host: str) -> str | None:
    """The token that was given, or one that is made because others can reach the server."""
    try:
        is_open = ServerSettings(host=host).token is None
    except InputError:
        is_open = False
    return given if given or is_open else secrets.token_urlsafe(24)
