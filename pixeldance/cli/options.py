"""Options of the command line that are made from the fields of the request."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import NoneType
from typing import Any, get_args

import typer
from pydantic.fields import FieldInfo

from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest

__all__ = ["checked_request", "set_parameters", "with_request_options"]

_OPTION_NAMES = {"num_inference_steps": "--steps", "keyframes": "--keyframe"}
"""Options that are not called as their field is."""
_PICTURES = ("first_frame", "last_frame")


def with_request_options(
    function: Callable[..., None],
) -> Callable[..., None]:
    """Give a command an option per field of the request; it gets their values as a mapping."""

    @wraps(function)
    def with_options(**values: Any) -> None:
        fields = {name: values.pop(name) for name in GenerationRequest.model_fields}
        function(fields, **values)

    _, *own = inspect.signature(function).parameters.values()
    options = [_option(name, field) for name, field in GenerationRequest.model_fields.items()]
    set_parameters(with_options, [*options, *own])
    return with_options


def set_parameters(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Say which parameters a function has, for typer."""
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    function.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, default, metavar = _kind(field.annotation), field.default, None
    if name == "keyframes":
        kind, default, metavar = list[str], [], "FRAME=PICTURE|1.5s=PICTURE"
    elif name in _PICTURES:
        metavar = "PICTURE"
    elif name == "focus":
        kind, metavar = str, "X,Y"
        default = ",".join(f"{part:g}" for part in field.default)
    annotation = kind if default is not None else kind | None
    option = typer.Option(
        default, _option_name(name), metavar=metavar, help=_with_option_names(field.description)
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation
    )


def _kind(annotation: Any) -> Any:
    """The type that typer parses; what it does not know stays text, which the request checks."""
    if annotation in (int, float, str):
        return annotation
    inner = [part for part in get_args(annotation) if part is not NoneType]
    return _kind(inner[0]) if inner else str


def _option_name(field: str) -> str:
    return _OPTION_NAMES.get(field, "--" + field.replace("_", "-"))


def _with_option_names(message: str | None) -> str:
    """Call fields by their options, but not inside quotes: those show what the person gave."""
    fields = [name for name in GenerationRequest.model_fields if "_" in name or name == "keyframes"]
    pattern = rf"""'[^']*'|"[^"]*"|\b({"|".join(fields)})\b"""
    return re.sub(
        pattern, lambda found: _option_name(found[1]) if found[1] else found[0], message or ""
    )


def checked_request(fields: Mapping[str, Any]) -> GenerationRequest:
    """Check the options, then read every picture once to see that it can be read."""
    keyframes: dict[str, str] = {}
    for text in fields["keyframes"]:
        frame, separator, picture = text.partition("=")
        if not separator:
            raise InputError(
                f"--keyframe must be FRAME=PICTURE like 12=fox.png, got {text!r}. Name the frame."
            )
        frame = _in_frames(frame, fps=fields["fps"])
        if frame in keyframes:
            raise InputError(f"--keyframe gives frame {frame} twice. Leave one out.")
        keyframes[frame] = picture
    try:
        request = GenerationRequest.parse({**fields, "keyframes": keyframes})
    except InputError as error:
        raise InputError(_with_option_names(str(error))) from None
    from pixeldance.pictures import load_picture

    for picture in request.pictures.values():
        load_picture(picture)
    return request


def _in_frames(moment: str, *, fps: int) -> str:
    """The frame nearest to seconds such as 1.5s; what else is given stays for the request."""
    seconds = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s", moment)
    return moment if seconds is None else str(round(float(seconds[1]) * fps))
