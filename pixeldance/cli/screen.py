"""What the command line shows beside its results: progress, errors and nothing of the libraries."""

import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from pixeldance.errors import ConfigError, GenerationCancelled, InputError, PixelDanceError

if TYPE_CHECKING:
    from pixeldance.api import StepEvent, StepListener

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "WRONG_INPUT",
    "TaskProgress",
    "errors_reported",
    "progress",
    "quiet",
    "silence_libraries",
    "tell",
]

FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130

BAR_WIDTH = 24
SECONDS_BETWEEN_LINES = 30.0
LIBRARIES = ("accelerate", "diffusers", "huggingface_hub", "torch", "transformers")


def tell(message: str) -> None:
    """Say something to the person, on stderr.

    Args:
        message: One line.
    """
    typer.echo(message, err=True)


@contextmanager
def errors_reported(*, debug: bool) -> Iterator[None]:
    """Turn what a command raises into one line on stderr and an exit code.

    Args:
        debug: Whether the traceback is shown too.

    Yields:
        None: Nothing.

    Raises:
        Exit: With the exit code.
        BrokenPipeError: If nobody reads the results any more; typer ends the process.
    """
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except (KeyboardInterrupt, GenerationCancelled):
        _fail("Stopped. Nothing was written.", INTERRUPTED, debug=debug)
    except (ConfigError, InputError) as error:
        _fail(f"error: {error}", WRONG_INPUT, debug=debug)
    except PixelDanceError as error:
        _fail(f"error: {error}", FAILED, debug=debug)
    except Exception as error:  # not foreseen: still one line, and the way to the rest
        hint = "" if debug else " Add --debug to see where it comes from."
        _fail(f"error: {type(error).__name__}: {error}.{hint}", FAILED, debug=debug)


def _fail(message: str, exit_code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    tell(re.sub(r"\s*\n\s*", " ", message))
    raise typer.Exit(exit_code)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep messages and bars of libraries off the screen; warnings of this package are shown.

    Yields:
        None: Nothing.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.addFilter(_Once())
    own, root = logging.getLogger("pixeldance"), logging.getLogger()
    silent = logging.NullHandler()  # without any handler, Python prints to stderr itself
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    own.addHandler(handler)
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.removeHandler(handler)
        root.removeHandler(silent)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _Once(logging.Filter):
    """Let equal messages through once: each of several clips would repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


def silence_libraries() -> None:
    """Raise the thresholds of libraries; once they are imported, since that sets them."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def progress() -> Iterator["StepListener"]:
    """Show steps on stderr: a line that is rewritten on a terminal, else a line per tenth.

    Yields:
        StepListener: To be called after each step.
    """
    is_terminal = sys.stderr.isatty()
    tenths = 0

    def show(event: "StepEvent") -> None:
        nonlocal tenths
        part = event.step / event.num_steps
        left = f"{event.remaining_s:.0f} s left" if part < 1 else "decoding"
        rate = f"{event.elapsed_s / event.step:.2f} s per step"
        text = f"step {event.step}/{event.num_steps}, {rate}, {left}"
        if is_terminal:
            bar = ("#" * round(BAR_WIDTH * part)).ljust(BAR_WIDTH, ".")
            typer.echo(f"\r[{bar}] {text:<50}", nl=False, err=True)
        elif int(10 * part) > tenths:
            tell(text)
        tenths = int(10 * part)

    try:
        yield show
    finally:
        if is_terminal:
            tell("")


class TaskProgress:
    """One line on stderr for many tasks: rewritten on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._said_at = time.monotonic()

    def show(self, done: int, total: int, unit: str, remaining_s: float, more: str = "") -> None:
        """Say how far it is.

        Args:
            done: Tasks done.
            total: All tasks, at least 1.
            unit: What is counted.
            remaining_s: Seconds that the rest will take.
            more: What is added to the line.
        """
        left = round(remaining_s)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"{done}/{total} {unit}, {clock} left{more}"
        if self._is_terminal:
            bar = ("#" * round(BAR_WIDTH * done / total)).ljust(BAR_WIDTH, ".")
            typer.echo(f"\r[{bar}] {text:<60}", nl=done == total, err=True)
        elif done == total or time.monotonic() - self._said_at > SECONDS_BETWEEN_LINES:
            self._said_at = time.monotonic()
            tell(text)
