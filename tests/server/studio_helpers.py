"""A worker that fades from the first picture to the last: real clips, without a model."""

import threading
import time

import numpy as np
import numpy.typing as npt
from PIL import Image
from server_helpers import HandWorker

from pixeldance.geometry import Size, fit_picture, resolve_size
from pixeldance.jobs import JobClip, JobService, JobState, Phase
from pixeldance.jobs.live import BoardReader
from pixeldance.jobs.pictures import save_thumbnail
from pixeldance.pictures import load_picture
from pixeldance.request import GenerationRequest
from pixeldance.video import build_recipe, frames_sha256, write_clip


class FadingWorker(HandWorker):
    """Does what a worker does, one step per call, and shows and saves a crossfade."""

    pixel_budget = 48 * 48

    def __init__(self, service: JobService) -> None:
        super().__init__(service)
        self.may_go_on = threading.Event()
        """While it is not set, running jobs stay at their first step."""
        self.may_go_on.set()

    def step(self, step: int, *, phase: Phase = Phase.DENOISING) -> bool:
        if not super().step(step, phase=phase):
            return False
        job = self.job
        assert job is not None
        note = BoardReader(self._store.folder.live).read()
        assert note is not None
        _, frames, _ = self._made()
        self._number += 1
        shown = note._replace(
            number=self._number, preview_number=self._number, preview=frames[:, ::2, ::2]
        )
        self._board.write(shown)
        return True

    def run_next(self, step_s: float) -> None:
        """Make the next clip, if there is one; a job whose prompt is "fail" fails."""
        self.job = self._store.running.claim()
        if self.job is None:
            return
        for step in range(self.job.num_steps):
            if not self.step(step):
                return
            time.sleep(step_s)
            while self._is_held():
                time.sleep(0.05)
            if self._store.running.control(self.job.id).command == "finish":
                break
        if self.job.request.get("prompt") == "fail":
            words = "There is too little memory. Choose a smaller size or fewer frames."
            self._store.running.end(self.job.id, JobState.FAILED, error=words)
            self._board.clear()
        else:
            self.finish()

    def _is_held(self) -> bool:
        assert self.job is not None
        control = self._store.running.control(self.job.id)
        return control.command is None and (control.is_paused or not self.may_go_on.is_set())

    def finish(self) -> None:
        job, store = self.job, self._store
        assert job is not None
        request, frames, pictures = self._made()
        files = store.folder.clip_files(job.id, 1)
        files.clip.parent.mkdir(exist_ok=True)
        recipe = build_recipe(
            request.to_recipe(pictures),
            seed=job.seed,
            frames=frames,
            fps=request.fps,
            model={"name": request.model, "sha256": "0" * 64},
            versions={},
            timings={},
            pictures=pictures,
        )
        write_clip(files.clip, frames, fps=request.fps, recipe=recipe)
        Image.fromarray(frames[-1]).save(files.last_frame)
        save_thumbnail(Image.fromarray(frames[0]), files.thumbnail)
        clip = JobClip(
            number=1,
            seed=job.seed,
            num_frames=len(frames),
            height=frames.shape[1],
            width=frames.shape[2],
            fps=request.fps,
            num_steps_done=job.num_steps,
            num_bytes=files.num_bytes,
            sha256=frames_sha256(frames),
        )
        store.running.add_clip(job, clip, is_last=True)
        self._board.clear()

    def _made(
        self,
    ) -> tuple[GenerationRequest, npt.NDArray[np.uint8], dict[str, Image.Image]]:
        job = self.job
        assert job is not None
        request = self._store.request(job.id)
        given = {role: load_picture(source) for role, source in request.pictures.items()}
        first = given.get("first_frame")
        size = resolve_size(
            request.aspect_ratio,
            pixel_budget=self.pixel_budget,
            multiple=16,
            first_frame=None if first is None else Size(first.height, first.width),
        )
        fitted = {
            role: fit_picture(one, size, fit=request.fit, focus=request.focus)
            for role, one in given.items()
        }
        grey = Image.new("RGB", (size.width, size.height), "grey")
        ends = [np.asarray(fitted.get(r, grey), float) for r in ("first_frame", "last_frame")]
        parts = np.linspace(0, 1, request.resolved_num_frames)[:, None, None, None]
        return request, ((1 - parts) * ends[0] + parts * ends[1]).round().astype(np.uint8), fitted
