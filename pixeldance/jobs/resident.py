"""The model that the worker has loaded, as it tells everybody who shows it."""

import json
from typing import TYPE_CHECKING, NamedTuple, Self

from pixeldance.jobs.folders import DataFolder
from pixeldance.video.files import new_files

if TYPE_CHECKING:
    from pixeldance.api import Model

__all__ = ["ResidentModel"]


class ResidentModel(NamedTuple):
    """What is known of a loaded model."""

    model: str
    """As requests name it: a name, a folder or a hub id."""
    facts: dict[str, str]
    """What recipes say of it: ``name``, ``sha256``, ``device``, ``dtype``, ``loras``, ..."""
    memory: str | None
    """How it shares the memory of the device, in one sentence; None if that is no question."""

    @classmethod
    def of(cls, name: str, model: "Model") -> Self:
        """Describe a model.

        Args:
            name: As requests name it.
            model: The model.

        Returns:
            The description.
        """
        plan = model.memory_plan
        return cls(name, model.facts, None if plan is None else str(plan))

    def write(self, folder: DataFolder) -> None:
        """Tell of it, for the one worker.

        Args:
            folder: The data folder.
        """
        with new_files(folder.resident, overwrite=True) as (temporary,):
            temporary.write_text(json.dumps(self._asdict()), encoding="utf-8")

    @staticmethod
    def forget(folder: DataFolder) -> None:
        """Tell that no model is loaded, for the one worker.

        Args:
            folder: The data folder.
        """
        folder.resident.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: DataFolder) -> Self | None:
        """What the worker tells.

        Args:
            folder: The data folder.

        Returns:
            The description; None if it has no model, or another version of it wrote that.
        """
        try:
            return cls(**json.loads(folder.resident.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
