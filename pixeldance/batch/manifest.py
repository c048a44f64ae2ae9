"""Reading manifests: JSON Lines, CSV and YAML files with one clip to be made per row.

Columns are the fields of ``GenerationRequest`` and ``id``. What is wrong with one row never hides
what is wrong with the others: a row that cannot be read carries the reason.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest

__all__ = ["MANIFEST_FORMATS", "ManifestRow", "read_manifest"]

MAX_MANIFEST_BYTES = 1024**3


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One row as it stands in the manifest.

    Attributes:
        line: Line of the file on which the row begins, from 1.
        values: Values by column; empty cells and nulls are left out.
        problem: Why the row cannot be read, one sentence, if it cannot.
    """

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_manifest(path: str | os.PathLike[str]) -> list[ManifestRow]:
    """Read the rows of a manifest.

    Args:
        path: A file ending in ``.jsonl`` (an object per line; empty lines and lines that begin with
            ``#`` are comments), ``.csv`` (a header, then a clip per row) or ``.yaml`` (a list).

    Returns:
        The rows in the order of the file.

    Raises:
        InputError: If the file is missing, has another ending, has no rows, or is damaged as a
            whole.
    """
    path = Path(path)
    read = MANIFEST_FORMATS.get(path.suffix.lower())
    if read is None:
        raise InputError(
            f"The manifest must end in {', '.join(MANIFEST_FORMATS)}, got {str(path)!r}. "
            "Write it as one of them."
        )
    rows = list(read(_read_text(path), path))
    if not rows:
        raise InputError(f"The manifest {str(path)!r} has no rows. Add one per clip.")
    return rows


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"The manifest {str(path)!r} does not exist. Check the path.")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"The manifest {str(path)!r} is larger than 1 GiB. Split it.")
    try:
        # Spreadsheet programs begin their files with a byte order mark.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"The manifest {str(path)!r} is not UTF-8 text (line {line}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise InputError(
            f"The manifest {str(path)!r} cannot be read ({error.strerror}). Check its permissions."
        ) from error


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# ---- JSON Lines


def _read_jsonl(text: str, path: Path) -> Iterator[ManifestRow]:  # noqa: ARG001 - one signature
    # Not splitlines(), which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            values = json.loads(line, object_pairs_hook=_without_duplicates)
        except InputError as error:
            yield ManifestRow(line=number, problem=str(error))
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            yield ManifestRow(line=number, problem=f"The line is not valid JSON: {reason}.")
        else:
            yield _checked_row(number, values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{twice!r} is given twice. Leave one out.")
    return values


def _checked_row(line: int, values: object) -> ManifestRow:
    if not isinstance(values, dict):
        return ManifestRow(
            line=line, problem='A row must be an object such as {"prompt": "a fox jumps"}.'
        )
    return ManifestRow(line=line, values=_present(values))


# ---- CSV


def _read_csv(text: str, path: Path) -> Iterator[ManifestRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or "" in header:
            raise InputError(
                f"The header of {str(path)!r} has empty or repeated columns: {', '.join(header)}. "
                "Name each column once."
            )
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _csv_row(line, header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"The manifest {str(path)!r} is not valid CSV near line {reader.line_num}: {error}."
        ) from error


def _csv_row(line: int, header: list[str], cells: list[str]) -> ManifestRow:
    if len(cells) != len(header):
        problem = f"The row has {len(cells)} cells, the header has {len(header)}. Quote commas."
        return ManifestRow(line=line, problem=problem)
    filled = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
    return ManifestRow(line=line, values=_typed(filled))


def _typed(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the texts of a format without types into numbers and mappings where fields ask."""
    return {name: _typed_value(name, value) for name, value in texts.items()}


def _typed_value(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name == "keyframes":
        return _keyframes(value)
    kind = _number_kind(name)
    if kind is not None:
        try:
            return kind(value.strip())
        except ValueError:
            return value  # the request says what is wrong with it
    return value.strip() if name != "prompt" else value


def _keyframes(text: str) -> object:
    """``12=a.png; 24=b.png`` as a mapping; anything else stays, for the request to refuse."""
    parts = [part.partition("=") for part in text.split(";") if part.strip()]
    keyframes = {frame.strip(): picture.strip() for frame, _, picture in parts}
    is_mapping = all(separator for _, separator, _ in parts) and len(keyframes) == len(parts)
    return keyframes if is_mapping else text


def _number_kind(name: str) -> Callable[[str], float] | None:
    """What reads the texts of a field; None where it is no number."""
    info = GenerationRequest.model_fields.get(name)
    annotation: Any = None if info is None else info.annotation
    while get_args(annotation) and get_origin(annotation) not in (tuple, dict, Literal):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if annotation is int:
        return _whole_number
    return float if annotation is float else None


def _whole_number(text: str) -> int:
    """Tables with gaps in a column of whole numbers write 25 as 25.0."""
    return int(re.sub(r"\.0+$", "", text))


# ---- YAML


def _read_yaml(text: str, path: Path) -> Iterator[ManifestRow]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" near line {mark.line + 1}"
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise InputError(
            f"The manifest {str(path)!r} is not valid YAML{where}: {reason}."
        ) from None
    if not isinstance(root, yaml.SequenceNode):
        raise InputError(
            f"The manifest {str(path)!r} must be a YAML list with one mapping per clip, such as "
            "`- prompt: a fox jumps`."
        )
    for node in root.value:
        line = node.start_mark.line + 1
        try:
            values = _yaml_value(node)
        except (InputError, RecursionError) as error:
            yield ManifestRow(line=line, problem=str(error))
            continue
        row = _checked_row(line, values)
        yield ManifestRow(line=line, values=_typed(row.values), problem=row.problem)


def _yaml_value(node: Any) -> Any:
    """A node with its scalars as texts: YAML 1.1 itself reads 16:9 as 969 and ``no`` as false."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(_yaml_value(key)), _yaml_value(value)) for key, value in node.value]
        return _without_duplicates(pairs)
    if isinstance(node, yaml.SequenceNode):
        return [_yaml_value(item) for item in node.value]
    is_null = node.style is None and re.fullmatch(r"~|null|Null|NULL|", node.value)
    return None if is_null else node.value


MANIFEST_FORMATS: Mapping[str, Callable[[str, Path], Iterator[ManifestRow]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
"""Reader by file name ending."""
