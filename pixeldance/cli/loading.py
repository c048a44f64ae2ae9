"""Options of the commands that load a model, and loading it with a word on the screen."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixeldance.cli.screen import silence_libraries, tell

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = ["DeviceOption", "DtypeOption", "LoraOption", "MemoryOption", "is_main", "load_model"]

DeviceOption = Annotated[str, typer.Option(help="What clips are made on: auto, cpu, cuda, ...")]
DtypeOption = Annotated[
    str, typer.Option(help="Precision they are made in: auto, float32, bfloat16 or float16.")
]
MemoryOption = Annotated[
    str,
    typer.Option(help="How much GPU memory a Wan checkpoint may take: auto, 24gb, 12gb or 8gb."),
]
LoraOption = Annotated[
    list[str],
    typer.Option(
        metavar="[high:|low:]PATH[:SCALE]", help="LoRA to add; may be given several times."
    ),
]


def is_main() -> bool:
    """Whether this is the process that reports, among those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def load_model(model: str, **options: Any) -> "Model":
    """Load a model, and tell how it fits into memory.

    Args:
        model: Its name, folder or hub id.
        **options: Options of ``pixeldance.load``.

    Returns:
        The model.
    """
    from pixeldance.models.loading import find_weights

    if is_main():
        tell(f"Loading {model}")
    find_weights(model)  # before torch, which takes seconds to import
    from pixeldance.api import load

    silence_libraries()
    loaded = load(model, **options)
    if loaded.memory_plan is not None and is_main():
        tell(f"Memory: {loaded.memory_plan}")
    return loaded
