"""What a run leaves behind: each clip once, what failed, what is left; and going on with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_helpers import CountingModel, frames_sha256, write_manifest

from pixeldance.api import Model, load
from pixeldance.batch import BatchProgress, BatchSummary, estimate, make_plan, run
from pixeldance.batch import worker as worker_module
from pixeldance.batch.claims import Claims
from pixeldance.batch.generate import make_clips
from pixeldance.batch.runner import RunOptions, run_plan
from pixeldance.errors import InputError, PixelDanceError
from pixeldance.video import read_clip, read_recipe

PAIR = {"first_frame": "1.png", "last_frame": "2.png"}
Run = Callable[..., BatchSummary]


@pytest.fixture
def go(tmp_path: Path, tiny_folder: Path, model: CountingModel) -> Run:
    """Runs rows into one folder; without rows, the manifest that is there."""

    def make(
        *rows: dict[str, Any],
        skip_invalid: bool = False,
        on_progress: Callable[[BatchProgress], object] | None = None,
        **options: Any,
    ) -> BatchSummary:
        manifest = write_manifest(tmp_path, rows) if rows else tmp_path / "jobs.jsonl"
        plan = make_plan(manifest, tmp_path / "out", model=str(tiny_folder))
        plan.check(skip_invalid=skip_invalid, overwrite=options.get("overwrite", False))
        return run_plan(plan, RunOptions(**options), load_onto=model, on_progress=on_progress)

    return make


def test_a_clip_of_each_row_with_its_recipe(go: Run, tmp_path: Path, tiny_folder: Path) -> None:
    manifest = write_manifest(tmp_path, [{"id": "fox", "prompt": "a fox", "seed": 3, **PAIR}])
    summary = run(manifest, tmp_path / "out", model=str(tiny_folder), device="cpu", dtype="float32")
    assert summary.clips == {"fox": tmp_path / "out" / "fox.mp4"}
    assert (summary.num_made, summary.failed, summary.num_missing) == (1, [], 0)
    clip = read_clip(summary.clips["fox"])
    assert clip.frames.shape == (5, 32, 48, 3)
    recipe = read_recipe(tmp_path / "out" / "fox.json")
    assert clip.recipe == recipe
    assert (recipe["seed"], recipe["request"]["prompt"]) == (3, "a fox")
    alone = load(tiny_folder, device="cpu", dtype="float32").generate(
        make_plan(manifest, tmp_path / "out", model=str(tiny_folder)).rows[0].request
    )
    assert recipe["frames"]["sha256"] == alone.recipe["frames"]["sha256"]


def test_nothing_but_clips_and_their_recipes_is_left_in_sight(go: Run, tmp_path: Path) -> None:
    go({"id": "a"}, {"id": "b"})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".pixeldance-batch", "a.json", "a.mp4", "b.json", "b.mp4"]
    assert [
        path for path in (tmp_path / "out" / ".pixeldance-batch").rglob("*") if path.is_file()
    ] == []


def test_the_same_command_makes_only_what_is_missing(
    go: Run, tmp_path: Path, model: CountingModel
) -> None:
    assert go({"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"}).num_made == 2
    assert go().num_made == 0
    (tmp_path / "out" / "a.json").unlink()  # killed before the JSON came
    (tmp_path / "out" / "b.mp4").unlink()  # removed by the person
    assert go().num_made == 2
    go({"id": "b", "prompt": "b"}, {"id": "c", "prompt": "c"})
    assert model.prompts == ["a", "b", "a", "b", "c"]


def test_a_failed_row_does_not_stop_the_others_and_is_tried_again_when_asked(
    go: Run, tmp_path: Path, model: CountingModel
) -> None:
    rows = [{"id": "a", "prompt": "a"}, {"id": "bad", "prompt": "fail"}, {"id": "c", "prompt": "c"}]
    summary = go(*rows)
    assert list(summary.clips) == ["a", "c"]
    assert summary.failed == [("bad", 2, "RuntimeError: the model broke")]
    failure = json.loads((tmp_path / "out/.pixeldance-batch/failed/bad.json").read_text())
    assert "Traceback" in failure["traceback"]
    model.prompts.clear()
    assert go().failed == summary.failed
    assert model.prompts == []
    assert go(retry_failed=True).failed == summary.failed
    assert model.prompts == ["fail"]
    rows[1]["prompt"] = "repaired"  # another row: the old failure says nothing about it
    assert go(*rows).failed == []
    assert not (tmp_path / "out/.pixeldance-batch/failed/bad.json").exists()


def test_bad_rows_stop_a_run_before_it_begins_unless_they_are_left_out(
    go: Run, tmp_path: Path, model: CountingModel
) -> None:
    rows = [{"id": "a"}, {"id": "b", "fps": 0}]
    with pytest.raises(InputError, match=r"1 rows of .jobs[.]jsonl. cannot be run; nothing"):
        go(*rows)
    assert not (tmp_path / "out").exists()
    summary = go(*rows, skip_invalid=True)
    assert (list(summary.clips), len(summary.rejected)) == (["a"], 1)
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["row"]["id"]) == (2, "b")
    assert "fps must be at least 1" in rejected["reason"]
    go({"id": "a"})
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


# ---- something else under the same name


def test_clips_of_another_row_are_noticed_and_replaced_only_when_asked(
    go: Run, tmp_path: Path
) -> None:
    go({"id": "fox", "prompt": "a fox"}, {"id": "cat"})
    before = frames_sha256(tmp_path / "out")
    changed = [{"id": "fox", "prompt": "a red fox"}, {"id": "cat"}]
    with pytest.raises(InputError, match=r"1 clips in .*fox.mp4: it was made from another row"):
        go(*changed)
    assert frames_sha256(tmp_path / "out") == before
    go(*changed, overwrite=True)
    after = frames_sha256(tmp_path / "out")
    assert after["fox"] != before["fox"]
    assert after["cat"] == before["cat"]
    assert go(*changed).num_made == 0


def test_clips_of_another_model_are_noticed(go: Run, tmp_path: Path, tiny_folder: Path) -> None:
    go({"id": "fox"})
    other = tmp_path / "weights" / "tiny"
    shutil.copytree(tiny_folder, other)
    config = other / "model_index.json"
    config.write_text(config.read_text().replace('"shift": 3.0', '"shift": 2.0'))
    plan = make_plan(tmp_path / "jobs.jsonl", tmp_path / "out", model=str(other))
    with pytest.raises(InputError, match=r"made with other weights .tiny."):
        plan.check(skip_invalid=False, overwrite=False)


@pytest.mark.parametrize("ending", ["mp4", "json"])
def test_files_of_somebody_else_are_noticed(go: Run, tmp_path: Path, ending: str) -> None:
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / f"fox.{ending}"
    foreign.write_text("{}")
    with pytest.raises(InputError, match="no batch made it"):
        go({"id": "fox"})
    assert foreign.read_text() == "{}"
    assert list(go(overwrite=True).clips) == ["fox"]


def test_overwrite_makes_all_again(go: Run, model: CountingModel) -> None:
    go({"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"})
    assert go(overwrite=True).num_made == 2
    assert model.prompts == ["a", "b", "a", "b"]


def test_an_interrupted_overwrite_keeps_old_clips_until_there_are_new_ones(
    go: Run, tmp_path: Path
) -> None:
    go({"id": "a", "prompt": "x", "num_frames": 9}, {"id": "b", "prompt": "x"})
    with pytest.raises(KeyboardInterrupt):
        go(
            {"id": "a", "prompt": "y", "num_frames": 9},
            {"id": "b", "prompt": "stop"},
            overwrite=True,
        )
    assert (tmp_path / "out" / "b.mp4").exists()
    go({"id": "a", "prompt": "y", "num_frames": 9}, {"id": "b", "prompt": "z"})
    assert read_recipe(tmp_path / "out" / "b.mp4")["request"]["prompt"] == "z"


# ---- one among several


def test_ctrl_c_gives_the_row_back(go: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go({"id": "a", "prompt": "stop"})
    state = tmp_path / "out" / ".pixeldance-batch"
    assert [path for path in state.rglob("*") if path.is_file()] == []


def test_rows_of_others_are_waited_for(
    go: Run, tmp_path: Path, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Claims(tmp_path / "out" / ".pixeldance-batch").__enter__()
    assert other.acquire("a")

    def finish_it(seconds: float) -> None:
        assert seconds == worker_module.POLL_S
        other.release("a")  # without a result: its owner was stopped

    monkeypatch.setattr(worker_module.time, "sleep", finish_it)
    summary = go({"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"})
    assert model.prompts == ["b", "a"]
    assert summary.num_made == 2
    other.__exit__()


def test_a_row_that_was_taken_over_is_left_to_who_has_it_now(
    tmp_path: Path, go: Run, tiny_folder: Path, tiny_model: Model
) -> None:
    plan = make_plan(
        write_manifest(tmp_path, [{"id": "a"}]), tmp_path / "out", model=str(tiny_folder)
    )
    plan.folder.make()
    with Claims(plan.folder.state) as claims:
        assert claims.acquire("a")
        (plan.folder.state / "claims" / "a.1").touch()
        (clip,) = make_clips(tiny_model, plan.rows)
        assert not plan.folder.add(plan.rows[0], clip, claims)
    assert list((tmp_path / "out").glob("a.*")) == []


@pytest.mark.parametrize("ending", [".mp4", ".json"])
def test_a_folder_that_cannot_be_written_stops_the_run_and_blames_no_row(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    replace = Path.replace

    def no_space(path: Path, target: Path) -> Path:
        if path.suffix == ending:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", no_space)
        with pytest.raises(PixelDanceError, match="No space left"):
            go({"id": "a"})
    # The JSON comes last: a clip without it is not done.
    assert not (tmp_path / "out" / "a.json").exists()
    assert (tmp_path / "out" / "a.mp4").exists() == (ending == ".json")
    assert go().num_made == 1


# ---- batches


def test_a_row_in_a_batch_is_the_row_alone_up_to_rounding(
    tmp_path: Path, tiny_folder: Path, tiny_model: Model
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "a red fox", **PAIR, "focus": [0.0, 0.5]},
        {"id": "b", "first_frame": "2.png", "fit": "contain"},
        {"id": "c", "prompt": "a cat", "keyframes": {"-1": "1.png"}, "fps": 8},
    ]
    plan = make_plan(write_manifest(tmp_path, rows), tmp_path / "out", model=str(tiny_folder))
    together = make_clips(tiny_model, plan.rows)
    for row, clip in zip(plan.rows, together, strict=True):
        (alone,) = make_clips(tiny_model, [row])
        difference = np.abs(clip.frames.astype(int) - alone.frames.astype(int))
        assert difference.max() <= 1  # 2e-5 of the range, then rounding to 8 bits
        assert clip.recipe["request"] == alone.recipe["request"]
        assert clip.recipe["pictures"] == alone.recipe["pictures"]
        assert (clip.seed, clip.fps) == (alone.seed, alone.fps)
    assert np.abs(together[0].frames.astype(int) - together[1].frames).max() > 10


def test_in_a_batch_only_the_row_that_is_to_blame_fails(
    tmp_path: Path, tiny_folder: Path, tiny_model: Model, go: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_batches(model: Any, rows: Any) -> Any:
        if len(rows) > 1:
            raise MemoryError
        return make_clips(model, rows)

    monkeypatch.setattr("pixeldance.batch.generate.make_clips", no_batches)
    summary = go(
        *({"id": i, "prompt": p} for i, p in [("a", "a"), ("b", "fail"), ("c", "c")]), batch_size=3
    )
    assert list(summary.clips) == ["a", "c"]
    assert [row.id for row in summary.failed] == ["b"]


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        RunOptions(batch_size=0)


# ---- what is told


def test_progress_counts_what_was_missing(go: Run) -> None:
    go({"id": "a", "num_frames": 9})
    events: list[BatchProgress] = []
    rows = [{"id": "a", "num_frames": 9}, {"id": "b", "prompt": "fail"}, {"id": "c"}]
    go(*rows, on_progress=events.append)
    assert [(event.done, event.total, event.failed) for event in events] == [(1, 2, 1), (2, 2, 1)]
    assert [event.row_id for event in events] == ["b", "c"]
    assert [event.error is None for event in events] == [False, True]
    assert events[0].remaining_s > 0.0 == events[1].remaining_s


def test_the_estimate_is_measured_where_clips_are_there(
    go: Run, tmp_path: Path, tiny_folder: Path
) -> None:
    go({"id": "a"})
    timings = read_recipe(tmp_path / "out" / "a.json")["timings"]
    manifest = write_manifest(tmp_path, [{"id": "a"}, {"id": "b"}, {"id": "c"}])
    found = estimate(make_plan(manifest, tmp_path / "out", model=str(tiny_folder)))
    assert found.seconds == pytest.approx(2 * (timings["sample"] + timings["decode"]))
    assert "measured on the 1 clips" in found.basis
