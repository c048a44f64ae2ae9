"""What the HTTP API takes and returns, as it is described in its OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from pixeldance.jobs import Job, JobEvent, JobState, Phase
from pixeldance.request import GenerationRequest

__all__ = [
    "CREATE_BODY",
    "EVENT_EXAMPLE",
    "PICTURES",
    "DeletedVideo",
    "ErrorBody",
    "Health",
    "ModelInfo",
    "ModelList",
    "Status",
    "Video",
    "VideoEvent",
    "VideoList",
]

PICTURES = ("first_frame", "last_frame")
"""Fields of the request that hold one picture."""

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

_STATUSES: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.DONE: "completed",
    JobState.FAILED: "failed",
    JobState.INTERRUPTED: "failed",
    JobState.CANCELLED: "cancelled",
}


class VideoError(BaseModel):
    """Why a video failed."""

    code: Literal["generation_failed", "interrupted"]
    message: str = Field(description="What happened and what can be done, in plain words.")


class VideoClip(BaseModel):
    """A finished clip of a video; there is one unless num_videos was given."""

    number: int = Field(description="From 1; the number to ask for its content with.")
    seed: int = Field(description="Seed that made it.")
    width: int
    height: int
    num_frames: int
    fps: int
    num_steps_done: int = Field(description="Sampling steps; fewer if it was finished early.")
    num_bytes: int = Field(description="Bytes that its files take.")
    sha256: str = Field(description="Fingerprint of its frames before they were encoded.")


class Video(BaseModel):
    """A job that makes a video, or several that differ in their seeds."""

    id: str
    object: Literal["video"] = "video"
    status: Status
    progress: int = Field(ge=0, le=100, description="Percent of the sampling steps; 100 at the end")
    created_at: int = Field(description="Unix time in seconds.")
    started_at: int | None
    completed_at: int | None = Field(description="When it came to its end, whatever that was.")
    expires_at: None = Field(description="Always null: clips are kept until they are deleted.")
    model: str
    prompt: str
    seconds: str = Field(description='Length as decimal text, such as "2.08".')
    size: str | None = Field(
        description='Width and height such as "256x144"; null while the model has not chosen it.'
    )
    num_frames: int
    fps: int
    seed: int = Field(description="Seed of the first clip; it was drawn if none was given.")
    queue_place: int | None = Field(description="How many wait before it; null if it does not.")
    is_paused: bool
    clips: list[VideoClip]
    request: dict[str, Any] = Field(
        description="The fields that were given; a picture is {name, sha256, width, height}."
    )
    error: VideoError | None

    @classmethod
    def of(cls, job: Job, event: JobEvent) -> "Video":
        """Describe a job.

        Args:
            job: The job.
            event: Its latest event.

        Returns:
            What a client sees of it.
        """
        fields = job.to_json()
        request = fields["request"]
        length = {
            name: request[name] for name in ("num_frames", "duration", "fps") if name in request
        }
        timing = GenerationRequest.parse(length)
        default_model: str = GenerationRequest.model_fields["model"].default
        return cls(
            id=job.id,
            status=_STATUSES[job.state],
            progress=_progress(event),
            created_at=int(job.created_at),
            started_at=None if job.started_at is None else int(job.started_at),
            completed_at=None if job.finished_at is None else int(job.finished_at),
            expires_at=None,
            model=request.get("model", default_model),
            prompt=request.get("prompt", ""),
            seconds=f"{timing.resolved_num_frames / timing.fps:.2f}".rstrip("0").rstrip("."),
            size=_size(job),
            num_frames=timing.resolved_num_frames,
            fps=timing.fps,
            seed=job.seed,
            queue_place=job.place,
            is_paused=job.is_paused,
            clips=[VideoClip(**clip) for clip in fields["clips"]],
            request=request,
            error=_error(job.state, job.error),
        )


def _progress(event: JobEvent) -> int:
    if event.state is JobState.DONE:
        return 100
    # The last percent is decoding and saving.
    return min(99, 100 * event.step // event.num_steps)


def _size(job: Job) -> str | None:
    if job.clips:
        return f"{job.clips[0].width}x{job.clips[0].height}"
    width, height = job.request.get("width"), job.request.get("height")
    return None if width is None or height is None else f"{width}x{height}"


def _error(state: JobState, message: str | None) -> VideoError | None:
    if state is JobState.INTERRUPTED:
        return VideoError(code="interrupted", message=message or "")
    return VideoError(code="generation_failed", message=message) if message else None


class VideoList(BaseModel):
    """A page of the list of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None = Field(description="Give it as `after` to get the next page.")
    has_more: bool


