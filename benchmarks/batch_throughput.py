"""Clips per second of a batch with 1 and 2 processes, and what it costs beside the model itself.

Run: python benchmarks/batch_throughput.py [--clips 12] [--rounds 2] [--batch-size 1] [--json FILE]

Rounds of 1 and of 2 processes alternate, so that a busy machine slows down both. The time of
processes begins when they have loaded the model. Writes to a temporary folder only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pixeldance.batch import BatchSummary, make_plan
from pixeldance.batch.plan import BatchPlan
from pixeldance.batch.runner import RunOptions, run_plan
from pixeldance.video import read_recipe

EXAMPLES = Path(__file__).parents[1] / "pixeldance" / "examples"


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size", default="256x144")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(*options.work, options.batch_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            measure(Path(folder) / f"{number}-{count}", count, options)
            for number in range(options.rounds)
            for count in (1, 2)
        ]
    figures = {
        count: summarize([one for one in rounds if one["processes"] == count]) for count in (1, 2)
    }
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps({"options": vars(options), **figures}, default=str))


def measure(folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One round: clips per second, memory, and where the CPU time went."""
    folder.mkdir()
    width, height = map(int, options.size.split("x"))
    row = {
        "first_frame": str(EXAMPLES / "first.png"),
        "last_frame": str(EXAMPLES / "last.png"),
        "width": width,
        "height": height,
        "num_frames": options.frames,
        "num_inference_steps": options.steps,
    }
    manifest = folder / "jobs.jsonl"
    rows = [json.dumps({"id": str(i), **row}) + "\n" for i in range(options.clips)]
    manifest.write_text("".join(rows))
    command = [sys.executable, __file__, "--batch-size", str(options.batch_size), "--work"]
    processes = [
        subprocess.Popen(
            [*command, str(manifest), str(folder / "out")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:  # all have loaded the model
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    answers = [json.loads(process.communicate("go\n")[0]) for process in processes]
    wall = time.monotonic() - start
    timings = [read_recipe(path)["timings"] for path in (folder / "out").glob("*.json")]
    model = sum(one["sample"] + one["decode"] for one in timings)
    busy = sum(answer["seconds"] for answer in answers)
    return {
        "processes": count,
        "clips_per_s": options.clips / wall,
        "cpu_s_per_clip": sum(answer["cpu_s"] for answer in answers) / options.clips,
        "overhead": 1.0 - model / busy,
        "peak_mib": max(answer["peak_mib"] for answer in answers),
        "made": sorted(answer["made"] for answer in answers),
    }


def work(manifest: Path, output_dir: Path, batch_size: int) -> None:
    """What one process does: load, wait for the word, make clips, tell."""
    from pixeldance.api import load

    model = load(device="auto")
    plan = make_plan(manifest, output_dir)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    start, cpu = time.monotonic(), time.process_time()
    summary = run(plan, model, batch_size)
    answer = {
        "seconds": time.monotonic() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "made": summary.num_made,
    }
    print(json.dumps(answer))  # noqa: T201


def run(plan: BatchPlan, model: Any, batch_size: int) -> BatchSummary:
    """A run with a model that is loaded already."""
    options = RunOptions(batch_size=batch_size)
    return run_plan(plan, options, load_onto=lambda _: model)


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds."""
    names = ("clips_per_s", "cpu_s_per_clip", "overhead", "peak_mib")
    medians = {name: statistics.median(one[name] for one in rounds) for name in names}
    return {**medians, "made": [one["made"] for one in rounds]}


def show(figures: dict[int, dict[str, Any]]) -> None:
    """Print the table."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{'processes':<10}{'clips/s':>9}{'CPU s/clip':>12}{'not the model':>15}{'peak MiB':>10}")  # noqa: T201
    for count, found in figures.items():
        print(  # noqa: T201
            f"{count:<10}{found['clips_per_s']:>9.3f}{found['cpu_s_per_clip']:>12.2f}"
            f"{found['overhead']:>14.1%}{found['peak_mib']:>11.0f}"
        )
    print(f"threads per process: {threads}")  # noqa: T201


if __name__ == "__main__":
    main()
