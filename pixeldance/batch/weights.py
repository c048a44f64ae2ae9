"""What a batch must know of a model before it is loaded; torch is not needed for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pixeldance.errors import CheckpointError, InputError
from pixeldance.geometry import Size, resolve_size
from pixeldance.models.loading import find_weights, weights_sha256
from pixeldance.request import DEFAULT_PIXEL_BUDGET

__all__ = ["ModelFacts"]

WAN_SPATIAL_FACTOR = 8
"""Spatial factor of a codec whose configuration does not name it: diffusers' AutoencoderKLWan."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as its configuration files describe it.

    Attributes:
        source: What ``pixeldance.load`` takes: a name, a folder or a hub id.
        name: Name of the loaded model.
        sha256: Fingerprint of its weights.
        pixel_budget: Pixels per frame where no size is given.
        size_multiple: Height and width are multiples of it.
    """

    source: str
    name: str
    sha256: str
    pixel_budget: int
    size_multiple: int

    @classmethod
    def read(cls, model: str) -> Self:
        """Find a model and read its configuration.

        Args:
            model: A name, a folder or a hub id.

        Returns:
            The facts.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        folder = find_weights(model)
        pipeline = _config(folder / "model_index.json")
        patch = _config(folder / "transformer" / "config.json").get("patch_size", (1, 2, 2))
        factor = _config(folder / "vae" / "config.json").get(
            "scale_factor_spatial", WAN_SPATIAL_FACTOR
        )
        given = Path(model).expanduser()
        return cls(
            source=model,
            name=folder.resolve().name if given.is_dir() else given.name,
            sha256=weights_sha256(folder),
            pixel_budget=_pixel_budget(folder, pipeline),
            size_multiple=int(factor) * max(patch[1:]),
        )

    def is_called(self, model: str) -> bool:
        """Whether a row that names a model means this one.

        Args:
            model: Value of the row's ``model``.

        Returns:
            True if the names agree; folders do not count, as in ``Model.generate``.
        """
        return Path(model).name == self.name

    def check_size(self, size: Size) -> None:
        """Check that the model can make clips of a size.

        Args:
            size: Size that a row gives.

        Raises:
            InputError: If a side is no multiple of what the model needs.
        """
        for name, side in zip(("height", "width"), size, strict=True):
            if side % self.size_multiple:
                raise InputError(
                    f"{name} must be a multiple of {self.size_multiple} pixels for {self.name}, "
                    f"got {side}. Use another, or aspect_ratio."
                )

    def size_for(self, aspect_ratio: str, earliest: Size | None) -> Size:
        """The size of a clip for which none is given.

        Args:
            aspect_ratio: The row's.
            earliest: Size of the picture that comes first in the clip, if there is one.

        Returns:
            What the loaded model's ``size_for`` gives.
        """
        return resolve_size(
            aspect_ratio,
            pixel_budget=self.pixel_budget,
            multiple=self.size_multiple,
            first_frame=earliest,
        )


def _pixel_budget(folder: Path, pipeline: dict[str, Any]) -> int:
    """What the loaded pipeline takes: the rules are those of its backbone."""
    if pipeline.get("pixel_budget"):
        return int(pipeline["pixel_budget"])
    from pixeldance.backbones.loading import is_released

    if not is_released(folder):
        return DEFAULT_PIXEL_BUDGET
    from pixeldance.backbones import released

    if pipeline.get("expand_timesteps"):
        return released.PIXELS_TI2V
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or released.SHIFT_480P)
    return released.PIXELS_720P if shift > released.SHIFT_480P else released.PIXELS_480P


def _config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} of the model cannot be read from {str(path.parent)!r}. Fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} in {str(path.parent)!r} is damaged. Fetch it again.")
    return value
