"""Rows become clips with ids, seeds and sizes that depend on their content only."""

import json
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import write_manifest
from tiny import picture

from pixeldance.api import Model
from pixeldance.backbones.facts import ModelFacts
from pixeldance.batch import BatchPlan, BatchRow, estimate, make_plan
from pixeldance.batch.plan import Shard, batches
from pixeldance.errors import InputError
from pixeldance.geometry import Size


@pytest.fixture
def plan_of(tmp_path: Path, tiny_folder: Path) -> Any:
    def make(*rows: dict[str, Any], **options: Any) -> BatchPlan:
        options = {"model": str(tiny_folder), **options}
        return make_plan(write_manifest(tmp_path, rows), tmp_path / "out", **options)

    return make


def by_line(plan: BatchPlan) -> list[BatchRow]:
    return sorted(plan.rows, key=lambda row: (row.line, row.id))


def test_nothing_is_written_by_planning(plan_of: Any, tmp_path: Path) -> None:
    plan_of({"prompt": "a fox"})
    assert not (tmp_path / "out").exists()


def test_ids_and_seeds_come_from_the_content(plan_of: Any, tmp_path: Path) -> None:
    fox = {"prompt": "a fox", "first_frame": "1.png"}
    (first,) = plan_of(fox).rows
    (again,) = plan_of({**fox, "fps": 12}).rows  # a default spelt out is no other content
    assert (again.id, again.request.seed) == (first.id, first.request.seed)
    for change in ({"prompt": "a cat"}, {"first_frame": "2.png"}, {"last_frame": "2.png"}):
        (other,) = plan_of({**fox, **change}).rows
        assert other.id != first.id
        assert other.request.seed != first.request.seed
    (tmp_path / "renamed.png").write_bytes((tmp_path / "1.png").read_bytes())
    (renamed,) = plan_of({**fox, "first_frame": "renamed.png"}).rows
    assert renamed.sha256 == first.sha256
    picture(3).save(tmp_path / "1.png")
    (other_pixels,) = plan_of(fox).rows
    assert other_pixels.id != first.id


def test_equal_rows_with_ids_of_their_own_are_different_clips(plan_of: Any) -> None:
    one, two = plan_of({"prompt": "x", "id": "one"}, {"prompt": "x", "id": 2}).rows
    assert {one.id, two.id} == {"one", "2"}
    assert one.request.seed != two.request.seed


def test_several_clips_of_a_row_count_on(plan_of: Any) -> None:
    rows = by_line(plan_of({"id": "fox", "seed": 7, "num_videos": 3}))
    assert [(row.id, row.request.seed) for row in rows] == [
        ("fox-1", 7),
        ("fox-2", 8),
        ("fox-3", 9),
    ]
    assert {row.request.num_videos for row in rows} == {1}


def test_all_bad_rows_are_found_with_their_lines_and_reasons(plan_of: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    plan = plan_of(
        {"id": "good"},
        {"first_frame": "missing.png"},
        {"last_frame": "broken.png"},
        {"num_frames": 6},
        {"promt": "a fox"},
        {"id": "GOOD", "seed": 1},
        {"id": "../fox"},
        {"model": "another"},
        {"id": "good2", "prompt": "x", "seed": 1},
        {"id": "good3", "prompt": "x", "seed": 1},
        {"prompt": "x", "seed": 1},
        {"prompt": "x", "seed": 1},
        {"id": "a-1"},
        {"id": "a", "num_videos": 2},
    )
    assert sorted(row.id for row in plan.rows if len(row.id) < 9) == [
        "a-1",
        "good",
        "good2",
        "good3",
    ]
    found = {row.line: row.reason for row in plan.rejected}
    expected = {
        2: "missing.png",
        3: "is not a picture",
        4: "num_frames",
        5: "Did you mean 'prompt'",
        6: "id 'GOOD' is taken by line 1",
        7: "id must be a file name",
        8: "model is 'another', this run has 'tiny'",
        12: "the same clip as line 11",
        14: "id 'a-1' is taken by line 13",
    }
    assert found.keys() == expected.keys()
    for line, reason in expected.items():
        assert reason in found[line]


@pytest.mark.parametrize("row_id", ["", ".hidden", "a/b", "a b", "end.", "x" * 101, True, 1.5])
def test_ids_are_plain_file_names(plan_of: Any, row_id: object) -> None:
    (rejected,) = plan_of({"id": row_id}).rejected
    assert "id must be a file name" in rejected.reason


def test_rows_of_several_models_are_refused(tmp_path: Path) -> None:
    rows = [{"model": "one"}, {}, {"model": "two"}]
    manifest = write_manifest(tmp_path, rows)
    with pytest.raises(InputError, match=r"several models: 'one' .line 1., 'two' .line 3."):
        make_plan(manifest, tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"aspect_ratio": "1:1"},
        {"aspect_ratio": "auto"},
        {"first_frame": "wide.png"},
        {"last_frame": "wide.png"},
        {"last_frame": "wide.png", "keyframes": {"4": "tall.png"}},
        {"keyframes": {"4": "tall.png", "8": "wide.png"}},
    ],
)
def test_the_planned_size_is_the_size_of_the_clip(
    tmp_path: Path, tiny_folder: Path, tiny_model: Model, options: dict[str, Any]
) -> None:
    picture(1, 96, 32).save(tmp_path / "wide.png")
    picture(2, 32, 64).save(tmp_path / "tall.png")
    row = {"num_frames": 13, "num_inference_steps": 1, **options}
    manifest = tmp_path / "jobs.jsonl"
    manifest.write_text(json.dumps(row))
    plan = make_plan(manifest, tmp_path / "out", model=str(tiny_folder))
    assert plan.rejected == []
    (planned,) = plan.rows
    clip = tiny_model.generate(planned.request, on_step=lambda _: None)
    assert clip.frames.shape[1:3] == planned.size


