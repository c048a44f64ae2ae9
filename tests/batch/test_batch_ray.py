"""Ray Data makes the same clips."""

from pathlib import Path

import pytest
from batch_helpers import frames_sha256, write_manifest

pytest.importorskip("ray")

from pixeldance.batch import run
from pixeldance.batch.runner import RunOptions


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_local_actors_make_the_same_clips(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray as ray_itself

    from pixeldance.batch import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    rows = [{"id": f"row-{i}", "prompt": "a fox", "first_frame": "1.png"} for i in range(5)]
    manifest = write_manifest(tmp_path, [*rows, {"id": "long", "num_frames": 9}])
    options = RunOptions(device="cpu", dtype="float32")
    ray_itself.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        summary = ray.run(
            manifest, tmp_path / "ray", model=str(tiny_folder), options=options, num_actors=2
        )
        again = ray.run(manifest, tmp_path / "ray", model=str(tiny_folder), options=options)
    finally:
        ray_itself.shutdown()
    assert (len(summary.clips), summary.num_made, summary.failed) == (6, 6, [])
    assert (len(again.clips), again.num_made) == (6, 0)
    run(manifest, tmp_path / "plain", model=str(tiny_folder), device="cpu", dtype="float32")
    assert frames_sha256(tmp_path / "ray") == frames_sha256(tmp_path / "plain")
