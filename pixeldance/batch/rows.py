"""From the rows of a manifest to clips to be made: all checked, each with its id, seed and size."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pixeldance.backbones.facts import ModelFacts
from pixeldance.batch.manifest import ManifestRow
from pixeldance.errors import InputError
from pixeldance.geometry import Size, resolve_frame_index
from pixeldance.request import GenerationRequest

__all__ = ["BatchRow", "CheckedRows", "RejectedRow", "check_rows", "chosen_model"]

MAX_ID_LENGTH = 100
DECODE_STEPS = 4
"""Decoding a clip takes about as long as this many sampling steps (pixeldance-mini on a CPU)."""

_ADDRESS = re.compile(r"(https?://|data:)", re.IGNORECASE)  # no paths: refused when they are read
_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_NOT_CONTENT = {"first_frame", "last_frame", "keyframes", "model", "num_videos", "duration", "seed"}


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One clip to be made.

    Attributes:
        id: Name of its files, unique without regard to case.
        line: Line of its row in the manifest.
        request: What to make; it has a seed and asks for one clip.
        sha256: Fingerprint of all that its frames depend on but the weights: the request with
            every default and the pixels of its pictures.
        size: Size that the clip will have.
    """

    id: str
    line: int
    request: GenerationRequest
    sha256: str
    size: Size

    @property
    def cost(self) -> float:
        """About how much work it is, in pixels times frames times passes through the network."""
        request = self.request
        passes = request.num_inference_steps * (2 if request.is_guided else 1)
        return float(self.num_pixels * (passes + DECODE_STEPS))

    @property
    def num_pixels(self) -> int:
        """Pixels of all frames."""
        return self.size.height * self.size.width * self.request.resolved_num_frames


