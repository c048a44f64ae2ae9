"""What a model's own files say of it, before its weights are read and without torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from pixeldance.backbones.lora import fingerprint, parse_lora
from pixeldance.errors import CheckpointError, InputError
from pixeldance.geometry import Size, resolve_size
from pixeldance.models.loading import available_models, find_weights, is_model
from pixeldance.request import DEFAULT_PIXEL_BUDGET, GenerationRequest

__all__ = ["Abilities", "Advice", "ModelFacts", "installed_facts", "is_released", "pixel_budget"]

PIXELS_480P = 480 * 832
PIXELS_720P = 720 * 1280
PIXELS_TI2V = 704 * 1280
SHIFT_480P = 3.0
"""Released checkpoints have this timestep shift at 480p, and a larger one at 720p."""

WAN_SPATIAL_FACTOR = 8
WAN_LATENT_CHANNELS = 16
"""What diffusers' AutoencoderKLWan has where its configuration names no other."""

_LICENCE = re.compile(r"^license:[ \t]*([\w.+-]+)[ \t]*$", re.MULTILINE | re.IGNORECASE)
_MAX_CARD_BYTES = 1024**2


class Abilities(NamedTuple):
    """What of a request a model can follow."""

    takes_pictures: bool = True
    """Whether it takes pictures, or words alone."""
    has_two_experts: bool = False
    """Whether it has one transformer for high noise and one for low noise."""

    def check(self, *, has_pictures: bool, guidance_scale_2: float | None) -> None:
        """Refuse what would have no effect.

        Args:
            has_pictures: Whether there are pictures.
            guidance_scale_2: Guidance of a second expert, if it is given.

        Raises:
            InputError: If the model takes no pictures, or has no second expert.
        """
        if has_pictures and not self.takes_pictures:
            raise InputError(
                "This checkpoint makes clips from text alone and takes no pictures. Leave the "
                "pictures out, or use an I2V, FLF2V, TI2V or InP checkpoint."
            )
        if guidance_scale_2 is not None and not self.has_two_experts:
            raise InputError(
                "guidance_scale_2 is for models with two experts; this one has one. Leave it out."
            )


class Advice(NamedTuple):
    """How the authors of a model sample it."""

    num_inference_steps: int
    guidance_scale: float
    fps: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as its configuration files describe it.

    Attributes:
        source: What ``pixeldance.load`` takes: a name, a folder or a hub id.
        name: Name of the loaded model.
        folder: Where its files are.
        is_released: Whether it is a Wan checkpoint, which brings its own solver.
        pixel_budget: Pixels per frame where no size is given.
        size_multiple: Height and width are multiples of it.
        abilities: What of a request it can follow.
        advice: How its authors sample it.
        loras: LoRAs that are added to it, see ``parse_lora``.
    """

    source: str
    name: str
    folder: Path
    is_released: bool
    pixel_budget: int
    size_multiple: int
    abilities: Abilities
    advice: Advice
    loras: tuple[str, ...] = ()

    @classmethod
    def read(cls, model: str, *, loras: tuple[str, ...] = ()) -> Self:
        """Find a model and read its configuration.

        Args:
            model: A name, a folder or a hub id.
            loras: LoRAs that are added to it.

        Returns:
            The facts.

        Raises:
            CheckpointError: If it is missing or damaged.
            InputError: If there is no such LoRA, or it is for an expert that the model lacks.
        """
        folder = find_weights(model)
        try:
            facts = cls._of_folder(model, folder, loras)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"The configuration of {model!r} is damaged ({error}). Fetch its files again."
            ) from error
        for lora in map(parse_lora, loras):
            lora.check_expert(has_two_experts=facts.abilities.has_two_experts)
        return facts

    @classmethod
    def _of_folder(cls, model: str, folder: Path, loras: tuple[str, ...]) -> Self:
        index = _config(folder / "model_index.json")
        transformer = _config(folder / "transformer" / "config.json")
        vae = _config(folder / "vae" / "config.json")
        has_solver = is_released(folder)
        # Of Wan's configurations, older ones leave out what diffusers has as its default.
        wan = {"scale_factor_spatial": WAN_SPATIAL_FACTOR} if has_solver else {}
        factor = int((wan | vae)["scale_factor_spatial"])
        latents = int(vae.get("z_dim", WAN_LATENT_CHANNELS))
        has_text_only = has_solver and transformer.get("in_channels") == latents
        abilities = Abilities(
            takes_pictures=not has_text_only or bool(index.get("expand_timesteps")),
            has_two_experts=(index.get("transformer_2") or [None])[0] is not None
            and index.get("boundary_ratio") is not None,
        )
        given = Path(model).expanduser()
        return cls(
            source=model,
            name=folder.resolve().name if given.is_dir() else given.name,
            folder=folder,
            is_released=has_solver,
            pixel_budget=_pixel_budget(folder, index, has_solver=has_solver),
            size_multiple=factor * max(transformer.get("patch_size", (1, 2, 2))[1:]),
            abilities=abilities,
            advice=_advice(index, abilities, has_solver=has_solver),
            loras=loras,
        )

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of its weights, with its LoRAs."""
        return _fingerprint(self.folder, self.loras, _stamps(self.folder))

    @cached_property
    def licence(self) -> str | None:
        """Licence that the model's card names; None if it has no card that does."""
        for card in (self.folder / "README.md", self.folder / "LICENSE.md"):
            if card.is_file() and card.stat().st_size <= _MAX_CARD_BYTES:
                found = _LICENCE.search(card.read_text(encoding="utf-8", errors="replace"))
                if found:
                    return found[1]
        return None

    def is_called(self, model: str) -> bool:
        """Whether somebody who names a model means this one.

        Args:
            model: Value of a request's ``model``.

        Returns:
            True if the names agree; folders do not count, as in ``Model.generate``.
        """
        return Path(model).name == self.name

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that the model cannot follow, before it is loaded.

        Args:
            request: The request.

        Raises:
            InputError: If an option would have no effect, or the size does not fit.
        """
        self.abilities.check(
            has_pictures=bool(request.pictures), guidance_scale_2=request.guidance_scale_2
        )
        if request.height is not None and request.width is not None:
            self.check_size(Size(request.height, request.width))

    def check_size(self, size: Size) -> None:
        """Check that the model can make clips of a size.

        Args:
            size: The size.

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
            aspect_ratio: The request's.
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


