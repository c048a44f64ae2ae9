"""LoRAs of Wan checkpoints in the formats of diffusers, Wan's own code, kohya and musubi."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from safetensors import SafetensorError

from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.loading import weights_sha256

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""Prefix of an option to the expert that is meant: for high noise, for low noise."""


class Lora(NamedTuple):
    """A LoRA to load."""

    path: Path
    scale: float = 1.0
    expert: str | None = None
    """``high``, ``low``, or None for every transformer of the checkpoint."""

    @property
    def sha256(self) -> str:
        """Fingerprint of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def label(self) -> str:
        """What it is called in recipes: no folders."""
        return str(self._replace(path=Path(self.path.name)))

    def __str__(self) -> str:
        """As ``parse_lora`` reads it."""
        expert = "" if self.expert is None else f"{self.expert}:"
        return f"{expert}{self.path}:{self.scale!r}"

    def with_whole_path(self) -> Self:
        """The same, found from any folder."""
        return self._replace(path=self.path.expanduser().absolute())

    def check_expert(self, *, has_two_experts: bool) -> None:
        """Check that the model has the expert that the LoRA is for.

        Args:
            has_two_experts: Whether the model has two.

        Raises:
            InputError: If it has one, and the LoRA names one of two.
        """
        if self.expert is not None and not has_two_experts:
            raise InputError(
                f"{self.path.name} is for the {self.expert} expert, but this model has one "
                f"transformer. Leave out {self.expert}:."
            )


def parse_lora(text: str) -> Lora:
    """Read ``[high:|low:]path[:scale]``.

    Args:
        text: A ``.safetensors`` file, in front of it the expert that it is for, behind it its
            scale (1 if left out).

    Returns:
        The LoRA; the file is known to be there.

    Raises:
        InputError: If there is no such file, or the scale is no number.
    """
    expert, separator, rest = text.partition(":")
    if not separator or expert not in EXPERTS:
        expert, rest = "", text
    path, separator, scale = rest.rpartition(":")
    if not separator or rest.endswith(".safetensors"):
        path, scale = rest, "1"
    try:
        value = float(scale)
    except ValueError:
        raise InputError(
            f"The scale of a LoRA is a number, got {scale!r}. Use {path}:1.0."
        ) from None
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        raise InputError(
            f"{path!r} is no .safetensors file. Give a LoRA as path, path:scale, or "
            "high:path:scale and low:path:scale for two experts."
        )
    return Lora(Path(path), value, expert or None)


def load_loras(pipeline: "DiffusionPipeline", loras: Sequence[Lora]) -> None:
    """Add LoRAs to the transformers of a pipeline.

    Args:
        pipeline: The pipeline.
        loras: The LoRAs; their effects add up.

    Raises:
        CheckpointError: If a file is no LoRA of this kind of model.
        InputError: If a LoRA is for an expert that the model does not have.
    """
    active: dict[str, list[tuple[str, float]]] = {}
    for number, lora in enumerate(loras):
        _check_fits(pipeline, lora)
        name = f"lora_{number}"
        for component in _components(pipeline, lora):
            try:
                pipeline.load_lora_weights(
                    str(lora.path),
                    adapter_name=name,
                    use_safetensors=True,
                    load_into_transformer_2=component == "transformer_2",
                )
            except (ValueError, RuntimeError, KeyError) as error:
                raise CheckpointError(_no_lora(lora, str(error).splitlines()[0])) from error
            active.setdefault(component, []).append((name, lora.scale))
    for component, adapters in active.items():
        names, scales = zip(*adapters, strict=True)
        getattr(pipeline, component).set_adapters(list(names), list(scales))


def fingerprint(folder: Path, files: Mapping[str, Path], loras: Sequence[Lora]) -> str:
    """Fingerprint of a model: its folder's; with other weights on top one that depends on them.

    Args:
        folder: Folder of the model.
        files: Files whose weights take the place of a component's.
        loras: What is added.

    Returns:
        SHA-256.
    """
    sha256 = weights_sha256(folder)
    added = [f"{name} {Lora(file).sha256}" for name, file in sorted(files.items())]
    added += [f"{lora.expert} {lora.scale!r} {lora.sha256}" for lora in loras]
    if not added:
        return sha256
    return hashlib.sha256("\n".join([sha256, *added]).encode()).hexdigest()


def _components(pipeline: "DiffusionPipeline", lora: Lora) -> list[str]:
    present = [name for name in EXPERTS.values() if getattr(pipeline, name) is not None]
    if lora.expert is None:
        return present
    lora.check_expert(has_two_experts=len(present) == 2)
    return [EXPERTS[lora.expert]]


def _check_fits(pipeline: "DiffusionPipeline", lora: Lora) -> None:
    """Weights that find no layer would be dropped with a warning."""
    try:
        weights = pipeline.lora_state_dict(str(lora.path), use_safetensors=True)
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(_no_lora(lora, reason)) from error
    layers = {name for name, _ in pipeline.transformer.named_modules()}
    wanted = {key.split(".lora_")[0].removeprefix("transformer.") for key in weights}
    unknown = sorted(wanted - layers)
    if unknown or not weights:
        example = f", such as {unknown[0]}" if unknown else ""
        reason = f"{len(unknown)} of {len(wanted)} layers are unknown{example}"
        raise CheckpointError(_no_lora(lora, reason))


def _no_lora(lora: Lora, reason: str) -> str:
    return (
        f"{lora.path.name} is no LoRA for this model ({reason}). Use one made for this checkpoint."
    )
