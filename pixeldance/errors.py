"""Exceptions of the package.

Everything the package raises on purpose derives from one class, so that a caller can catch it in
one place and print it without a traceback::

    PixelDanceError
    |-- ConfigError (also ValueError)    a model or training configuration is wrong
    |-- InputError (also ValueError)     a request, a picture or an option is wrong
    |-- CheckpointError                  weights are missing, damaged or do not fit the config
    |-- DataError                        training or evaluation data is missing or damaged
    `-- GenerationCancelled              somebody asked a running generation to stop

Messages say what was given, what is allowed and what to do, in one line.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GenerationCancelled",
    "InputError",
    "PixelDanceError",
]


class PixelDanceError(Exception):
    """Base of every exception that the package raises on purpose."""


class ConfigError(PixelDanceError, ValueError):
    """A model or training configuration holds a key or a value that is not allowed."""


class InputError(PixelDanceError, ValueError):
    """A request, a picture or an option cannot be used as given."""


class CheckpointError(PixelDanceError):
    """Weights are missing, damaged or do not belong to the configuration beside them."""


class DataError(PixelDanceError):
    """Training or evaluation data is missing or damaged."""


class GenerationCancelled(PixelDanceError):  # noqa: N818 - an outcome, not a failure
    """A running generation was asked to stop; nothing has been written."""
