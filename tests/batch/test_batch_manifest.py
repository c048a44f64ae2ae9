"""What stands in a manifest is what is asked for, in each of its formats."""

from pathlib import Path
from typing import Any

import pytest

from pixeldance.batch.manifest import ManifestRow, read_manifest
from pixeldance.errors import InputError


def read(tmp_path: Path, name: str, text: str | bytes) -> list[ManifestRow]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(path)


JSONL = """\
# two clips

{"id": "a", "prompt": "16:9, no", "num_frames": 9, "aspect_ratio": "16:9", "seed": null}
{"prompt": "b", "guidance_scale": 1.5, "focus": [0.2, 0.5], "keyframes": {"4": "k", "8": "l"}}
"""
CSV = """\
id,prompt,num_frames,aspect_ratio,seed,guidance_scale,focus,keyframes
a,"16:9, no",9.0,16:9,,,,
,,,,,,,
,b,,,,1.5,"0.2,0.5",4=k; 8=l
"""
YAML = """\
# two clips
- id: a
  prompt: 16:9, no
  num_frames: 9
  aspect_ratio: 16:9
  seed: null
- prompt: b
  guidance_scale: 1.5
  focus: [0.2, 0.5]
  keyframes: {4: k, 8: l}
"""


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("jobs.jsonl", JSONL, [3, 4]),
        ("jobs.csv", CSV, [2, 4]),
        ("jobs.YAML", YAML, [2, 7]),
        ("jobs.csv", "\ufeff" + CSV.replace("\n", "\r\n"), [2, 4]),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    rows = read(tmp_path, name, text)
    assert [row.line for row in rows] == lines
    assert [row.problem for row in rows] == [None, None]
    one, two = (row.values for row in rows)
    assert one == {"id": "a", "prompt": "16:9, no", "num_frames": 9, "aspect_ratio": "16:9"}
    assert isinstance(one["num_frames"], int)
    focus: Any = two.pop("focus")
    focus = focus.split(",") if isinstance(focus, str) else focus
    assert [float(part) for part in focus] == [0.2, 0.5]
    keyframes = {"4": "k", "8": "l"}
    assert two == {"prompt": "b", "guidance_scale": 1.5, "keyframes": keyframes}


def test_a_cell_may_hold_line_breaks(tmp_path: Path) -> None:
    rows = read(tmp_path, "jobs.csv", 'prompt,seed\n"a\nfox",1\ncat,2\n')
    assert [(row.line, row.values) for row in rows] == [
        (2, {"prompt": "a\nfox", "seed": 1}),
        (4, {"prompt": "cat", "seed": 2}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("jobs.jsonl", '{"seed": 1}\n{"seed": }\n', 2, "not valid JSON"),
        ("jobs.jsonl", '{"seed": 1}\n["fox"]\n', 2, "must be an object"),
        ("jobs.jsonl", '{"seed": 1}\n{"seed": 2, "seed": 3}\n', 2, "'seed' is given twice"),
        ("jobs.csv", "prompt,seed\nfox,1\nfox, that jumps,2\n", 3, "3 cells, the header has 2"),
        ("jobs.yaml", "- seed: 1\n- fox\n", 2, "must be an object"),
        ("jobs.yaml", "- seed: 1\n- seed: 2\n  seed: 3\n", 2, "'seed' is given twice"),
    ],
)
def test_a_bad_row_does_not_hide_the_others(
    tmp_path: Path, name: str, text: str, line: int, reason: str
) -> None:
    good, bad = read(tmp_path, name, text)
    assert (good.problem, good.values["seed"]) == (None, 1)
    assert bad.line == line
    assert reason in str(bad.problem)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jobs.txt", "x", "must end in .jsonl, .csv, .yaml, .yml"),
        ("jobs.jsonl", "\n# nothing\n", "has no rows"),
        ("jobs.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "not UTF-8 text .line 2."),
        ("jobs.csv", "prompt,prompt\na,b\n", "empty or repeated columns"),
        ("jobs.csv", 'prompt\n"a\n', "not valid CSV near line"),
        ("jobs.yaml", "prompt: fox\n", "must be a YAML list"),
        ("jobs.yaml", "- prompt: [fox\n", "not valid YAML near line 2"),
        ("jobs.yaml", "", "must be a YAML list"),
    ],
)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, text)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "jobs.jsonl")
