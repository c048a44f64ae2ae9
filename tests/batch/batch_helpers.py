"""A folder with a manifest, pictures and a tiny model to run it with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import picture, tiny_pipeline

from pixeldance.api import Clip, Model
from pixeldance.video import read_recipe

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2}


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A manifest of small clips, with two pictures beside it."""
    for number in (1, 2):
        if not (folder / f"{number}.png").exists():
            picture(number).save(folder / f"{number}.png")
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps({**SMALL, **row}) + "\n" for row in rows))
    return path


def save_tiny_model(folder: Path) -> Path:
    path = folder / "tiny"
    tiny_pipeline(has_refiner=True).save_pretrained(path)
    return path


def frames_sha256(output_dir: Path) -> dict[str, str]:
    """Fingerprints of the frames of all clips by id, from their JSON files."""
    return {
        path.stem: read_recipe(path)["frames"]["sha256"]
        for path in sorted(output_dir.glob("*.json"))
    }


class CountingModel:
    """The model it is given, and what it was asked for; prompts that say so make it fail."""

    def __init__(self, model: Model) -> None:
        self.prompts: list[str] = []
        self.sha256 = model.sha256
        self._model = model

    def __call__(self, *_: object) -> Any:
        """Loads itself."""
        return self

    def generate(self, request: Any, *, on_step: Any) -> Clip:
        self.prompts.append(request.prompt)
        if "fail" in request.prompt:
            raise RuntimeError("the model\nbroke")
        if "stop" in request.prompt:
            raise KeyboardInterrupt
        return self._model.generate(request, on_step=on_step)