@pytest.mark.parametrize(
    ("index", "scheduler", "expected"),
    [
        ({}, {"flow_shift": 3.0}, (480, 832)),
        ({}, {"flow_shift": 5.0}, (720, 1280)),
        ({"expand_timesteps": True}, {"flow_shift": 5.0}, (704, 1280)),
        ({"pixel_budget": 256 * 144}, {"flow_shift": 5.0}, (144, 256)),
    ],
)
def test_a_released_checkpoint_has_the_size_it_was_trained_at(
    tmp_path: Path, index: dict[str, Any], scheduler: dict[str, Any], expected: tuple[int, int]
) -> None:
    files = {
        "model_index.json": {"scheduler": ["diffusers", "UniPCMultistepScheduler"], **index},
        "scheduler/scheduler_config.json": scheduler,
        "transformer/config.json": {"patch_size": [1, 2, 2]},
        "vae/config.json": {},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    facts = ModelFacts.read(str(tmp_path))
    assert facts.size_multiple == 16
    size = facts.size_for("auto", Size(*expected))
    assert abs(size.width / size.height / (expected[1] / expected[0]) - 1) < 0.05
    assert 0.85 <= size.height * size.width / (expected[0] * expected[1]) <= 1.1


# ---- order, shards and batches


def test_the_longest_come_first(plan_of: Any) -> None:
    plan = plan_of(
        {"id": "a"},
        {"id": "long", "num_frames": 9},
        {"id": "steps", "num_inference_steps": 3},
        {"id": "guided", "guidance_scale": 2.0},
    )
    assert [row.id for row in plan.rows] == ["long", "guided", "steps", "a"]


def test_shards_hold_every_row_once_and_cost_about_the_same(plan_of: Any) -> None:
    rows = [{"id": str(i), "num_frames": 4 * (i % 5) + 1} for i in range(40)]
    whole = plan_of(*rows)
    parts = [plan_of(*rows, shard=Shard(i, 3)).rows for i in (1, 2, 3)]
    ids = [row.id for part in parts for row in part]
    assert sorted(ids) == sorted(row.id for row in whole.rows)
    costs = [sum(row.cost for row in part) for part in parts]
    assert max(costs) - min(costs) <= max(row.cost for row in whole.rows)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", ""])
def test_a_shard_is_one_to_n_of_n(text: str) -> None:
    with pytest.raises(InputError, match="from 1/n to n/n"):
        Shard.parse(text)
    assert Shard.parse("4/4") == Shard(4, 4)


def test_batches_hold_rows_of_one_shape(plan_of: Any) -> None:
    plan = plan_of(
        *({"id": f"a{i}"} for i in range(5)),
        *({"id": f"b{i}", "width": 32, "height": 48} for i in range(2)),
        {"id": "c", "guidance_scale": 2.0},
        {"id": "d", "last_frame": "1.png", "last_frame_strength": 0.5},
    )
    found = batches(plan.rows, 3)
    assert sorted(sorted(row.id for row in batch) for batch in found) == [
        ["a0", "a1", "a2"],
        ["a3", "a4"],
        ["b0", "b1"],
        ["c"],
        ["d"],
    ]


def test_the_estimate_follows_the_cost(plan_of: Any) -> None:
    rows = [{"id": str(i), "first_frame": "1.png", "last_frame": "2.png"} for i in range(4)]
    one, four = estimate(plan_of(rows[0])), estimate(plan_of(*rows))
    assert four.seconds == pytest.approx(4 * one.seconds)
    assert one.seconds > 0
    assert "nothing has been measured" in one.basis
    (twice_as_many_passes,) = plan_of({"num_inference_steps": 8}).rows
    (guided,) = plan_of({"num_inference_steps": 4, "guidance_scale": 2.0}).rows
    assert guided.cost == twice_as_many_passes.cost


def test_the_plan_counts_pairs_and_sizes(plan_of: Any) -> None:
    pair = {"first_frame": "1.png", "last_frame": "2.png"}
    plan = plan_of(pair, {"width": 64}, {"width": 64, "prompt": "x"}).to_json()
    assert (plan["num_clips"], plan["num_pairs"]) == (3, 1)
    assert plan["sizes"] == {"64x32, 5 frames": 2, "48x32, 5 frames": 1}
    assert plan["counts"] == {"done": 0, "failed": 0, "missing": 3, "conflict": 0, "invalid": 0}
