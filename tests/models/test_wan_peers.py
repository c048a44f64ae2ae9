"""The benchmark against diffusers, in its tiny form: both sides must make the same clip."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "wan_peers.py"


@pytest.mark.slow
def test_both_sides_agree_and_every_row_is_filled(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    cases = ("call", "torch", "step", "encode33", "decode")
    arguments = ["--quick", "--pairs", "1", "--cases", ",".join(cases), "--json", str(result)]
    subprocess.run([sys.executable, str(BENCHMARK), *arguments], check=True)
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["quality"]["ratios_count"]
    rows = found["timings"]
    assert sorted(row["name"] for row in rows) == sorted(cases)
    assert all(row["ratio"] > 0 and row["ours_s"] > 0 for row in rows)
