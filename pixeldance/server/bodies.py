"""The body of a call that creates a video, from a form or from JSON, as a checked request.

Nothing in it can name a file or an address: pictures come as their bytes, models by their names.
"""

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from pixeldance.errors import InputError
from pixeldance.models.loading import available_models
from pixeldance.pictures import load_picture
from pixeldance.request import GenerationRequest
from pixeldance.server.errors import ApiError, api_error_of
from pixeldance.server.schemas import PICTURES
from pixeldance.server.settings import ServerSettings

__all__ = ["body_fields", "checked_request", "known_models"]

MAX_FILES = 64
MAX_FIELDS = 256

_ALIASES = {"seconds": "duration", "input_reference": "first_frame"}
"""OpenAI's names of fields."""
_KEYFRAME = re.compile(r"keyframes\[(-?[0-9]{1,9})\]")
_SCHEMA = GenerationRequest.model_json_schema()["properties"]
_TEXTS = {name for name, field in _SCHEMA.items() if field.get("type") == "string"} | {"focus"}


@asynccontextmanager
async def body_fields(request: Request, settings: ServerSettings) -> AsyncIterator[dict[str, Any]]:
    """Read the body of a call.

    Args:
        request: The call; its size is checked while it is read.
        settings: The limits.

    Yields:
        dict: Values by name as they were given; a picture is a file, which lies on the disk if it
            is large and is closed afterwards, or text that stands for it.

    Raises:
        ApiError: If the body is neither a form nor a JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _parsed_json(await request.body())
        return
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(
            415,
            f"The body is of type {kind[:60]!r}; multipart/form-data and application/json are "
            "read. Set the header Content-Type.",
            code="unsupported_media_type",
        )
    async with request.form(
        max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=settings.max_json_bytes
    ) as form:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            _put(fields, name, value)
        yield fields


def _parsed_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON ({error}).", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(
            400, 'The body must be a JSON object like {"prompt": "a fox"}.', code="invalid_json"
        )
    return fields


def _put(fields: dict[str, Any], name: str, value: str | UploadFile) -> None:
    """Add a part of a form; numbers come as text."""
    keyframe = _KEYFRAME.fullmatch(name)
    target, key = (fields.setdefault("keyframes", {}), keyframe[1]) if keyframe else (fields, name)
    if not isinstance(target, dict) or key in target or (keyframe is None and name == "keyframes"):
        hint = "Use keyframes[FRAME] for each." if name == "keyframes" else "Give it once."
        raise ApiError(
            400, f"The form field {name[:60]!r} is given twice. {hint}", code="invalid_value"
        )
    is_number = keyframe is None and isinstance(value, str) and _is_number(name)
    target[key] = _number(value) if is_number and isinstance(value, str) else value


def _is_number(name: str) -> bool:
    name = _ALIASES.get(name, name)
    return name in _SCHEMA and name not in _TEXTS and name not in PICTURES


def _number(text: str) -> Any:
    """A number if it is one; what is not is for the request to refuse."""
    try:
        return int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else float(text)
    except ValueError:
        return text


def checked_request(fields: Mapping[str, Any], settings: ServerSettings) -> GenerationRequest:
    """Check what was given; decodes the pictures, so it takes a while.

    Args:
        fields: What ``body_fields`` gave.
        settings: The limits, and the model of requests that name none.

    Returns:
        The request with its pictures in memory.

    Raises:
        ApiError: If anything is wrong: one line that names the field.
    """
    try:
        values = _with_own_names(fields)
        model = values.setdefault("model", settings.model)
        if model != settings.model:
            values["model"] = _known_model(model, settings)
        request = GenerationRequest.parse(_with_bytes(values))
        return _with_pictures(request, settings.max_pixels)
    except InputError as error:
        refused = api_error_of(error)
        if "seconds" in fields:
            refused.message = re.sub(r"\bduration\b", "seconds", refused.message)
            refused.param = "seconds" if refused.param == "duration" else refused.param
        raise refused from None


def _with_own_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in fields.items() if value is not None}
    for alias, name in _ALIASES.items():
        if alias in values:
            if name in values:
                raise ApiError(
                    400,
                    f"{alias} and {name} are both given and mean the same. Leave one out.",
                    code="invalid_value",
                    param=alias,
                )
            values[name] = values.pop(alias)
    # OpenAI's seconds are text, and a browser rounds seeds above 2**53.
    for name in ("duration", "seed"):
        if isinstance(values.get(name), str):
            values[name] = _number(values[name])
    if "size" in values:
        size = values.pop("size")
        found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size) if isinstance(size, str) else None
        if found is None or {"width", "height"} & values.keys():
            raise ApiError(
                400,
                "size must be text such as 256x144 (width x height), without width and height "
                "beside it.",
                code="invalid_value",
                param="size",
            )
        values["width"], values["height"] = int(found[1]), int(found[2])
    return values


def known_models(settings: ServerSettings) -> dict[str, Path | None]:
    """Models that may be asked for.

    Args:
        settings: Names the model of requests that name none.

    Returns:
        Folder by name; None for one that will be fetched when it is first used.
    """
    found: dict[str, Path | None] = {**available_models()}
    folder = Path(settings.model)
    found.setdefault(folder.name, folder if folder.is_dir() else None)
    return found


def _known_model(name: object, settings: ServerSettings) -> str:
    known = known_models(settings)
    if not isinstance(name, str) or name not in known:
        raise ApiError(
            400,
            f"There is no model {str(name)[:60]!r} here. Use one of {', '.join(known)}.",
            code="model_not_found",
            param="model",
        )
    return settings.model if name == Path(settings.model).name else name


def _with_bytes(values: dict[str, Any]) -> dict[str, Any]:
    for name in PICTURES:
        if name in values:
            values[name] = _picture_bytes(values[name], name)
    if isinstance(values.get("keyframes"), Mapping):
        values["keyframes"] = {
            frame: _picture_bytes(picture, f"keyframes[{frame}]")
            for frame, picture in values["keyframes"].items()
        }
    return values


def _picture_bytes(value: object, param: str) -> bytes:
    if isinstance(value, UploadFile):
        return value.file.read()
    if isinstance(value, str):
        if re.match(r"[a-zA-Z][\w+.-]*://", value):
            raise ApiError(
                400,
                f"{param} is an address, and nothing is fetched. Send the picture itself, as a "
                "file of a form or as base64.",
                code="url_not_allowed",
                param=param,
            )
        encoded = re.sub(r"^data:[\w/.+-]{0,100};base64,", "", value, count=1)
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise ApiError(
        400,
        f"{param} is not a picture. Send it as a file of a form, or as base64 in JSON.",
        code="invalid_picture",
        param=param,
    )


def _with_pictures(request: GenerationRequest, max_pixels: int) -> GenerationRequest:
    """Decode the pictures; together they may have no more pixels than one alone."""
    pictures: dict[str, Any] = {}
    for role, param, source in _pictures(request):
        try:
            pictures[role] = load_picture(source, max_pixels=max_pixels)
        except InputError as error:
            message = re.sub(r"^The picture given as", f"{param}, given as", str(error))
            raise ApiError(400, message, code="invalid_picture", param=param) from None
        max_pixels -= pictures[role].width * pictures[role].height
    loaded: dict[str, Any] = {role: pictures[role] for role in PICTURES if role in pictures}
    if request.keyframes:
        frames = request.keyframes
        loaded["keyframes"] = {frame: pictures[f"keyframe:{frame}"] for frame in frames}
    return request.model_copy(update=loaded)


def _pictures(request: GenerationRequest) -> Iterator[tuple[str, str, Any]]:
    for role, source in request.pictures.items():
        yield role, re.sub(r"^keyframe:(.*)", r"keyframes[\1]", role), source
