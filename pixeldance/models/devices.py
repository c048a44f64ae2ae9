"""Where a model computes, and in which number format."""

import torch

from pixeldance.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The device of a name.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` takes a CUDA device if there is one.

    Returns:
        A device that can be used.

    Raises:
        InputError: If it cannot.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device {device!r} cannot be used here. Use auto, cpu or cuda."
        ) from error
    # An index means nothing there, and would move the weights to other addresses.
    return torch.device("cpu") if chosen.type == "cpu" else chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of a name.

    Args:
        dtype: A key of ``DTYPES``, or ``auto``: bfloat16 where the device computes in it.
        device: Where it is used.

    Returns:
        The format.

    Raises:
        InputError: If it is unknown, or slow and inexact there.
    """
    if dtype == "auto":
        is_fast = device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16())
        return torch.bfloat16 if is_fast else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}.")
    if dtype == "float16" and device.type == "cpu":
        raise InputError("float16 is slow and inexact on the CPU. Use auto, float32 or bfloat16.")
    return DTYPES[dtype]


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16; elsewhere it is emulated, slowly."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
