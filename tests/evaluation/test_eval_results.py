"""The folder of results: what is kept survives, and what does not belong together stays apart."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.results import Results, fingerprint

IDENTITY = {"suite": "stickers", "num_frames": 9, "model": {"sha256": "ab"}}
KEY = ("clip", "seed-000000", "ours")


def open_results(folder: Path, overwrite: bool = False, **changes) -> Results:
    return Results(folder, IDENTITY | changes, overwrite=overwrite)


def test_results_come_back(tmp_path: Path) -> None:
    results = open_results(tmp_path / "new" / "folder")
    assert KEY not in results
    results.add(KEY, {"lpips": 0.25})
    results.add(("other",), {})
    results.write_features("a", "ours", np.arange(3.0))
    again = open_results(tmp_path / "new" / "folder")
    assert again[KEY] == {"lpips": 0.25}
    assert ("other",) in again
    np.testing.assert_array_equal(again.read_features("a", "ours"), [0, 1, 2])


def test_the_newest_result_of_a_key_counts(tmp_path: Path) -> None:
    results = open_results(tmp_path)
    results.add(KEY, {"lpips": 1.0})
    results.add(KEY, {"lpips": 2.0})
    assert results[KEY] == open_results(tmp_path)[KEY] == {"lpips": 2.0}


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    results = open_results(tmp_path)
    results.add(KEY, {"lpips": 1.0})
    whole = results.folder.joinpath("results.jsonl").read_bytes()
    results.add(("torn",), {"lpips": 2.0})
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = open_results(tmp_path)
    assert KEY in again
    assert ("torn",) not in again
    assert path.read_bytes() == whole
    again.add(("torn",), {"lpips": 3.0})
    assert open_results(tmp_path)["torn",] == {"lpips": 3.0}


def test_a_torn_first_line_is_a_new_beginning(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"run": "01')
    open_results(tmp_path).add(KEY, {})
    assert KEY in open_results(tmp_path)


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    open_results(tmp_path).add(KEY, {})
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    for damaged in ("{", "[]", json.dumps({"run": "another", "key": ["a"]})):
        path.write_text("\n".join([lines[0], damaged, lines[1], ""]))
        with pytest.raises(DataError, match=r"Line 2 of .* is damaged"):
            open_results(tmp_path)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    open_results(tmp_path).add(KEY, {})
    with pytest.raises(InputError, match=r"num_frames 9 then, 25 now.*--overwrite"):
        open_results(tmp_path, num_frames=25)
    with pytest.raises(InputError, match=r'"ab"\} then, \{"sha256": "cd"\} now'):
        open_results(tmp_path, model={"sha256": "cd"})
    assert KEY in open_results(tmp_path)  # nothing was lost


def test_overwriting_throws_away_the_evaluation_and_nothing_else(tmp_path: Path) -> None:
    results = open_results(tmp_path)
    results.add(KEY, {})
    results.write_features("a", "ours", np.zeros(2))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "eval.json").touch()
    fresh = open_results(tmp_path, overwrite=True, num_frames=25)
    assert KEY not in fresh
    assert not fresh.features_path("a", "ours").exists()
    assert (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "eval.json").exists()


def test_a_report_without_results_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "eval.html").write_text("somebody's")
    with pytest.raises(InputError, match="without the results"):
        open_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["eval.html"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        open_results(tmp_path / "file" / "inside")


def test_damaged_features_are_an_error(tmp_path: Path) -> None:
    results = open_results(tmp_path)
    results.features_path("a", "ours").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        results.read_features("a", "ours")


def test_the_fingerprint_knows_no_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
