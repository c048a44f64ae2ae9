"""The HTTP API: jobs as OpenAI's ``/v1/videos`` has them, with the fields of our request.

Every error has OpenAI's shape. Calls that touch the disk run in threads; pictures are decoded one
request at a time, so that memory does not grow with the number of callers.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from pixeldance.jobs import FINAL_STATES, Job, JobService, JobState, WorkerProcess
from pixeldance.request import GenerationRequest
from pixeldance.server.bodies import body_fields, checked_request, known_models
from pixeldance.server.errors import ApiError
from pixeldance.server.events import EventSlots, EventStream, parse_event_id
from pixeldance.server.schemas import (
    CREATE_BODY,
    EVENT_EXAMPLE,
    DeletedVideo,
    ErrorBody,
    Health,
    ModelInfo,
    ModelList,
    Video,
    VideoList,
)
from pixeldance.server.settings import ServerSettings

__all__ = ["api_routes"]

MAX_KEY_LENGTH = 255
RETRY_AFTER_S = 10

Variant = Literal["video", "thumbnail", "last_frame", "recipe"]

_FILES: dict[Variant, tuple[str, str, str]] = {
    "video": ("clip", "", "video/mp4"),
    "thumbnail": ("thumbnail", "-thumbnail", "image/jpeg"),
    "last_frame": ("last_frame", "-last", "image/png"),
    "recipe": ("recipe", "", "application/json"),
}
"""By variant: the field of ``ClipFiles``, what its name ends in, its type."""


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = {
        400: "Something is wrong with what was given; `param` says with which field.",
        401: "The token is missing or wrong.",
        404: "There is no such video.",
        409: "The video is in a state in which that cannot be done.",
        413: "The body is too large.",
        415: "The body is of a type that is not read.",
        429: "Too much at once; the header Retry-After says when to try again.",
        507: "The disk or the quota is full.",
    }
    return {
        status: {"model": ErrorBody, "description": reasons[status]}
        for status in sorted({401, *statuses})
    }


def api_routes(
    service: JobService, settings: ServerSettings, worker: WorkerProcess | None
) -> APIRouter:
    """The calls of the API.

    Args:
        service: The jobs.
        settings: The limits.
        worker: Makes the clips; None if that is somebody else's business.

    Returns:
        The routes.
    """
    router = APIRouter()
    _add_health(router, worker)
    _add_models(router, settings)
    _add_creation(router, service, settings)
    _add_videos(router, service)
    _add_results(router, service, settings)
    return router


def _add_health(router: APIRouter, worker: WorkerProcess | None) -> None:
    @router.get("/health", tags=["server"])
    def health() -> Health:
        """Whether the server works; needs no token."""
        has_worker = worker is None or worker.status.pid is not None
        return Health(status="ok" if has_worker else "no_worker")


def _add_models(router: APIRouter, settings: ServerSettings) -> None:
    @router.get("/v1/models", tags=["models"], responses=_refusals())
    def list_models() -> ModelList:
        """List the models that can be asked for."""
        models = known_models(settings).items()
        return ModelList(data=[_model_info(name, folder) for name, folder in models])

    @router.get("/v1/models/{model}", tags=["models"], responses=_refusals(404))
    def retrieve_model(model: str) -> ModelInfo:
        """Look a model up."""
        known = known_models(settings)
        if model not in known:
            raise ApiError(
                404,
                f"There is no model {model[:60]!r} here. Use one of {', '.join(known)}.",
                code="model_not_found",
                param="model",
            )
        return _model_info(model, known[model])


def _model_info(name: str, folder: Path | None) -> ModelInfo:
    return ModelInfo(id=name, created=0 if folder is None else int(folder.stat().st_mtime))


def _add_creation(router: APIRouter, service: JobService, settings: ServerSettings) -> None:
    one_at_a_time = anyio.CapacityLimiter(1)

    @router.post(
        "/v1/videos",
        tags=["videos"],
        openapi_extra=CREATE_BODY,
        responses=_refusals(400, 409, 413, 415, 429, 507),
    )
    async def create_video(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(description="Names this call: made again with it, it adds nothing."),
        ] = None,
    ) -> Video:
        """Put a video into the queue; it is on the disk when this returns."""
        key = _checked_key(idempotency_key)

        def create(fields: dict[str, Any]) -> Video:
            return _video(service, _added(service, settings, fields, key))

        async with body_fields(request, settings) as fields:
            return await run_sync(create, fields, limiter=one_at_a_time)


def _checked_key(key: str | None) -> str | None:
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise ApiError(
            400,
            f"Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters, got {len(key)}.",
            code="invalid_value",
            param="Idempotency-Key",
        )
    return key


def _added(
    service: JobService, settings: ServerSettings, fields: dict[str, Any], key: str | None
) -> Job:
    if key is None or not service.store.has_key(key):
        _check_queue(service, settings)
    return service.add(checked_request(fields, settings), idempotency_key=key)


def _check_queue(service: JobService, settings: ServerSettings) -> None:
    num_queued = service.counts()[JobState.QUEUED.value]
    if num_queued >= settings.max_queued:
        raise ApiError(
            429,
            f"{num_queued} videos are waiting, and {settings.max_queued} may. Try again later, or "
            "remove some.",
            code="queue_full",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


def _add_videos(router: APIRouter, service: JobService) -> None:
    @router.get("/v1/videos", tags=["videos"], responses=_refusals(400, 404))
    def list_videos(
        limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
        after: Annotated[
            str | None, Query(description="Only those behind this one: `last_id` of a page.")
        ] = None,
        order: Annotated[
            Literal["asc", "desc"], Query(description="By the time of creation; desc: newest first")
        ] = "desc",
    ) -> VideoList:
        """List videos page by page."""
        jobs = service.by_creation(after=after, limit=limit + 1, newest_first=order == "desc")
        page = jobs[:limit]
        return VideoList(
            data=[_video(service, job) for job in page],
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(jobs) > limit,
        )

    @router.get("/v1/videos/{video_id}", tags=["videos"], responses=_refusals(404))
    def retrieve_video(video_id: str) -> Video:
        """Look a video up."""
        return _video(service, service.get(video_id))

    @router.post("/v1/videos/{video_id}/cancel", tags=["videos"], responses=_refusals(404, 409))
    def cancel_video(video_id: str) -> Video:
        """Stop a video: at once if it waits, after its sampling step if it is being made.

        The video that is returned may still be in progress; its last event tells the end.
        """
        job = service.get(video_id)
        return _video(service, job if job.state is JobState.CANCELLED else service.stop(video_id))

    @router.delete("/v1/videos/{video_id}", tags=["videos"], responses=_refusals(404, 409))
    def delete_video(video_id: str) -> DeletedVideo:
        """Remove a video and its clips. One that is being made has to be cancelled first."""
        service.remove(video_id)
        return DeletedVideo(id=video_id)


def _video(service: JobService, job: Job) -> Video:
    return Video.of(job, service.event(job.id))


def _add_results(router: APIRouter, service: JobService, settings: ServerSettings) -> None:
    slots = EventSlots(settings.max_event_streams)

    @router.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @router.get(
        "/v1/videos/{video_id}/content",
        tags=["videos"],
        response_class=FileResponse,
        responses={
            200: {"content": {kind: {} for _, _, kind in _FILES.values()}},
            206: {"description": "The part that the header Range asks for."},
            416: {"description": "The file has no such part."},
            **_refusals(404, 409),
        },
    )
    def download_content(
        video_id: str,
        variant: Annotated[
            Variant, Query(description="Which of its files: last_frame is without loss.")
        ] = "video",
        number: Annotated[
            int, Query(ge=1, le=_max_clips(), description="Which of its clips, from 1.")
        ] = 1,
        download: Annotated[
            bool, Query(description="Whether a browser saves it in place of showing it.")
        ] = False,
    ) -> FileResponse:
        """Get a file of a finished clip, whole or in part (Range)."""
        job = service.get(video_id)
        if number not in {clip.number for clip in job.clips}:
            raise _not_there(job, number)
        field, suffix, kind = _FILES[variant]
        path: Path = getattr(service.clip_files(job.id, number), field)
        if not path.is_file():
            raise _not_there(job, number)
        return FileResponse(
            path,
            media_type=kind,
            filename=f"pixeldance-{job.id}-{number}{suffix}{path.suffix}",
            content_disposition_type="attachment" if download else "inline",
            headers={"Cache-Control": "private, max-age=3600"},
        )

    @router.get(
        "/v1/videos/{video_id}/events",
        tags=["videos"],
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}, **EVENT_EXAMPLE}},
                "description": "Events called progress, and at the end one called completed, "
                "failed, cancelled or deleted; their data is JSON.",
            },
            204: {"description": "The client has the last event already."},
            **_refusals(404, 429),
        },
    )
    def follow_video(
        video_id: str,
        last_event_id: Annotated[
            str | None, Header(description="Id of the last event that the client has.")
        ] = None,
    ) -> Response:
        """Follow a video to its end, as server-sent events."""
        after = parse_event_id(last_event_id)
        event = service.event(video_id)
        if event.is_final and event.number == after:
            return Response(status_code=204)
        return EventStream(
            service, video_id, after=after, slots=slots, heartbeat_s=settings.heartbeat_s
        )


def _max_clips() -> int:
    maximum: int = GenerationRequest.model_json_schema()["properties"]["num_videos"]["maximum"]
    return maximum


def _not_there(job: Job, number: int) -> ApiError:
    if job.state not in FINAL_STATES:
        message = f"Clip {number} of the video {job.id} is not finished. Wait for its last event."
        return ApiError(409, message, code="video_not_ready")
    return ApiError(
        404,
        f"The video {job.id} is {job.state.value} and has {len(job.clips)} finished clips; there "
        f"is no clip {number}.",
        code="content_not_found",
    )
