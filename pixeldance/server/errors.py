"""Errors as clients of OpenAI's API know them: ``{"error": {message, type, param, code}}``."""

import re
from collections.abc import Mapping

from starlette.responses import JSONResponse

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.jobs import IdempotencyKeyError, JobStateError, StorageFullError, UnknownJobError
from pixeldance.request import GenerationRequest

__all__ = ["ApiError", "api_error_of", "error_response"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Why a call is refused.

    Args:
        status: HTTP status.
        message: What was given, what is allowed, what to do.
        code: Names the reason, for programs.
        param: Field of the request that it is about.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a call that is refused.

    Args:
        error: Why.

    Returns:
        The answer in OpenAI's shape.
    """
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body = {
        "message": error.message,
        "type": _TYPES.get(error.status, kind),
        "param": error.param,
        "code": error.code,
    }
    return JSONResponse({"error": body}, error.status, headers=error.headers)


def api_error_of(error: PixelDanceError) -> ApiError:
    """What an error of the package is over HTTP.

    Args:
        error: The error.

    Returns:
        A client's mistake, or a state of the server that the client can be told.
    """
    message = str(error)
    if isinstance(error, UnknownJobError):
        return ApiError(404, message, code="video_not_found")
    if isinstance(error, IdempotencyKeyError):
        return ApiError(409, message, code="idempotency_key_in_use", param="Idempotency-Key")
    if isinstance(error, JobStateError):
        return ApiError(409, message, code="wrong_state")
    if isinstance(error, StorageFullError):
        return ApiError(507, message, code="storage_full")
    if isinstance(error, InputError):
        return ApiError(400, message, code="invalid_value", param=_field_in(message))
    return ApiError(500, message, code="server_error")


def _field_in(message: str) -> str | None:
    """The field that a message of the request is about, which it begins with."""
    found = re.match(r"Unknown field '(\w+)'|(\w+)", message)
    name = found and (found[1] or found[2])
    is_field = found and (found[1] or name in GenerationRequest.model_fields)
    return name if is_field else None
