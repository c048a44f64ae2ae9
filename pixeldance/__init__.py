"""PixelDance: two pictures and a sentence in, a clip out.

    import pixeldance

    model = pixeldance.load()
    clip = model.generate(prompt="a red fox jumps to the left", first_frame="fox.png")
    clip.save("fox.mp4")

Importing the package is cheap: every name below is imported on its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixeldance.api import Clip, Model, load
    from pixeldance.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        GenerationCancelled,
        InputError,
        PixelDanceError,
    )
    from pixeldance.models.codec import LinearVideoCodec
    from pixeldance.models.transformer import PixelDanceTransformer3DModel
    from pixeldance.pipeline import PixelDancePipeline
    from pixeldance.request import GenerationRequest

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Clip",
    "ConfigError",
    "DataError",
    "GenerationCancelled",
    "GenerationRequest",
    "InputError",
    "LinearVideoCodec",
    "Model",
    "PixelDanceError",
    "PixelDancePipeline",
    "PixelDanceTransformer3DModel",
    "__version__",
    "load",
]

_HOMES = {
    "CheckpointError": "pixeldance.errors",
    "Clip": "pixeldance.api",
    "ConfigError": "pixeldance.errors",
    "DataError": "pixeldance.errors",
    "GenerationCancelled": "pixeldance.errors",
    "GenerationRequest": "pixeldance.request",
    "InputError": "pixeldance.errors",
    "LinearVideoCodec": "pixeldance.models.codec",
    "Model": "pixeldance.api",
    "PixelDanceError": "pixeldance.errors",
    "PixelDancePipeline": "pixeldance.pipeline",
    "PixelDanceTransformer3DModel": "pixeldance.models.transformer",
    "load": "pixeldance.api",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pixeldance' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
