"""The worker: takes jobs from the store one by one and makes their clips.

It alone owns the model. ``python -m pixeldance.jobs`` is the process that a server starts
and supervises (``WorkerProcess``); ``Worker`` is the same inside a process of one's own.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from pixeldance.errors import GenerationCancelled
from pixeldance.jobs.errors import WorkerBusyError
from pixeldance.jobs.films import make_film, story_from_json
from pixeldance.jobs.job import Job, JobClip, JobState, Phase
from pixeldance.jobs.live import BoardWriter
from pixeldance.jobs.locks import WorkerLock
from pixeldance.jobs.progress import JobProgress, Previews
from pixeldance.jobs.requests import request_from_json
from pixeldance.jobs.resident import ResidentModel
from pixeldance.jobs.results import error_in_words, save_clip
from pixeldance.jobs.store import JobStore

if TYPE_CHECKING:
    from pixeldance.api import Model, StepListener

__all__ = ["Worker"]

POLL_S = 0.1
"""How often it looks for jobs, or for the end of a pause."""

_GRACE_S = 2.0
_MAX_SEED = 2**63 - 1

logger = logging.getLogger(__name__)


class Worker:
    """Runs the jobs of a store, as the only one. Use it as a context manager.

    Args:
        store: The store.
        load_model: Loads a model by the name or folder that a request has.
        wait: Whether to wait until a worker that is there has gone; otherwise it is an error.

    Raises:
        WorkerBusyError: If there is another worker, on entering.
    """

    def __init__(
        self, store: JobStore, *, load_model: Callable[[str], "Model"], wait: bool = False
    ) -> None:
        self._store = store
        self._load_model = load_model
        self._wait = wait
        self._lock = WorkerLock(store.folder.worker_lock)
        self._board = BoardWriter(store.folder.live)
        self._is_leaving = threading.Event()
        self._model: tuple[str, Model, Previews] | None = None

    def __enter__(self) -> Self:
        self._acquire()
        self._board.clear()
        ResidentModel.forget(self._store.folder)
        self._store.running.recover()
        self._store.storage.sweep()
        return self

    def __exit__(self, *exception: object) -> None:
        ResidentModel.forget(self._store.folder)
        self._board.close()
        self._lock.release()

    def _acquire(self) -> None:
        start, is_told = time.monotonic(), False
        while not self._lock.try_acquire():
            # A store that is being opened holds the lock for a moment.
            is_overdue = time.monotonic() - start > _GRACE_S
            if is_overdue and not self._wait:
                raise WorkerBusyError(
                    f"The jobs of '{self._store.folder.path}' are being run by "
                    f"{self._lock.holder()}. Leave them to it, or stop it first."
                )
            if is_overdue and not is_told:
                logger.warning("Waiting for %s to leave.", self._lock.holder())
                is_told = True
            if self._is_leaving.wait(POLL_S):
                raise WorkerBusyError("Asked to leave while another worker was at work.")

    def leave(self) -> None:
        """Have ``run`` return after the current step; its job goes back to the queue."""
        self._is_leaving.set()

    def run(self) -> None:
        """Run jobs as they come, until ``leave`` is called."""
        seen: tuple[int, int] | None = None
        while not self._is_leaving.is_set():
            version = self._store.version()
            job = None if version == seen else self.claim()
            if job is None:
                seen = version
                self._is_leaving.wait(POLL_S)
            else:
                self.run_job(job)

    def claim(self) -> Job | None:
        """Take up the first job of the queue that is not paused.

        Returns:
            The job, running; None if there is nothing to do.
        """
        return self._store.running.claim()

    def run_job(self, job: Job, *, on_step: "StepListener | None" = None) -> Job:
        """Make the clips of a job that has been claimed; whatever happens, it ends or is requeued.

        Args:
            job: The job.
            on_step: Called after each step, with the steps of its clip.

        Returns:
            The job as it is then.
        """
        running = self._store.running
        progress = JobProgress(
            job,
            self._board,
            lambda: running.control(job.id),
            is_leaving=self._is_leaving,
            listener=on_step,
        )
        try:
            with self._given_back_on_leaving(job):
                make = self._make_film if job.is_film else self._make_clips
                make(job, progress)
        except GenerationCancelled:
            running.end(job.id, JobState.CANCELLED)
        except Exception as error:
            logger.info("Job %s failed.", job.id, exc_info=True)
            words = error_in_words(error)
            running.end(job.id, JobState.FAILED, error=words, traceback=traceback.format_exc())
        finally:
            self._board.clear()
        return self._store.get(job.id)

    @contextmanager
    def _given_back_on_leaving(self, job: Job) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            is_outcome = isinstance(error, Exception) and not self._is_leaving.is_set()
            if is_outcome:
                raise
            self._store.running.give_back(job.id)
            if not isinstance(error, Exception):  # Ctrl-C
                raise

    def _make_film(self, job: Job, progress: JobProgress) -> None:
        folder = self._store.folder
        story = story_from_json(job.request, folder)
        progress.enter(Phase.LOADING)
        model, previews = self._model_of(story.model)
        record = make_film(job, story, folder, model, progress=progress, previews=previews)
        self._store.running.add_clip(job, record, is_last=True)

    def _make_clips(self, job: Job, progress: JobProgress) -> None:
        request = request_from_json(job.request, self._store.folder)
        progress.enter(Phase.LOADING)
        model, previews = self._model_of(request.model)
        for number in range(len(job.clips) + 1, request.num_videos + 1):
            progress.begin_clip(number, request.num_inference_steps, previews)
            seed = (job.seed + number - 1) % (_MAX_SEED + 1)
            clip = model.generate(
                # One at a time: what is finished is kept, and made again by its own recipe.
                request.model_copy(update={"num_videos": 1, "seed": seed}),
                on_step=progress.on_step,
            )
            progress.enter(Phase.SAVING)
            files = self._store.folder.clip_files(job.id, number)
            save_clip(clip, files, job.pictures)
            num_frames, height, width, _ = clip.frames.shape
            is_early = "num_steps_done" in clip.recipe
            record = JobClip(
                number=number,
                seed=clip.seed,
                num_frames=num_frames,
                height=height,
                width=width,
                fps=clip.fps,
                num_steps_done=clip.recipe.get("num_steps_done", request.num_inference_steps),
                num_bytes=files.num_bytes,
                sha256=clip.recipe["frames"]["sha256"],
            )
            is_last = is_early or number == request.num_videos or progress.is_finishing
            self._store.running.add_clip(job, record, is_last=is_last)
            if is_last:
                return

    def _model_of(self, name: str) -> "tuple[Model, Previews]":
        """The model of this name; that of the last job is kept, others make room for it."""
        if self._model is None or self._model[0] != name:
            self._model = None
            ResidentModel.forget(self._store.folder)
            model = self._load_model(name)
            self._model = (name, model, Previews(model.pipeline.vae))
            ResidentModel.of(name, model).write(self._store.folder)
        return self._model[1:]
