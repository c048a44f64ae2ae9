"""The recipe of a clip: what must be known to make the same frames again.

A recipe is one JSON object. It travels in the comment of the clip and in a ``.json`` file beside
it, so it holds nothing about the machine or the person: no paths, no user names, no host names.
Read back, it is untrusted: it is checked (``schema``) and nothing in it is ever opened as a path.
"""

import base64
import binascii
import hashlib
import io
import json
import math
import platform
import re
import struct
from collections.abc import Mapping
from fractions import Fraction
from importlib import metadata
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance import __version__
from pixeldance.errors import DataError, InputError
from pixeldance.video.schema import (
    PICTURES_IN_SIDECAR,
    SCHEMA,
    SCHEMA_VERSION,
    check_recipe,
    parse_recipe,
    printable,
)

__all__ = [
    "MAX_COMMENT_BYTES",
    "MAX_EMBEDDED_BYTES",
    "MAX_SIDECAR_BYTES",
    "build_recipe",
    "check_frames",
    "decode_pictures",
    "frames_sha256",
    "installed_versions",
    "recipe_texts",
    "summarize_recipe",
]

MAX_EMBEDDED_BYTES = 256 * 1024
"""Pictures above this total (as base64) stay out of the clip's comment."""
MAX_COMMENT_BYTES = 1024 * 1024
MAX_SIDECAR_BYTES = 64 * 1024 * 1024

