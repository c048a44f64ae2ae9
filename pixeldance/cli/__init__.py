"""The command line: every module beside ``app``, ``options`` and ``screen`` adds its commands."""

from pixeldance.cli import (
    batch,
    compare,
    evaluate,
    fetch,
    finish,
    generate,
    jobs,
    serve,
    story,
    train,
)
from pixeldance.cli.app import app, main

__all__ = [
    "app",
    "batch",
    "compare",
    "evaluate",
    "fetch",
    "finish",
    "generate",
    "jobs",
    "main",
    "serve",
    "story",
    "train",
]
