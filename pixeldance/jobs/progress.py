"""A running job as it is told to its watchers, and what they ask of it in turn."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pixeldance.errors import GenerationCancelled
from pixeldance.jobs.job import Job, Phase
from pixeldance.jobs.live import BoardWriter, Note
from pixeldance.jobs.running import Control

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from pixeldance.api import StepEvent, StepListener

__all__ = ["JobProgress", "Previews"]

POLL_S = 0.1
"""How often a paused job looks whether it may go on."""

logger = logging.getLogger(__name__)


class JobProgress:
    """Puts each step on the board; stops, pauses or finishes the job when asked to.

    Args:
        job: The job, running.
        board: Where it is told.
        control: Says what was asked of the job.
        is_leaving: Set when the worker has to leave.
        listener: Called after each step, with the steps of its clip.
    """

    def __init__(
        self,
        job: Job,
        board: BoardWriter,
        control: Callable[[], Control],
        *,
        is_leaving: threading.Event,
        listener: "StepListener | None" = None,
    ) -> None:
        self._job = job
        self._board = board
        self._control = control
        self._is_leaving = is_leaving
        self._listener = listener
        self._number = 0
        self._phase = Phase.LOADING
        self._num_clips: int = job.request.get("num_videos", 1)
        self._clip = len(job.clips)
        self._steps_of_clip = 0
        self._step = 0
        self._pace = _Pace()
        self._preview_number: int | None = None
        self._preview: npt.NDArray[np.uint8] | None = None
        self._previews: Previews | None = None
        self.is_finishing = False
        """Whether it was asked to finish early."""

    def enter(self, phase: Phase) -> None:
        """Tell that a phase begins.

        Args:
            phase: The phase.

        Raises:
            GenerationCancelled: If the job was asked to stop.
        """
        self._phase = phase
        self._obey()
        self._tell()

    def expect(self, num_clips: int) -> None:
        """Tell how many clips there will be, where the request does not say.

        Args:
            num_clips: Also those that are made already.
        """
        self._num_clips = num_clips

    def begin_clip(self, number: int, num_steps: int, previews: "Previews") -> None:
        """Tell that the next clip is begun.

        Args:
            number: Its number from 1.
            num_steps: Its sampling steps.
            previews: Of the model that makes it.
        """
        self._clip, self._steps_of_clip, self._previews = number, num_steps, previews
        self._step = (number - 1) * num_steps
        self._pace.interrupt()
        self.enter(Phase.ENCODING)

    def on_step(self, event: "StepEvent") -> object:
        """Tell that a step is done, and do what was asked; a listener of ``Model.generate``.

        Args:
            event: The step.

        Returns:
            ``FINISH_EARLY`` if that was asked.
        """
        self._pace.step()
        self._step = (self._clip - 1) * self._steps_of_clip + event.step
        is_last = event.step == self._steps_of_clip
        self._phase = Phase.DECODING if is_last else Phase.DENOISING
        if event.denoised is not None:
            self._show(event.denoised)
        self._tell()
        if self._listener is not None:
            self._listener(event)
        self._obey()
        if not self.is_finishing:
            return None
        from pixeldance.api import FINISH_EARLY

        self._phase = Phase.DECODING
        self._tell()
        return FINISH_EARLY

    def _obey(self) -> None:
        """Stop, wait or go on, as was asked.

        Raises:
            GenerationCancelled: If the job was asked to stop, or the worker has to leave.
        """
        while True:
            command, is_paused = self._control()
            if command == "stop" or self._is_leaving.is_set():
                raise GenerationCancelled(f"The job {self._job.id} was asked to stop.")
            self.is_finishing = command == "finish"
            if not is_paused:
                return
            self._pace.interrupt()
            self._is_leaving.wait(POLL_S)

    def _show(self, denoised: "Tensor") -> None:
        preview = None if self._previews is None else self._previews.of(denoised)
        if preview is not None:
            self._preview = preview
            self._preview_number = (self._preview_number or 0) + 1

    def _tell(self) -> None:
        self._number += 1
        num_steps = max(self._job.num_steps, self._step)
        num_steps_left = 0 if self.is_finishing else num_steps - self._step
        pace = self._pace.seconds_per_step
        self._board.write(
            Note(
                job_id=self._job.id,
                attempt=self._job.num_attempts,
                number=self._number,
                phase=self._phase,
                step=self._step,
                num_steps=num_steps,
                clip=self._clip,
                num_clips=self._num_clips,
                seconds_per_step=pace,
                remaining_s=None if pace is None else pace * num_steps_left,
                preview_number=self._preview_number,
                preview=self._preview,
            )
        )


class Previews:
    """Previews of the clips of one model; if they cannot be made, there are none.

    Args:
        codec: What its latents belong to.
    """

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self._make: Callable[[Tensor], npt.NDArray[np.uint8]] | None = None
        self._is_broken = False

    def of(self, denoised: "Tensor") -> "npt.NDArray[np.uint8] | None":
        """Small frames of a clip, see ``LatentPreview.frames``.

        Args:
            denoised: Estimate of its normalised latents.

        Returns:
            ``frames height width 3``, or None.
        """
        if self._is_broken:
            return None
        try:
            if self._make is None:
                from pixeldance.jobs.preview import LatentPreview  # with torch, which is there now

                self._make = LatentPreview(self._codec).frames
            return self._make(denoised)
        except Exception as error:  # a codec of an unknown kind shall not cost the clip
            logger.warning("There are no previews: %s: %s.", type(error).__name__, error)
            self._is_broken = True
            return None


class _Pace:
    """Seconds per step, without what lies between them when a job is paused or decodes."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._num_steps = 0
        self._elapsed = 0.0

    @property
    def seconds_per_step(self) -> float | None:
        return self._elapsed / self._num_steps if self._num_steps else None

    def step(self) -> None:
        now = time.monotonic()
        self._elapsed += now - self._last
        self._num_steps += 1
        self._last = now

    def interrupt(self) -> None:
        self._last = time.monotonic()