FREE_TEXT = frozenset({"prompt", "negative_prompt"})
MODEL_KEYS = ("name", "sha256")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow", "av")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def frames_sha256(frames: npt.NDArray[Any]) -> str:
    """Fingerprint of frames before they are encoded: SHA-256 over their shape and bytes.

    Args:
        frames: Pictures of one clip, ``frames height width 3``, uint8.

    Returns:
        64 hexadecimal digits. Equal frames give equal digits on every machine.

    Raises:
        InputError: If the array is not a uint8 clip.
    """
    check_frames(frames)
    shape = "x".join(str(side) for side in frames.shape)
    digest = hashlib.sha256(f"pixeldance frames v1 {shape}\n".encode())
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def check_frames(frames: npt.NDArray[Any]) -> None:
    """Check that an array holds the frames of a clip.

    Args:
        frames: The array.

    Raises:
        InputError: If it is not ``frames height width 3`` in uint8 with at least one frame.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        given = getattr(frames, "dtype", type(frames).__name__)
        raise InputError(
            f"frames must be a numpy array of uint8 (0 to 255), got {given}. Scale and round "
            "floats first: (255 * video).round().astype('uint8')."
        )
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise InputError(
            f"frames must have the shape (frames, height, width, 3), got {frames.shape}."
        )
    if 0 in frames.shape:
        raise InputError(f"A clip needs at least one frame and one pixel, got {frames.shape}.")


def installed_versions() -> dict[str, str]:
    """Versions of Python, of this package and of what its results depend on.

    Returns:
        Version by package name; packages that are not installed are left out.
    """
    versions = {"python": platform.python_version(), "pixeldance": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def build_recipe(
    request_recipe: Mapping[str, Any],
    *,
    seed: int,
    frames: npt.NDArray[Any],
    fps: Fraction | int,
    model: Mapping[str, str],
    versions: Mapping[str, str],
    timings: Mapping[str, float],
    pictures: Mapping[str, Image.Image],
) -> dict[str, Any]:
    """Put together the recipe of a finished clip.

    Folders are cut off everywhere but in the prompts: a model or picture given by its path is
    recorded by its last name only.

    Args:
        request_recipe: The request as JSON values, every default filled in.
        seed: The seed that was used, also where the request left it open.
        frames: The clip as generated, before encoding, ``frames height width 3``, uint8.
        fps: Frames per second, exact.
        model: ``name`` and ``sha256`` of the weights; further texts, such as ``dtype``, are kept.
        versions: Version by package, see ``installed_versions``.
        timings: Seconds by stage of the generation.
        pictures: The pictures as the model saw them (fitted to the clip, mode RGB) by role, such as
            ``first_frame``, ``last_frame`` or ``keyframe:12``. They are embedded without loss.

    Returns:
        The recipe, JSON values only, equal to what reading it back gives.

    Raises:
        InputError: If a part is missing, cannot be written as JSON or is out of range.
    """
    num_frames, height, width = _clip_shape(frames)
    recipe = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "request": _without_folders(request_recipe),
        "seed": seed,
        "frames": {
            "sha256": frames_sha256(frames),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": str(Fraction(fps)),
        },
        "model": _without_folders(model),
        "versions": dict(versions),
        "timings": {stage: round(float(seconds), 3) for stage, seconds in timings.items()},
        "pictures": {role: _encode_picture(role, pic) for role, pic in pictures.items()},
    }
    try:
        return parse_recipe(_to_json(recipe), source="the new recipe")
    except DataError as error:
        raise InputError(str(error)) from error


def recipe_texts(recipe: Mapping[str, Any], *, sidecar: bool) -> tuple[str, str]:
    """The recipe as text for the comment of the clip and for the file beside it.

    Args:
        recipe: A recipe from ``build_recipe`` or ``read_recipe``.
        sidecar: Whether there will be a file beside the clip. Pictures too large for the comment
            go there.

    Returns:
        Compact JSON for the comment, indented JSON for the file beside it.

    Raises:
        InputError: If the recipe is not one, or is too large for where it has to go.
    """
    try:
        checked = check_recipe(dict(recipe), source="the recipe given")
    except DataError as error:
        raise InputError(f"{error} Make it with build_recipe.") from error
    pictures = checked["pictures"]
    embedded = 0
    if isinstance(pictures, dict):
        embedded = sum(len(picture["png"]) for picture in pictures.values())
    in_comment = checked
    if embedded > MAX_EMBEDDED_BYTES:
        if not sidecar:
            raise InputError(
                f"The input pictures take {embedded // 1024} KiB, at most "
                f"{MAX_EMBEDDED_BYTES // 1024} KiB go into the clip itself. Write the file beside "
                "it too (sidecar=True)."
            )
        in_comment = {**checked, "pictures": PICTURES_IN_SIDECAR}
    comment = _to_json(in_comment)
    beside = json.dumps(checked, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    for text, limit in ((comment, MAX_COMMENT_BYTES), (beside, MAX_SIDECAR_BYTES)):
        size = len(text.encode())
        if size > limit:
            raise InputError(
                f"The recipe takes {size} bytes, at most {limit} are allowed. Shorten the prompts "
                "or give fewer or smaller pictures."
            )
    return comment, beside


def decode_pictures(recipe: Mapping[str, Any]) -> dict[str, Image.Image]:
    """The input pictures embedded in a recipe, exactly as the model saw them.

    Args:
        recipe: A recipe from ``read_recipe``.

    Returns:
        Pictures of mode RGB by role.

    Raises:
        DataError: If the pictures are not in the recipe, are damaged or too large.
    """
    pictures = check_recipe(dict(recipe), source="the clip")["pictures"]
    if pictures == PICTURES_IN_SIDECAR:
        raise DataError(
            "The input pictures of this clip are in the .json file written beside it, which is "
            "missing or belongs to another clip. Put it back beside the clip under the same name."
        )
    return {role: _decode_picture(role, picture) for role, picture in pictures.items()}


def summarize_recipe(recipe: Mapping[str, Any]) -> str:
    """The recipe as lines for a person; pictures are shown by their sizes only.

    Args:
        recipe: A recipe from ``build_recipe`` or ``read_recipe``.

    Returns:
        Several lines without a newline at the end. Control characters are shown escaped, so that
        a foreign file cannot write to the terminal.

    Raises:
        DataError: If the recipe is damaged.
    """
    recipe = check_recipe(dict(recipe), source="the clip")
    frames, model = recipe["frames"], recipe["model"]
    details = [f"sha256 {model['sha256'][:12]}"]
    details += [f"{printable(k)} {printable(str(model[k]))}" for k in model if k not in MODEL_KEYS]
    lines = [
        *_clip_lines(frames, recipe.get("finishing", [])),
        f"model     {printable(model['name'])} ({', '.join(details)})",
        f"seed      {recipe['seed']}",
        "request",
    ]
    for key, value in recipe["request"].items():
        if value is not None and value != {}:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  {printable(key)}: {printable(text)}")
    if "num_steps_done" in recipe:
        lines.append(f"steps     finished early, after {recipe['num_steps_done']}")
    lines.append("pictures  " + _picture_sizes(recipe["pictures"]))
    versions = [f"{printable(name)} {printable(v)}" for name, v in recipe["versions"].items()]
    lines.append("versions  " + (", ".join(versions) or "not recorded"))
    timings = [f"{printable(stage)} {s:.2f} s" for stage, s in recipe["timings"].items()]
    lines.append("timings   " + (", ".join(timings) or "not recorded"))
    lines.append(f"frames    sha256 {frames['sha256']}")
    return "\n".join(lines)


def _clip_lines(frames: Mapping[str, Any], steps: list[dict[str, Any]]) -> list[str]:
    """What the clip is; of a finished one also what was done and what it was as generated."""
    if not steps:
        return [f"clip      {_described(frames)}"]
    lines = [f"clip      {_described(steps[-1]['frames'])}; finished, not as generated"]
    for step in steps:
        done = [
            f"frame rate x{step['fps_factor']} (RIFE)" if step["fps_factor"] > 1 else "",
            f"enlarged x{step['upscale']} (Real-ESRGAN)" if step["upscale"] > 1 else "",
            f"written as {printable(step['format'])}",
        ]
        lines.append("finished  " + ", ".join(filter(None, done)))
    return [*lines, f"generated {_described(frames)}"]


def _described(frames: Mapping[str, Any]) -> str:
    fps = Fraction(frames["fps"])
    return (
        f"{frames['num_frames']} frames, {frames['width']} x {frames['height']} pixels, "
        f"{fps} fps, {float(frames['num_frames'] / fps):.2f} s"
    )


def _clip_shape(frames: npt.NDArray[Any]) -> tuple[int, int, int]:
    check_frames(frames)
    num_frames, height, width, _ = frames.shape
    return num_frames, height, width


def _without_folders(value: Any, key: str = "") -> Any:
    """Keep the last name of whatever may be a path; prompts stay as they are."""
    if isinstance(value, Mapping):
        return {str(name): _without_folders(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item, key) for item in value]
    if isinstance(value, str | PurePath) and key not in FREE_TEXT:
        return re.split(r"[/\\]", str(value).rstrip("/\\"))[-1]
    return value


def _to_json(recipe: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(recipe, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"The recipe cannot be written as JSON: {error}.") from error
    return text


def _encode_picture(role: str, picture: Image.Image) -> dict[str, Any]:
    if picture.mode != "RGB":
        raise InputError(
            f"The picture '{role}' must be of mode RGB, got {picture.mode}. Use .convert('RGB')."
        )
    # A fresh picture: the given one may carry camera data or a colour profile along.
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    buffer = io.BytesIO()
    clean.save(buffer, format="PNG", compress_level=9)
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"width": picture.width, "height": picture.height, "png": png}


def _decode_picture(role: str, picture: Mapping[str, Any]) -> Image.Image:
    name = f"The picture '{printable(role)}' in the recipe"
    try:
        data = base64.b64decode(picture["png"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is damaged: it is not base64.") from error
    # The size is read before Pillow is: a small file can claim to be an enormous picture.
    if len(data) < 24 or not data.startswith(PNG_SIGNATURE):
        raise DataError(f"{name} is damaged: it is not a PNG.")
    size = struct.unpack(">II", data[16:24])
    if size != (picture["width"], picture["height"]):
        raise DataError(f"{name} is damaged: it is {size[0]} x {size[1]} pixels, not as recorded.")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            if image.mode != "RGB":
                raise DataError(f"{name} is damaged: it is of mode {image.mode}, not RGB.")
            return image.copy()
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise DataError(f"{name} is damaged: {printable(str(error))}.") from error


def _picture_sizes(pictures: str | Mapping[str, Mapping[str, Any]]) -> str:
    if isinstance(pictures, str):
        return "in the .json file beside the clip"
    shown = [
        f"{printable(role)} {picture['width']} x {picture['height']} "
        f"({math.ceil(len(picture['png']) * 3 / 4 / 1024)} KiB)"
        for role, picture in pictures.items()
    ]
    return ", ".join(shown) or "none"
