"""The command line: every module beside ``app``, ``options`` and ``screen`` adds its commands."""

from pixeldance.cli import evaluate, generate, jobs, serve, train
from pixeldance.cli.app import app, main

__all__ = ["app", "evaluate", "generate", "jobs", "main", "serve", "train"]