class RejectedRow(NamedTuple):
    """A row that cannot be run."""

    line: int
    values: dict[str, Any]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As it is written to the rejects file."""
        return {"line": self.line, "reason": self.reason, "row": self.values}


class CheckedRows(NamedTuple):
    """What became of the rows of a manifest."""

    rows: list[BatchRow]
    rejected: list[RejectedRow]


class _PictureFacts(NamedTuple):
    sha256: str
    size: Size


def chosen_model(rows: Iterable[ManifestRow], model: str | None) -> str:
    """The model of a run: one for all rows.

    Args:
        rows: Rows of the manifest.
        model: The model asked for, if there is a wish beside the rows' own.

    Returns:
        Its name or folder.

    Raises:
        InputError: If the rows name several models.
    """
    named = {
        row.values["model"]: row.line for row in rows if isinstance(row.values.get("model"), str)
    }
    if model is not None:
        return model
    if len(named) > 1:
        found = ", ".join(f"{name!r} (line {line})" for name, line in named.items())
        raise InputError(
            f"The rows name several models: {found}. A run has one: give --model and let the "
            "others go to --skip-invalid, or split the manifest."
        )
    return next(iter(named), GenerationRequest().model)


def check_rows(
    manifest_rows: Iterable[ManifestRow], *, folder: Path, model: ModelFacts
) -> CheckedRows:
    """Check all rows: their fields, that their pictures open, that no two have the same id.

    A row with ``num_videos`` above 1 becomes that many clips, ``ID-1``, ``ID-2``, ..., whose seeds
    count on. A missing seed comes from the content and the id, a missing id from the content.

    Args:
        manifest_rows: Rows as read.
        folder: Where relative paths of pictures begin: the manifest's folder.
        model: The model of the run.

    Returns:
        The clips in the order of the manifest, and the rows that cannot be run.
    """
    checker = _Checker(folder, model)
    rows: list[BatchRow] = []
    rejected: list[RejectedRow] = []
    owners: dict[str, BatchRow] = {}
    for source in manifest_rows:
        try:
            clips = checker.clips(source)
            for clip in clips:
                _check_free(clip, owners)
        except InputError as error:
            rejected.append(RejectedRow(source.line, source.values, str(error)))
            continue
        owners.update({clip.id.lower(): clip for clip in clips})
        rows += clips
    return CheckedRows(rows, rejected)


class _Checker:
    """Checks rows one by one; each picture is read once, each size is resolved once."""

    def __init__(self, folder: Path, model: ModelFacts) -> None:
        self._folder = folder.resolve()
        self._model = model
        self._picture_facts = lru_cache(maxsize=100_000)(_picture_facts)
        self._size_for = lru_cache(maxsize=10_000)(model.size_for)

    def clips(self, source: ManifestRow) -> list[BatchRow]:
        """The clips of a row, with everything that it left open decided by its content."""
        if source.problem is not None:
            raise InputError(source.problem)
        fields = dict(source.values)
        given_id = _checked_id(fields.pop("id", None))
        request = GenerationRequest.parse(_with_absolute_paths(fields, self._folder))
        self._check_model(request)
        self._model.check(request)
        pictures = {role: self._picture_facts(str(path)) for role, path in request.pictures.items()}
        size = self._size(request, pictures)
        content = _content(request, pictures)
        row_id = given_id or _digest("id", content, request.seed, request.num_videos)[:16]
        first_seed = request.seed
        if first_seed is None:
            # Of two equal rows with ids of their own, two different clips are wanted.
            first_seed = int(_digest("seed", content, given_id)[:8], 16)
        clips = []
        for number in range(request.num_videos):
            seed = (first_seed + number) % 2**63
            own = {"seed": seed, "num_videos": 1, "model": self._model.name}
            clips.append(
                BatchRow(
                    id=row_id if request.num_videos == 1 else f"{row_id}-{number + 1}",
                    line=source.line,
                    request=request.model_copy(update=own),
                    sha256=_digest("row", content, seed),
                    size=size,
                )
            )
        return clips

    def _check_model(self, request: GenerationRequest) -> None:
        if "model" in request.model_fields_set and not self._model.is_called(request.model):
            raise InputError(
                f"model is {request.model!r}, this run has {self._model.name!r}. Leave model out, "
                "or run the row on its own with --model."
            )

    def _size(self, request: GenerationRequest, pictures: Mapping[str, _PictureFacts]) -> Size:
        """The size that the model will choose."""
        if request.height is not None and request.width is not None:
            return Size(request.height, request.width)
        last = request.resolved_num_frames - 1
        frames = {"first_frame": 0, "last_frame": last} | {
            f"keyframe:{frame}": resolve_frame_index(frame, last + 1) for frame in request.keyframes
        }
        earliest = min(pictures, key=lambda role: frames[role], default=None)
        shape = None if earliest is None else pictures[earliest].size
        return self._size_for(request.aspect_ratio, shape)


def _checked_id(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or len(text) > MAX_ID_LENGTH or not _ID.fullmatch(text):
        raise InputError(
            f"id must be a file name of at most {MAX_ID_LENGTH} letters, digits, '-', '_' and '.' "
            f"('.' not first or last), got {value!r}. Rename it or leave it out."
        )
    return text


def _with_absolute_paths(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    def absolute(value: Any) -> Any:
        is_path = isinstance(value, str) and value and not _ADDRESS.match(value)
        return str(folder / value) if is_path else value

    changed = {
        name: absolute(fields[name]) for name in ("first_frame", "last_frame") if name in fields
    }
    keyframes = fields.get("keyframes")
    if isinstance(keyframes, Mapping):
        changed["keyframes"] = {frame: absolute(picture) for frame, picture in keyframes.items()}
    return {**fields, **changed}


def _picture_facts(path: str) -> _PictureFacts:
    from pixeldance.pictures import load_picture, picture_sha256

    picture = load_picture(path)
    return _PictureFacts(picture_sha256(picture), Size(picture.height, picture.width))


def _content(request: GenerationRequest, pictures: Mapping[str, _PictureFacts]) -> dict[str, Any]:
    """All that decides about the frames but the seed and the weights, as JSON values."""
    excluded = _NOT_CONTENT | ({"guidance_scale_2"} if request.guidance_scale_2 is None else set())
    return {
        **request.model_dump(mode="json", exclude=excluded),
        "num_frames": request.resolved_num_frames,
        "pictures": {role: facts.sha256 for role, facts in pictures.items()},
    }


def _digest(*parts: Any) -> str:
    text = json.dumps(["pixeldance batch v1", *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_free(clip: BatchRow, owners: Mapping[str, BatchRow]) -> None:
    other = owners.get(clip.id.lower())
    if other is None:
        return
    if other.sha256 == clip.sha256:
        raise InputError(
            f"The row asks for the same clip as line {other.line}. Leave one out, or give them "
            "different seeds or ids."
        )
    raise InputError(f"id {clip.id!r} is taken by line {other.line}. Give it another id.")
