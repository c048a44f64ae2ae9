"""Why the store refuses something; each is an error of the package, told apart for servers."""

from pixeldance.errors import InputError, PixelDanceError

__all__ = [
    "IdempotencyKeyError",
    "JobStateError",
    "StorageFullError",
    "UnknownJobError",
    "WorkerBusyError",
]


class UnknownJobError(InputError):
    """There is no job of that id."""


class IdempotencyKeyError(InputError):
    """The key named another request before."""


class JobStateError(InputError):
    """The job is in a state in which that cannot be done to it."""


class StorageFullError(PixelDanceError):
    """New jobs are refused: the quota is used up, or the disk is nearly full."""


class WorkerBusyError(PixelDanceError):
    """Another process runs the jobs of this store."""
