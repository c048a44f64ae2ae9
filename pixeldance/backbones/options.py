"""How a model is loaded, whichever part of the program does it; torch is not needed for it."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pixeldance.backbones.facts import ModelFacts
from pixeldance.backbones.lora import parse_lora
from pixeldance.errors import InputError

__all__ = ["MEMORY_BUDGETS", "MEMORY_CHOICES", "ModelOptions"]

MEMORY_BUDGETS = {"24gb": 24e9, "12gb": 12e9, "8gb": 8e9}
MEMORY_CHOICES = ("auto", *MEMORY_BUDGETS)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of ``pixeldance.load``, see there.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ...
        dtype: Number format of the transformer.
        memory: How much of the device's memory a Wan checkpoint may take.
        loras: LoRAs to add, each ``[high:|low:]path[:scale]``.

    Raises:
        InputError: If ``memory`` is unknown, or there is no such LoRA.
    """

    device: str = "auto"
    dtype: str = "auto"
    memory: str = "auto"
    loras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.memory not in MEMORY_CHOICES:
            raise InputError(
                f"memory must be one of {', '.join(MEMORY_CHOICES)}, got {self.memory!r}."
            )
        for lora in self.loras:
            parse_lora(lora)

    def check(self, facts: ModelFacts) -> None:
        """Refuse options that have no effect on a model.

        Args:
            facts: The model.

        Raises:
            InputError: If ``memory`` is given for another than a Wan checkpoint, or a LoRA is for
                an expert that the model lacks.
        """
        check_memory(self.memory, facts.name, is_released=facts.is_released)
        for lora in map(parse_lora, self.loras):
            lora.check_expert(has_two_experts=facts.abilities.has_two_experts)

    def with_whole_paths(self) -> Self:
        """The same for a process that runs in another folder."""
        whole = [parse_lora(lora) for lora in self.loras]
        return replace(self, loras=tuple(str(lora.with_whole_path()) for lora in whole))

    def of_model(self, facts: ModelFacts, *, main: str) -> Self:
        """What holds for one of several models that a program may load.

        Args:
            facts: The model.
            main: The model that the LoRAs are for, by the name that it is asked for with.

        Returns:
            Without the LoRAs of another model, and without a budget where it has no effect.
        """
        return replace(
            self,
            loras=self.loras if facts.source == main else (),
            memory=self.memory if facts.is_released else "auto",
        )

    def to_load(self) -> dict[str, Any]:
        """Keyword arguments of ``pixeldance.load``."""
        return asdict(self)

    def arguments(self) -> list[str]:
        """Options of a command line that mean the same."""
        named = [f"--{name}={getattr(self, name)}" for name in ("device", "dtype", "memory")]
        return [*named, *(f"--lora={lora}" for lora in self.loras)]


def check_memory(memory: str, name: str, *, is_released: bool) -> None:
    """Refuse a memory budget that has no effect.

    Args:
        memory: One of ``MEMORY_CHOICES``.
        name: Name of the model.
        is_released: Whether it is a Wan checkpoint.

    Raises:
        InputError: If it is not, and a budget is given.
    """
    if memory != "auto" and not is_released:
        raise InputError(
            f"memory {memory} is for Wan checkpoints and has no effect on {name}. Leave it out."
        )