class DeletedVideo(BaseModel):
    """A video that is gone, with its clips."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class VideoEvent(BaseModel):
    """How far a video is; what an event stream tells."""

    id: str
    object: Literal["video.event"] = "video.event"
    status: Status
    progress: int
    phase: Phase
    is_paused: bool
    step: int = Field(description="Sampling steps done, of all clips together.")
    num_steps: int
    clip: int = Field(description="Number of the clip that is being made, from 1; 0 before.")
    num_clips: int
    seconds_per_step: float | None
    remaining_seconds: float | None = Field(
        description="What the remaining steps will take; decoding comes on top."
    )
    preview_number: int | None
    error: VideoError | None

    @classmethod
    def of(cls, event: JobEvent) -> "VideoEvent":
        """Describe an event.

        Args:
            event: The event.

        Returns:
            What a client sees of it.
        """
        return cls(
            id=event.job_id,
            status=_STATUSES[event.state],
            progress=_progress(event),
            phase=event.phase,
            is_paused=event.is_paused,
            step=event.step,
            num_steps=event.num_steps,
            clip=event.clip,
            num_clips=event.num_clips,
            seconds_per_step=event.seconds_per_step,
            remaining_seconds=event.remaining_s,
            preview_number=event.preview_number,
            error=_error(event.state, event.error),
        )


class ModelInfo(BaseModel):
    """A model that the server has."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"


class ModelList(BaseModel):
    """The models that the server has."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    """Whether the server can do its work."""

    status: Literal["ok", "no_worker"] = Field(
        description="no_worker: jobs are taken and kept, but nobody makes clips at the moment."
    )


class _ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Why a call was refused."""

    error: _ErrorDetails


def _create_schema(picture: dict[str, Any], *, is_form: bool) -> dict[str, Any]:
    """JSON schema of what creates a video: the fields of the request and OpenAI's names."""
    properties = GenerationRequest.model_json_schema()["properties"]
    for name in PICTURES:
        properties[name] = {**picture, "description": properties[name]["description"]}
    properties["input_reference"] = {**picture, "description": "OpenAI's name of first_frame."}
    properties["keyframes"] = {
        "type": "object",
        "additionalProperties": picture,
        "description": properties["keyframes"]["description"]
        + (" In a form, a file per picture, called keyframes[12]." if is_form else ""),
    }
    properties["seconds"] = {
        "anyOf": [{"type": "string"}, {"type": "number"}],
        "description": "OpenAI's name of duration.",
    }
    properties["size"] = {
        "type": "string",
        "pattern": "^[0-9]+x[0-9]+$",
        "description": "Width and height in pixels such as 256x144, in place of the two.",
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


_BASE64 = {"type": "string", "description": "Base64, bare or as a data: URL. Never an address."}
_FILE = {"type": "string", "format": "binary"}
_EXAMPLE = {"prompt": "a red fox jumps to the left", "seconds": "2", "size": "256x144", "seed": 7}

CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _create_schema(_FILE, is_form=True),
                "encoding": {"keyframes": {"style": "deepObject", "explode": True}},
            },
            "application/json": {
                "schema": _create_schema(_BASE64, is_form=False),
                "examples": {
                    "text": {"summary": "From a sentence", "value": _EXAMPLE},
                    "pictures": {
                        "summary": "From the first to the last frame",
                        "value": {
                            **_EXAMPLE,
                            "first_frame": "data:image/png;base64,iVBORw0KGgo...",
                            "last_frame": "data:image/png;base64,iVBORw0KGgo...",
                            "last_frame_strength": 0.8,
                        },
                    },
                },
            },
        },
    }
}
"""Description of the body of the call that creates a video, for its OpenAPI operation."""

_EVENT = VideoEvent(
    id="0f3c9a51b2d4",
    status="in_progress",
    progress=37,
    phase=Phase.DENOISING,
    is_paused=False,
    step=3,
    num_steps=8,
    clip=1,
    num_clips=1,
    seconds_per_step=0.51,
    remaining_seconds=2.55,
    preview_number=2,
    error=None,
)
EVENT_EXAMPLE = {"example": f"id: 3000007\nevent: progress\ndata: {_EVENT.model_dump_json()}\n\n"}
"""An event as a stream sends it, for the OpenAPI document."""
