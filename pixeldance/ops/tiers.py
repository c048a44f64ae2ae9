"""Which implementation computes the operations: decided once per kind of device, at first use."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pixeldance.errors import ConfigError
from pixeldance.ops.build import Unavailable, build_library, cpu_flags, instruction_set
from pixeldance.ops.native import NativeOps

if TYPE_CHECKING:
    from pixeldance.ops.cuda import TritonOps

__all__ = ["Tier", "active_tier"]

VARIABLE = "PIXELDANCE_OPS"
CHOICES = ("auto", "torch", "native", "triton")
MIN_COMPUTE_CAPABILITY = (8, 0)  # the first with bfloat16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tier:
    """What computes the operations on one kind of device.

    Attributes:
        name: ``native``, ``triton`` or ``torch``.
        reason: What is used of the device, or why it is PyTorch.
        library: The operations that PyTorch does not compute, or None.
    """

    name: str
    reason: str
    library: NativeOps | TritonOps | None = None

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.name} ({self.reason})"


@functools.cache
def active_tier(device_type: str) -> Tier:
    """Choose what computes the operations on a kind of device.

    The first call for the CPU may build the native operations (6 s, once per machine), the first
    one for CUDA compiles a kernel as a trial.

    The environment variable ``PIXELDANCE_OPS`` is ``auto`` (the default: native or Triton where
    that can be), ``torch``, or what has to be used on its kind of device: ``native`` on the CPU,
    ``triton`` on CUDA. It is then an error where that cannot be; on the other kind it is as
    ``auto``.

    Args:
        device_type: The ``type`` of a ``torch.device``. Other devices than ``cpu`` and ``cuda``
            have PyTorch only.

    Returns:
        The tier in use.

    Raises:
        ConfigError: If the variable is something else, or asks for what is impossible.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}.")
    if choice == "torch":
        return Tier("torch", f"{VARIABLE} asks for it")
    if device_type not in _FUSED:
        return Tier("torch", f"nothing else computes on {device_type}")
    name, place, find_tier = _FUSED[device_type]
    try:
        tier = find_tier()
    except Unavailable as problem:
        if choice == name:
            raise ConfigError(
                f"{VARIABLE} is {choice!r}, but {problem}. Set it to 'auto' or 'torch'."
            ) from problem
        tier = Tier("torch", str(problem))
    logger.info("operations on the %s: %s", place, tier)
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


def _triton_tier() -> Tier:
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise Unavailable("there is no NVIDIA GPU that PyTorch can use")
    devices = range(torch.cuda.device_count())
    oldest = min(devices, key=torch.cuda.get_device_capability)
    if torch.cuda.get_device_capability(oldest) < MIN_COMPUTE_CAPABILITY:
        raise Unavailable(f"{torch.cuda.get_device_name(oldest)} cannot compute in bfloat16")
    try:
        import triton

        from pixeldance.ops.cuda import TritonOps
    except ImportError as error:
        raise Unavailable(f"Triton cannot be imported ({error})") from error
    library = TritonOps()
    _try_out(library)
    return Tier("triton", f"{triton.__version__} on {torch.cuda.get_device_name()}", library)


def _try_out(library: TritonOps) -> None:
    one = torch.ones(1, 1, 1, device="cuda")
    try:
        two = library.gated_residual(one, one, one)
        works = two is not None and two.item() == 2.0
    except Exception as error:  # Triton needs a C compiler, a folder, a driver that it knows, ...
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"Triton cannot compile for this GPU ({said})") from error
    if not works:
        raise Unavailable("Triton computes wrongly on this GPU")


# The tier beside PyTorch, what messages call the place, and how it is found.
_FUSED = {"cpu": ("native", "CPU", _native_tier), "cuda": ("triton", "GPU", _triton_tier)}
