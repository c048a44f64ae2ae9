"""The progress of a video as a stream of server-sent events.

An event has the number of the job's event as its id, so that a client that was cut off goes on
where it was: browsers send ``Last-Event-ID`` by themselves. The last event is called completed,
failed, cancelled or deleted; a client that has it already gets 204, upon which browsers stop.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pixeldance.jobs import JobEvent, JobService, UnknownJobError
from pixeldance.server.errors import ApiError, error_response
from pixeldance.server.schemas import DeletedVideo, VideoEvent

__all__ = ["EventSlots", "EventStream", "parse_event_id"]

RETRY_MS = 2000
"""After how long a browser that was cut off comes back."""


class EventSlots:
    """Places for open streams.

    Args:
        number: How many there are.
    """

    def __init__(self, number: int) -> None:
        self._num_free = number

    def take(self) -> None:
        """Take a place; from the event loop, like ``give_back``.

        Raises:
            ApiError: If all are taken.
        """
        if self._num_free == 0:
            raise ApiError(
                429,
                "Too many event streams are open. Close one, or ask for the video from time to "
                "time instead.",
                code="too_many_streams",
                headers={"Retry-After": "10"},
            )
        self._num_free -= 1

    def give_back(self) -> None:
        """Give a place back."""
        self._num_free += 1


class EventStream(StreamingResponse):
    """Follows a job to its end.

    Args:
        service: The jobs.
        job_id: The job.
        after: Number of the last event that the client has; -1 if it has none.
        slots: It takes one while it is open.
        heartbeat_s: After so many seconds without news a comment shows that it is alive.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        service: JobService,
        job_id: str,
        *,
        after: int,
        slots: EventSlots,
        heartbeat_s: float,
    ) -> None:
        events = _messages(service.watch(job_id, after=after), job_id, heartbeat_s)
        # Proxies must neither keep nor collect it.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, if there is a place for it."""
        try:
            self._slots.take()
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._slots.give_back()


def parse_event_id(text: str | None) -> int:
    """The number of the last event that a client has.

    Args:
        text: The header ``Last-Event-ID``.

    Returns:
        Its number; -1 if there is none.

    Raises:
        ApiError: If it is none of ours.
    """
    if not text:
        return -1
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ApiError(
            400,
            f"Last-Event-ID must be the id of an event, got {text[:40]!r}.",
            code="invalid_value",
            param="Last-Event-ID",
        )
    return int(text)


async def _messages(
    events: AsyncIterator[JobEvent], job_id: str, heartbeat_s: float
) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    try:
        async for event in _with_pauses(events, heartbeat_s):
            yield ": alive\n\n" if event is None else _event_message(event)
    except UnknownJobError:  # it was removed meanwhile
        yield _message("deleted", DeletedVideo(id=job_id))


async def _with_pauses(
    events: AsyncIterator[JobEvent], pause_s: float
) -> AsyncIterator[JobEvent | None]:
    """The events, and None for every pause between them."""
    iterator = aiter(events)
    following: asyncio.Task[JobEvent | None] | None = None
    try:
        while True:
            if following is None:
                following = asyncio.ensure_future(_next(iterator))
            await asyncio.wait({following}, timeout=pause_s)
            if not following.done():
                yield None
                continue
            event = following.result()
            if event is None:
                return
            following = None
            yield event
    finally:
        if following is not None:
            following.cancel()


async def _next(iterator: AsyncIterator[JobEvent]) -> JobEvent | None:
    return await anext(iterator, None)


def _event_message(event: JobEvent) -> str:
    told = VideoEvent.of(event)
    return _message(told.status if event.is_final else "progress", told, event.number)


def _message(name: str, body: BaseModel, number: int | None = None) -> str:
    fields: dict[str, Any] = body.model_dump(mode="json")
    identity = "" if number is None else f"id: {number}\n"
    return f"{identity}event: {name}\ndata: {json.dumps(fields)}\n\n"
