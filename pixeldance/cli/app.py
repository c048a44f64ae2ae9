"""The command line's frame: the application, what makes a function a command, shared options.

Results go to stdout (paths, or one JSON object with ``--json``), everything else to stderr. Exit
codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped with Ctrl-C, after which nothing is
left behind. torch is imported when a model is loaded, not before: all that can be wrong with a
request is found first.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from pixeldance import __version__
from pixeldance.cli.options import set_parameters
from pixeldance.cli.screen import errors_reported, quiet

__all__ = ["JsonOption", "OverwriteOption", "app", "command", "command_of", "main", "print_json"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that are already there.")
]

app = typer.Typer(
    name="pixeldance",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, no colours
)


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    app(prog_name="pixeldance")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command that reports errors as the contract says and has ``--debug``.

    Args:
        function: Its parameters are the options; its docstring is the help.

    Returns:
        The function itself.
    """
    app.command()(_reporting(function))
    return function


def command_of(
    group: typer.Typer, name: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of a group, as ``command`` does.

    Args:
        group: The group; it has been added to ``app``.
        name: What the command is called in it.

    Returns:
        A decorator.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        group.command(name)(_reporting(function))
        return function

    return add


def _reporting(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def reporting(*, debug: bool, **values: Any) -> None:
        with errors_reported(debug=debug), quiet():
            function(**values)

    debug = inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(False, "--debug", help="Show where an error comes from."),
        annotation=bool,
    )
    set_parameters(reporting, [*inspect.signature(function).parameters.values(), debug])
    return reporting


def print_json(value: Mapping[str, Any]) -> None:
    """Print the result of a command as one JSON object.

    Args:
        value: JSON values.
    """
    typer.echo(json.dumps(value, indent=2))


@command
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Two pictures and a sentence in, a clip out."""
