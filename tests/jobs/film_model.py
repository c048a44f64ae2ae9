"""A model that makes grey clips for films at once, and remembers what it was asked for."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pixeldance.jobs.store import JobStore
from pixeldance.jobs.worker import Worker
from pixeldance.request import GenerationRequest
from pixeldance.stories import Target

DEFAULT_MODEL = GenerationRequest.model_fields["model"].default


class FilmModel:
    """Has the fingerprint of the default model, so that plans for that one are plans for it.

    Args:
        seconds_per_step: How long each step takes.
        log: Called with the prompt and seed of each clip when it is begun.
    """

    def __init__(
        self, seconds_per_step: float = 0.0, log: Callable[[str, int], object] | None = None
    ) -> None:
        target = Target.find(DEFAULT_MODEL)
        self.name, self.sha256 = target.name, target.sha256
        self.facts, self.memory_plan = {"name": target.name}, None
        self.pipeline = SimpleNamespace(vae=None, backbone=target)
        self.asked: list[tuple[str, int]] = []
        """Prompt and seed of each clip that was begun."""
        self.may_go_on = threading.Event()
        """While it is not set, clips stay at their first step."""
        self.may_go_on.set()
        self._seconds_per_step = seconds_per_step
        self._log = log

    def generate(self, request: GenerationRequest, *, on_step: Callable[[Any], Any]) -> Any:
        assert request.seed is not None
        assert request.height is not None
        assert request.width is not None
        self.asked.append((request.prompt, request.seed))
        if self._log is not None:
            self._log(request.prompt, request.seed)
        if request.prompt == "fail":
            raise RuntimeError("the model broke")
        num_steps = request.num_inference_steps
        for step in range(1, num_steps + 1):
            time.sleep(self._seconds_per_step)
            on_step(SimpleNamespace(step=step, num_steps=num_steps, denoised=None))
            while not self.may_go_on.wait(0.02):
                on_step(SimpleNamespace(step=step, num_steps=num_steps, denoised=None))
        grey = 40 + (request.seed * 37 + len(request.prompt) * 11) % 200
        shape = (request.resolved_num_frames, request.height, request.width, 3)
        return SimpleNamespace(frames=np.full(shape, grey, np.uint8))


def run_as_process(folder: Path, seconds_per_step: float) -> None:
    """Be a worker of such films; what is begun is written to ``starts.log``."""
    descriptor = os.open(folder / "starts.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    model: Any = FilmModel(
        seconds_per_step, lambda prompt, seed: os.write(descriptor, f"{prompt} {seed}\n".encode())
    )
    with JobStore(folder) as store:
        from pixeldance.jobs.__main__ import run_until_told

        run_until_told(Worker(store, load_model=lambda name: model, wait=True))


if __name__ == "__main__":
    run_as_process(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
