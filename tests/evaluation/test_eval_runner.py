"""The run: fair, complete, and never done twice."""

from pathlib import Path

import numpy as np
import pytest
from eval_helpers import SmallI3d, SmallModel, small_lpips, small_settings, small_world

from pixeldance.errors import InputError
from pixeldance.evaluation.metrics import MAX_PSNR
from pixeldance.evaluation.results import Results
from pixeldance.evaluation.runner import (
    EvalProgress,
    Instruments,
    identity,
    load_peers,
    model_identity,
    run,
    shown_methods,
)
from pixeldance.evaluation.settings import EvalSettings, Sampling, Sweep
from pixeldance.evaluation.suite import sticker_suite

DESCRIPTION = {"name": "small", "sha256": "ab" * 32, "dtype": "float32", "device": "cpu"}


class Bench:
    """Runs settings in one folder and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = small_world()
        self.lpips = small_lpips()

    def run(self, settings: EvalSettings, **changes) -> tuple[Results, SmallModel, list]:
        model, events = SmallModel(), []
        has_model = "ours" in settings.methods
        instruments = Instruments(
            **{
                "lpips": self.lpips,
                "i3d": SmallI3d(),
                "model": model if has_model else None,
                "world": self.world,
                "peers": load_peers(settings.methods),
                **changes,
            }
        )
        described = DESCRIPTION if has_model else None
        results = Results(
            self.folder,
            identity(settings),
            model=model_identity(settings, described),
            overwrite=False,
        )
        suite = sticker_suite(settings, self.world)
        run(settings, suite, results, instruments, on_progress=events.append)
        return results, model, events


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_all_methods_measure_the_same_clips(bench: Bench) -> None:
    settings = small_settings()
    results, model, events = bench.run(settings)
    clips = sticker_suite(settings, bench.world).clips
    for clip in clips:
        hold, fade, truth = (
            results["clip", clip.key, method] for method in ("hold-first", "crossfade", "truth")
        )
        assert fade["first_psnr"] == fade["last_psnr"] == hold["first_psnr"] == MAX_PSNR
        assert fade["last_lpips"] == 0
        assert hold["last_psnr"] < 60
        assert hold["stillness"] == hold["end_jump"] == 1
        assert fade["lpips"] > 0
        assert {"lpips", "psnr", "seconds"}.isdisjoint(truth)
        assert fade.keys() - truth.keys() >= {"lpips", "seconds"}
    assert [request.seed for request in model.requests] == [0, 1, 2]
    assert [event.done for event in events] == list(range(1, 13))
    assert {event.total for event in events} == {12}
    assert events[-1].remaining_s == 0


def test_only_the_inner_frames_are_compared(bench: Bench) -> None:
    def wrong_ends(clip, truth):
        made = truth.copy()
        made[[0, -1]] = 255 - made[[0, -1]]
        return made

    settings = small_settings(methods=("crossfade",), num_clips=1)
    results, _, _ = bench.run(settings, peers={"crossfade": wrong_ends})
    (clip,) = sticker_suite(settings, bench.world).clips
    scores = results["clip", clip.key, "crossfade"]
    assert (scores["lpips"], scores["psnr"]) == (0, MAX_PSNR)
    assert scores["ssim"] == pytest.approx(1)
    assert max(scores["first_psnr"], scores["last_psnr"]) < 30
    assert min(scores["first_lpips"], scores["last_lpips"]) > 0


def test_the_model_is_asked_for_the_clip(bench: Bench) -> None:
    sampling = Sampling(num_inference_steps=3, guidance_scale=2.0, last_frame_strength=0.5)
    settings = small_settings(methods=("ours",), num_clips=1, seed_offset=4, sampling=sampling)
    _, model, _ = bench.run(settings)
    (request,), (clip,) = model.requests, sticker_suite(settings, bench.world).clips
    truth = clip.load()
    assert (request.prompt, request.seed) == (clip.prompt, 4)
    assert (request.width, request.height, request.num_frames) == (48, 32, 9)
    assert (request.num_inference_steps, request.guidance_scale) == (3, 2.0)
    assert request.last_frame_strength == 0.5
    np.testing.assert_array_equal(np.asarray(request.first_frame), truth[0])
    np.testing.assert_array_equal(np.asarray(request.last_frame), truth[-1])


def test_a_second_run_does_nothing_and_a_larger_one_only_the_rest(bench: Bench) -> None:
    settings = small_settings(use_fvd=True)
    bench.run(settings)
    _, model, events = bench.run(settings)
    assert (model.requests, events) == ([], [])
    _, model, events = bench.run(
        small_settings(use_fvd=True, num_clips=4, methods=("ours", "crossfade", "flow-warp"))
    )
    assert [request.seed for request in model.requests] == [3]
    # flow-warp on four clips; truth, ours and crossfade on the new one; one more for the floor
    assert sorted(event.task for event in events) == sorted(
        [*["flow-warp"] * 4, "truth", "ours", "crossfade", "floor"]
    )


def test_a_run_that_was_killed_goes_on(bench: Bench) -> None:
    settings = small_settings()
    bench.run(settings)
    path = bench.folder / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # settings, model, 5 results, and a torn one
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    _, model, events = bench.run(settings)
    assert len(events) == 12 - 5
    assert [request.seed for request in model.requests] == [1, 2]
    assert len(path.read_bytes().splitlines()) == 2 + 12  # settings, model, results


def test_ctrl_c_loses_at_most_one_task(bench: Bench) -> None:
    settings = small_settings(methods=("hold-first", "crossfade"), num_clips=2)
    peers = load_peers(settings.methods)

    def stop(clip, truth):
        if clip.seed == 1:
            raise KeyboardInterrupt
        return peers["crossfade"](clip, truth)

    with pytest.raises(KeyboardInterrupt):
        bench.run(settings, peers={**peers, "crossfade": stop})
    _, _, events = bench.run(settings)
    assert [event.task for event in events] == ["crossfade"]


def test_lost_files_are_made_again(bench: Bench) -> None:
    settings = small_settings(use_fvd=True)
    results, _, _ = bench.run(settings)
    first, second, _ = (clip.key for clip in sticker_suite(settings, bench.world).clips)
    results.features_path(second, "crossfade").unlink()
    results.filmstrip_path(first, "ours").unlink()
    _, _, events = bench.run(settings)
    assert [event.task for event in events] == ["ours", "crossfade"]


def test_another_model_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(small_settings())
    monkeypatch.setitem(DESCRIPTION, "sha256", "cd" * 32)
    with pytest.raises(InputError, match="results of another run: sha256"):
        bench.run(small_settings())


def test_a_model_may_be_added_to_results_of_other_methods(bench: Bench) -> None:
    bench.run(small_settings(methods=("crossfade",)))
    _, _, events = bench.run(small_settings(methods=("ours", "crossfade")))
    assert {event.task for event in events} == {"ours"}
    _, _, events = bench.run(small_settings(methods=("ours", "crossfade")))
    assert events == []


def test_a_clip_of_another_shape_is_refused(bench: Bench) -> None:
    settings = small_settings(methods=("crossfade",))
    with pytest.raises(InputError, match=r"made uint8 of shape \(8, 32, 48, 3\)"):
        bench.run(settings, peers={"crossfade": lambda clip, truth: truth[1:]})


def test_sweeps_run_on_the_first_clips_and_share_the_main_setting(bench: Bench) -> None:
    settings = small_settings(methods=("ours",), sweeps=(Sweep("steps", (2, 8)),))
    _, model, _ = bench.run(settings)
    assert [request.num_inference_steps for request in model.requests] == [8, 2, 8, 2, 8]


def test_adherence_gives_the_first_frame_only_and_resumes_in_the_middle(bench: Bench) -> None:
    settings = small_settings(methods=("ours",), num_clips=1, num_adherence=2)
    _, model, _ = bench.run(settings)
    asked = model.requests[1:]
    assert len(asked) == 6
    assert all(request.first_frame is not None and request.last_frame is None for request in asked)
    results, model, events = bench.run(
        small_settings(methods=("ours",), num_clips=1, num_adherence=3)
    )
    assert [event.task for event in events] == ["direction ours", "camera ours", "order ours"]
    assert [request.seed for request in model.requests] == [2, 2, 2]
    record = results["adherence", "camera", "0", "ours"]
    assert (record["expected"], record["seen"]) == ("pan left", "static")


def test_progress_knows_what_each_kind_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pixeldance.evaluation.runner.time.monotonic", lambda: clock[0])

    def takes(seconds):
        def method(clip, truth):
            clock[0] += seconds
            return truth

        return method

    settings = small_settings(methods=("hold-first", "crossfade"))
    events: list[EvalProgress]
    peers = {"hold-first": takes(1), "crossfade": takes(10)}
    _, _, events = bench.run(settings, peers=peers)
    assert [event.remaining_s for event in events[2:]] == [22, 22, 21, 11, 11, 10, 0]


def test_shown_methods() -> None:
    assert shown_methods(EvalSettings(methods=("crossfade", "rife", "ours"))) == (
        "truth",
        "ours",
        "rife",
    )
    assert shown_methods(EvalSettings(methods=("crossfade", "hold-first"))) == (
        "truth",
        "crossfade",
        "hold-first",
    )
