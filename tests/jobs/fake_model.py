"""A model that takes no time to load and makes grey clips; run as a program it is a worker of them.

``python fake_model.py DATA_FOLDER [SECONDS_PER_STEP]``
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.jobs.store import JobStore
from pixeldance.jobs.worker import Worker
from pixeldance.pictures import load_picture
from pixeldance.request import GenerationRequest
from pixeldance.video import build_recipe, write_clip


@dataclass(frozen=True)
class FakeClip:
    frames: npt.NDArray[np.uint8]
    fps: int
    seed: int
    recipe: dict[str, Any]

    @property
    def first_frame(self) -> Image.Image:
        return Image.fromarray(self.frames[0])

    @property
    def last_frame(self) -> Image.Image:
        return Image.fromarray(self.frames[-1])

    def save(self, path: Path, *, overwrite: bool) -> Path:
        return write_clip(path, self.frames, fps=self.fps, recipe=self.recipe, overwrite=overwrite)


class FakeModel:
    """Waits for every step; its clips show their seed."""

    facts: ClassVar = {"name": "fake"}
    memory_plan = None

    def __init__(
        self, seconds_per_step: float = 0.0, log: Callable[[int], object] | None = None
    ) -> None:
        self.pipeline = SimpleNamespace(vae=None)
        self._seconds_per_step = seconds_per_step
        self._log = log

    def generate(self, request: GenerationRequest, *, on_step: Callable[[Any], Any]) -> FakeClip:
        assert request.seed is not None
        assert request.num_videos == 1
        if self._log is not None:
            self._log(request.seed)
        if request.prompt == "fail":
            raise RuntimeError("the model\nbroke")
        if request.prompt == "die":
            os._exit(3)
        pictures = {role: load_picture(source) for role, source in request.pictures.items()}
        num_steps, done = request.num_inference_steps, 0
        while done < num_steps:
            time.sleep(self._seconds_per_step)
            done += 1
            event = SimpleNamespace(
                step=done, num_steps=num_steps, elapsed_s=1.0, remaining_s=1.0, denoised=None
            )
            if on_step(event) == "finish early":
                break
        frames = np.full((request.resolved_num_frames, 32, 48, 3), request.seed % 200, np.uint8)
        recipe = build_recipe(
            request.to_recipe(pictures),
            seed=request.seed,
            frames=frames,
            fps=request.fps,
            model={"name": "fake", "sha256": "0" * 64},
            versions={},
            timings={},
            pictures={},
        )
        if done < num_steps:
            recipe["num_steps_done"] = done
        return FakeClip(frames, request.fps, request.seed, recipe)


def run_as_process(folder: Path, seconds_per_step: float) -> None:
    descriptor = os.open(folder / "starts.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(seed: int) -> None:
        os.write(descriptor, f"{seed}\n".encode())

    model: Any = FakeModel(seconds_per_step, log)
    with JobStore(folder) as store:
        worker = Worker(store, load_model=lambda name: model, wait=True)
        from pixeldance.jobs.__main__ import run_until_told

        run_until_told(worker)


if __name__ == "__main__":
    run_as_process(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