def installed_facts(model: str, *, loras: tuple[str, ...] = ()) -> ModelFacts | None:
    """The facts of a model that is on this machine; the network is not asked.

    Args:
        model: A name, a folder or a hub id.
        loras: LoRAs that are added to it.

    Returns:
        Its facts; None if it is not here or damaged: whoever loads it says what is wrong.
    """
    is_here = is_model(Path(model).expanduser()) or model in available_models()
    if not is_here and model.count("/") == 1:
        from pixeldance.models.hub import cached_checkpoint

        is_here = cached_checkpoint(model) is not None
    try:
        return ModelFacts.read(model, loras=loras) if is_here else None
    except CheckpointError:
        return None


def is_released(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint that brings its scheduler, as Wan's do.

    Args:
        folder: Folder with ``model_index.json``.

    Returns:
        False for an embedded model.
    """
    index = _config(Path(folder) / "model_index.json")
    return (index.get("scheduler") or [None])[0] is not None


def pixel_budget(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> int:
    """Height times width that a Wan checkpoint was trained at.

    Args:
        index: Its pipeline's configuration.
        scheduler: Its scheduler's configuration.

    Returns:
        The number that the pipeline names; else as its timesteps tell.
    """
    if index.get("pixel_budget"):
        return int(index["pixel_budget"])
    if index.get("expand_timesteps"):
        return PIXELS_TI2V
    shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or SHIFT_480P)
    return PIXELS_720P if shift > SHIFT_480P else PIXELS_480P


def _pixel_budget(folder: Path, index: Mapping[str, Any], *, has_solver: bool) -> int:
    if not has_solver:
        return int(index.get("pixel_budget") or DEFAULT_PIXEL_BUDGET)
    return pixel_budget(index, _config(folder / "scheduler" / "scheduler_config.json"))


def _advice(index: Mapping[str, Any], abilities: Abilities, *, has_solver: bool) -> Advice:
    """Wan's own settings: 50 steps and guidance 5; 40 and 3.5 with two experts; 24 fps for TI2V."""
    if not has_solver:
        fields = GenerationRequest.model_fields
        steps, scale = (fields[n].default for n in ("num_inference_steps", "guidance_scale"))
        return Advice(steps, scale, int(index.get("default_fps") or fields["fps"].default))
    if abilities.has_two_experts:
        return Advice(40, 3.5, 16)
    return Advice(50, 5.0, 24 if index.get("expand_timesteps") else 16)


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of a folder does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


@lru_cache(maxsize=64)
def _fingerprint(
    folder: Path,
    loras: tuple[str, ...],
    stamps: tuple[tuple[str, int, int], ...],  # noqa: ARG001 - part of the key
) -> str:
    # Large weights take a minute to read: only again when they have changed.
    return fingerprint(folder, {}, [parse_lora(lora) for lora in loras])


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
