"""Which implementation computes the operations: decided once, at the first use."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass

from pixeldance.errors import ConfigError
from pixeldance.ops.build import Unavailable, build_library, cpu_flags, instruction_set
from pixeldance.ops.native import NativeOps

__all__ = ["Tier", "active_tier"]

VARIABLE = "PIXELDANCE_OPS"
CHOICES = ("auto", "torch", "native")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tier:
    """What computes the operations on the CPU.

    Attributes:
        name: ``native`` or ``torch``.
        reason: The instructions that are used, or why it is PyTorch.
        library: The native operations, or None.
    """

    name: str
    reason: str
    library: NativeOps | None = None

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.name} ({self.reason})"


@functools.cache
def active_tier() -> Tier:
    """Choose what computes the operations on the CPU; the first call may build it (2 s, once).

    The environment variable ``PIXELDANCE_OPS`` is ``auto`` (native where it can be, the default),
    ``torch`` or ``native`` (an error where it cannot be).

    Returns:
        The tier in use.

    Raises:
        ConfigError: If the variable is something else, or ``native`` where that is impossible.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}.")
    if choice == "torch":
        return Tier("torch", f"{VARIABLE} asks for it")
    try:
        tier = _native_tier()
    except Unavailable as problem:
        if choice == "native":
            raise ConfigError(
                f"{VARIABLE} is 'native', but {problem}. Set it to 'auto' or 'torch'."
            ) from problem
        tier = Tier("torch", str(problem))
    logger.info("operations on the CPU: %s", tier)
    return tier


def _native_tier() -> Tier:
    flags = cpu_flags()
    instructions = instruction_set(flags)
    library = build_library(instructions)
    try:
        native = NativeOps(library, instructions, has_amx="amx_bf16" in flags)
    except OSError as error:
        raise Unavailable(f"{library} cannot be loaded ({error})") from error
    return Tier("native", " ".join(instructions), native)
