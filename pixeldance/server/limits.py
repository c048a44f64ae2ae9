"""How large a body may be and how long it may take; checked while it comes in."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixeldance.server.errors import ApiError, error_response
from pixeldance.server.settings import ServerSettings

__all__ = ["LimitedCall"]

GRACE_S = 20.0
"""Seconds that any body may take."""
MIN_BYTES_PER_S = 64 * 1024
"""What a longer one must bring on average, so that nobody can hold a connection for ever."""

_FORM_OVERHEAD = 64 * 1024
_DRAIN_S = 2.0


class LimitedCall:
    """One call, whose body is cut off at a limit.

    Args:
        receive: Where its body comes from.
        send: Where its answer goes.
        headers: Its headers.
        settings: The limits.
    """

    def __init__(
        self, receive: Receive, send: Send, headers: Headers, settings: ServerSettings
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = settings.max_upload_bytes + _FORM_OVERHEAD if is_form else settings.max_json_bytes
        self._limit = limit
        self._start: float | None = None
        self._num_bytes = 0
        self._is_complete = False
        self._has_answered = False
        self._refusal: ApiError | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Have an application answer the call, unless its body is refused.

        Args:
            app: The application.
            scope: The call.
        """
        declared = self._headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self._limit:
            self._refusal = self._too_large()
            await self._drain()
        else:
            try:
                await app(scope, self._limited_receive, self._guarded_send)
            except Exception:
                if self._refusal is None:
                    raise
        if self._refusal is not None and not self._has_answered:
            self._has_answered = True
            await error_response(self._refusal)(scope, self._receive, self._send)

    async def _limited_receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        now = asyncio.get_running_loop().time()
        self._start = now if self._start is None else self._start
        deadline = self._start + GRACE_S + self._num_bytes / MIN_BYTES_PER_S
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._receive()
        except TimeoutError:
            self._refusal = ApiError(
                408,
                "The body came in too slowly. Send it again, over a faster connection.",
                code="too_slow",
                headers={"Connection": "close"},
            )
            return {"type": "http.disconnect"}
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._limit:
            self._refusal = self._too_large()
            return {"type": "http.disconnect"}
        return message

    async def _guarded_send(self, message: Message) -> None:
        """Hold back what the application makes of a body that was cut off."""
        if self._refusal is None or self._has_answered:
            self._has_answered = True
            await self._send(message)

    async def _drain(self) -> None:
        """Read some of a body that is refused: most clients listen only when it is sent."""
        if "expect" in self._headers:
            return
        try:
            async with asyncio.timeout(_DRAIN_S):
                while self._num_bytes < 2 * self._limit:
                    message = await self._receive()
                    self._num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The body has more than {self._limit / 1e6:.0f} MB, which is the most that is read "
            "of this kind. Scale the pictures down, or send them as files of a form.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
