"""The folder of an evaluation: results as they come, so that a run can go on where it stopped.

``results.jsonl`` holds one JSON object a line: first the identity of the run (all settings that
change what a result means), before its first result that of the model (its sha256 and how it
samples), and a result each, written and flushed when it is there. ``features/`` and ``filmstrips/``
hold what is too large for a line, written before it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import DataError, InputError
from pixeldance.video.files import new_files
from pixeldance.video.schema import printable

__all__ = ["PAGE_FILE", "REPORT_FILE", "Results", "fingerprint"]

RESULTS_FILE = "results.jsonl"
REPORT_FILE = "eval.json"
PAGE_FILE = "eval.html"
FEATURES = "features"
FILMSTRIPS = "filmstrips"

Key = tuple[str, ...]
"""What a result is about, such as ``("clip", "seed-000003-256x144", "rife")``."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Tell runs apart.

    Args:
        identity: JSON values.

    Returns:
        16 hexadecimal digits; the order of the keys does not matter.
    """
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Results:
    """Results of one run, on the disk and in memory.

    Args:
        folder: Where they are; made if missing, with all folders above.
        identity: All that changes what a result of any method means, JSON values. Results of
            another identity are refused.
        model: Likewise for results of the model; None if there will be none. A model may be added
            to a folder that has results of other methods only.
        overwrite: Whether to throw away an evaluation that is there already.

    Raises:
        InputError: If the folder holds results of other settings or another model, or a report
            without results, and must not be overwritten; or it cannot be made.
        DataError: If the results in it are damaged.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        model: Mapping[str, Any] | None = None,
        overwrite: bool,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint(identity)
        self._path = folder / RESULTS_FILE
        self._records: dict[Key, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The folder '{folder}' cannot be made ({error.strerror}). Choose another "
                "--output-dir."
            ) from error
        if overwrite:
            self._clear()
        self._read(identity, model)
        for name in (FEATURES, FILMSTRIPS):
            (folder / name).mkdir(exist_ok=True)

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self._records[key]

    def add(self, key: Key, values: Mapping[str, Any]) -> None:
        """Keep a result; once this returns, it survives whatever happens to the process.

        Args:
            key: What it is about; an older result of the same key is replaced.
            values: JSON values.
        """
        self._append({"run": self.fingerprint, "key": key, "values": values})
        self._records[key] = dict(values)

    def features_path(self, clip: str, method: str) -> Path:
        """Where the features of a clip are.

        Args:
            clip: Key of the clip.
            method: Who made it.

        Returns:
            A path ending in ``.npy``.
        """
        return self.folder / FEATURES / f"{clip}-{method}.npy"

    def filmstrip_path(self, clip: str, method: str) -> Path:
        """Where the filmstrip of a clip is.

        Args:
            clip: Key of the clip.
            method: Who made it.

        Returns:
            A path ending in ``.webp``.
        """
        return self.folder / FILMSTRIPS / f"{clip}-{method}.webp"

    def write_features(self, clip: str, method: str, features: npt.NDArray[Any]) -> None:
        """Keep the features of a clip.

        Args:
            clip: Key of the clip.
            method: Who made it.
            features: Of any shape.
        """
        buffer = BytesIO()
        np.save(buffer, features, allow_pickle=False)
        _write(self.features_path(clip, method), buffer.getvalue())

    def read_features(self, clip: str, method: str) -> npt.NDArray[Any]:
        """Features that were kept.

        Args:
            clip: Key of the clip.
            method: Who made it.

        Returns:
            The array.

        Raises:
            DataError: If the file is damaged.
        """
        path = self.features_path(clip, method)
        try:
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"'{path}' is damaged: {error}. Remove it and run the command again."
            ) from error
        return array

    def write_filmstrip(self, clip: str, method: str, webp: bytes) -> None:
        """Keep the filmstrip of a clip.

        Args:
            clip: Key of the clip.
            method: Who made it.
            webp: The encoded picture.
        """
        _write(self.filmstrip_path(clip, method), webp)

    # ---- the file

    def _clear(self) -> None:
        """Remove what an evaluation writes, and nothing else."""
        for name in (RESULTS_FILE, REPORT_FILE, PAGE_FILE):
            (self.folder / name).unlink(missing_ok=True)
        for name in (FEATURES, FILMSTRIPS):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _read(self, identity: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
        lines = self._whole_lines()
        first = next(lines, None)
        if first is None:
            self._begin(identity)
        else:
            self._check(first[1].get("identity"), identity)
        known = None
        for number, record in lines:
            if "model" in record:
                known = record["model"]
                continue
            key, values = record.get("key"), record.get("values")
            if record.get("run") != self.fingerprint or not isinstance(key, list):
                raise self._damaged(number)
            self._records[tuple(map(str, key))] = dict(values or {})
        if model is not None and known is None:
            self._append({"run": self.fingerprint, "model": model})
        elif model is not None:
            self._check(known, model)

    def _check(self, before: object, now: Mapping[str, Any]) -> None:
        """Refuse to mix results that do not mean the same."""
        if not isinstance(before, dict) or fingerprint(before) != fingerprint(now):
            raise InputError(
                f"'{self.folder}' holds results of another run: {_differences(before, now)}. "
                "Choose another --output-dir, or throw them away with --overwrite."
            )

    def _begin(self, identity: Mapping[str, Any]) -> None:
        for name in (REPORT_FILE, PAGE_FILE):
            if os.path.lexists(self.folder / name):
                raise InputError(
                    f"'{self.folder / name}' is there without the results it was made from. Choose "
                    "another --output-dir, or replace it with --overwrite."
                )
        self._append({"run": self.fingerprint, "identity": identity})

    def _whole_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records in the file with their line numbers; a torn last line is cut off."""
        data = self._path.read_bytes() if self._path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise self._damaged(number) from error
            if not isinstance(record, dict):
                raise self._damaged(number)
            yield number, record

    def _damaged(self, number: int) -> DataError:
        return DataError(
            f"Line {number} of '{self._path}' is damaged. Remove that line, or start again with "
            "--overwrite."
        )

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _write(path: Path, data: bytes) -> None:
    with new_files(path, overwrite=True) as (temporary,):
        temporary.write_bytes(data)


def _differences(before: object, now: Mapping[str, Any]) -> str:
    """Which settings differ, for a message of one line."""
    if not isinstance(before, dict):
        return "it does not say which"
    names = [name for name in now if before.get(name) != now[name]]
    names += [name for name in before if name not in now]
    return "; ".join(
        f"{printable(str(name))} {_shown(before.get(name))} then, {_shown(now.get(name))} now"
        for name in names
    )


def _shown(value: object) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 100 else text[:97] + "..."
