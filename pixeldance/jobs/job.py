"""What a job is: its states, its result, what is told about it while it runs."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FINAL_STATES",
    "Job",
    "JobClip",
    "JobEvent",
    "JobState",
    "Phase",
    "Preview",
    "pictures_of",
]


class JobState(StrEnum):
    """The states of a job; pausing is a flag beside them."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its worker died twice under it."""


FINAL_STATES = frozenset(JobState) - {JobState.QUEUED, JobState.RUNNING}
"""States that a job leaves only by being requeued."""


class Phase(StrEnum):
    """What the worker does for a job at the moment."""

    QUEUED = "queued"
    LOADING = "loading"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    SAVING = "saving"
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class JobClip:
    """A finished clip of a job.

    Attributes:
        number: From 1; names its files, see ``JobService.clip_files``.
        seed: The seed that made it.
        num_frames: Its length.
        height: Pixels.
        width: Pixels.
        fps: Frames per second.
        num_steps_done: Sampling steps; fewer than asked for if it was finished early.
        num_bytes: What its files take.
        sha256: Fingerprint of its frames before they were encoded.
    """

    number: int
    seed: int
    num_frames: int
    height: int
    width: int
    fps: int
    num_steps_done: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request in the store, as it was when it was read.

    Attributes:
        id: Names it for ever.
        state: One of ``JobState``.
        is_paused: A queued job is passed over, a running one waits after its step.
        is_stopping: It was asked to stop and will at its next step.
        is_finishing: It was asked to finish early and will at its next step.
        place: Its place in the queue from 0; None unless it is queued.
        request: The fields given, JSON values; a picture is a mapping of name (None if it had
            none), sha256, width and height.
        seed: Seed of its first clip, drawn when it was added if the request left it open.
        num_steps: Sampling steps asked for, of all its clips together.
        created_at: Seconds since 1970.
        started_at: When it was last taken up; None if it never was.
        finished_at: When it came to a final state.
        num_attempts: How often it was taken up.
        error: Why it failed or was interrupted, in plain words.
        traceback: Where that came from, for whoever looks into it.
        clips: Its finished clips; also those that were finished before it was stopped.
        revision: Grows with every change.
    """

    id: str
    state: JobState
    is_paused: bool
    is_stopping: bool
    is_finishing: bool
    place: int | None
    request: dict[str, Any]
    seed: int
    num_steps: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    num_attempts: int
    error: str | None
    traceback: str | None
    clips: tuple[JobClip, ...]
    revision: int

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it unless it is requeued."""
        return self.state in FINAL_STATES

    @property
    def is_film(self) -> bool:
        """Whether it makes a film of several shots; ``request["story"]`` says of which."""
        return "story" in self.request

    @property
    def pictures(self) -> dict[str, dict[str, Any]]:
        """Pictures of the request by role, such as ``first_frame`` or ``keyframe:12``."""
        return pictures_of(self.request)

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values, without folders of this machine and without the traceback."""
        fields = asdict(self)
        del fields["traceback"]
        request = dict(self.request)
        if "model" in request:
            request["model"] = PurePath(request["model"]).name
        clips = [asdict(clip) for clip in self.clips]
        return {**fields, "state": self.state.value, "request": request, "clips": clips}


def pictures_of(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of the pictures in a stored request by role."""
    records = {role: request[role] for role in ("first_frame", "last_frame") if request.get(role)}
    keyframes = request.get("keyframes") or {}
    return records | {f"keyframe:{frame}": record for frame, record in keyframes.items()}


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """How far a job is. Events are snapshots: whoever is slow misses some, never the last.

    Attributes:
        job_id: The job.
        number: Grows from event to event of a job, also after a restart of anything.
        state: State of the job.
        is_paused: Whether it is paused.
        phase: What is done for it at the moment.
        step: Sampling steps done, of all clips together.
        num_steps: Sampling steps in all.
        clip: Number of the clip that is being made, from 1; 0 before.
        num_clips: Clips that the job makes.
        seconds_per_step: Pace of the steps so far, without pauses; None before the first.
        remaining_s: Seconds that the remaining steps will take; decoding comes on top.
        preview_number: Grows with each preview; None while there is none.
        error: Why it failed, in plain words.
    """

    job_id: str
    number: int
    state: JobState
    is_paused: bool
    phase: Phase
    step: int
    num_steps: int
    clip: int
    num_clips: int
    seconds_per_step: float | None
    remaining_s: float | None
    preview_number: int | None
    error: str | None

    @property
    def is_final(self) -> bool:
        """Whether it is the last event of the job."""
        return self.state in FINAL_STATES

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values."""
        return {**asdict(self), "state": self.state.value, "phase": self.phase.value}


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A small moving picture of what a running job is about to make.

    Attributes:
        number: That of the event it belongs to, see ``JobEvent.preview_number``.
        frames: ``frames height width 3``, uint8, evenly spread over the clip.
    """

    number: int
    frames: npt.NDArray[np.uint8]
