"""The worker with a real model of a few thousand weights: previews, finishing early."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import picture, tiny_pipeline

from pixeldance.api import FINISH_EARLY, Model, StepEvent, load, rerun
from pixeldance.errors import InputError
from pixeldance.jobs import JobService, JobState, JobStore, Preview, Worker, WorkerProcess
from pixeldance.jobs.preview import LatentPreview
from pixeldance.models.codec import LinearVideoCodec, denormalized, encode_pictures

SMALL = {"num_frames": 9, "height": 32, "width": 48, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu", dtype="float32")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path / "data")) as opened:
        yield opened


def test_a_preview_is_the_average_of_what_the_codec_decodes() -> None:
    codec = tiny_pipeline().vae
    assert isinstance(codec, LinearVideoCodec)
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_pictures(codec, video)
    frames = LatentPreview(codec).frames(latents)
    decoded = codec.decode(denormalized(codec, latents)).sample
    pooled = torch.nn.functional.avg_pool3d(decoded, (1, 8, 8))[0].permute(1, 2, 3, 0)
    expected = ((pooled + 1) * 127.5).clamp(0, 255).detach().numpy()
    assert (frames.shape, frames.dtype) == ((9, 4, 6, 3), np.uint8)
    assert np.abs(frames - expected).max() <= 0.5


def test_previews_of_large_clips_stay_small() -> None:
    codec = tiny_pipeline().vae
    frames = LatentPreview(codec).frames(torch.zeros(1, codec.config.z_dim, 30, 120, 200))
    assert frames[..., 0].size <= 600_000
    assert frames.shape[1:] == (120, 200, 3)


def test_a_preview_of_another_codec_is_fitted_to_its_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mix = torch.tensor([[0.5, 0.2, 0.1, 1.0], [0.1, 0.7, 0.3, 0.0], [0.0, 0.2, 0.9, 0.5]])

    def encode(codec: object, video: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool3d(video, (1, 8, 8))
        return torch.einsum("b c t h w, c z -> b z t h w", pooled, mix) * 2 + 0.3

    monkeypatch.setattr("pixeldance.jobs.preview.encode_pictures", encode)
    video = torch.rand(1, 3, 2, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec = torch.nn.Module()
    codec.device = torch.device("cpu")
    frames = LatentPreview(codec).frames(encode(codec, video))  # type: ignore[arg-type]
    pooled = torch.nn.functional.avg_pool3d(video, (1, 8, 8))[0].permute(1, 2, 3, 0)
    assert frames.shape == (2, 2, 3, 3)
    assert np.abs(frames - ((pooled + 1) * 127.5).numpy()).max() <= 0.6


def test_finishing_early_decodes_the_estimate_of_that_step(model: Model) -> None:
    events: list[StepEvent] = []

    def after_two(event: StepEvent) -> object:
        events.append(event)
        return FINISH_EARLY if event.step == 2 else None

    options = {**SMALL, "first_frame": picture(1), "num_inference_steps": 6}
    clip = model.generate(on_step=after_two, **options)
    assert [event.step for event in events] == [1, 2]
    assert clip.recipe["num_steps_done"] == 2
    assert clip.recipe["request"]["num_inference_steps"] == 6
    np.testing.assert_array_equal(rerun(clip.recipe, model=model).frames, clip.frames)
    whole = model.generate(**options)
    assert "num_steps_done" not in whole.recipe
    assert not np.array_equal(whole.frames, clip.frames)
    with pytest.raises(InputError, match="num_steps_done is 7"):
        rerun({**clip.recipe, "num_steps_done": 7}, model=model)


def test_finishing_early_at_the_last_step_changes_nothing(model: Model) -> None:
    options = {**SMALL, "num_inference_steps": 2}
    at_end = model.generate(
        on_step=lambda event: FINISH_EARLY if event.step == 2 else None, **options
    )
    np.testing.assert_array_equal(at_end.frames, model.generate(**options).frames)
    assert "num_steps_done" not in at_end.recipe


def test_finishing_early_makes_no_further_clips(model: Model) -> None:
    clips = model.generate_many(
        num_videos=3,
        on_step=lambda event: FINISH_EARLY if event.step == 3 else None,
        **{**SMALL, "num_inference_steps": 2},
    )
    assert [clip.recipe.get("num_steps_done", 2) for clip in clips] == [2, 1]


def test_the_estimate_of_the_last_step_is_the_result(model: Model) -> None:
    shown: list[torch.Tensor] = []

    def keep(event: StepEvent) -> None:
        assert event.denoised is not None
        shown.append(event.denoised)

    clip = model.generate(on_step=keep, **SMALL)
    codec = model.pipeline.vae
    decoded = codec.decode(denormalized(codec, shown[-1])).sample[0].permute(1, 2, 3, 0)
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).detach().numpy()
    assert np.abs(clip.frames - expected).max() <= 1.0


def test_a_job_gives_the_clip_that_the_model_gives(service: JobService, model: Model) -> None:
    request = {**SMALL, "prompt": "a red fox", "first_frame": picture(1), "num_videos": 2}
    job = service.add(request)
    previews: list[Preview | None] = []
    with Worker(service.store, load_model=lambda name: model) as worker:
        claimed = worker.claim()
        assert claimed is not None
        done = worker.run_job(claimed, on_step=lambda _: previews.append(service.preview(job.id)))
    assert done.state is JobState.DONE
    assert [preview and preview.number for preview in previews] == list(range(1, 17))
    assert all(preview and preview.frames.shape == (9, 4, 6, 3) for preview in previews)
    assert service.preview(job.id) is None
    expected = model.generate_many(**request)
    assert [clip.sha256 for clip in done.clips] == [
        clip.recipe["frames"]["sha256"] for clip in expected
    ]
    again = rerun(service.recipe(job.id, 2), model=model)
    np.testing.assert_array_equal(again.frames, expected[1].frames)


@pytest.mark.slow
def test_the_worker_process_loads_the_model_and_runs_the_queue(
    service: JobService, folder: Path
) -> None:
    job = service.add({**SMALL, "model": str(folder)})  # a folder: it needs no environment
    with WorkerProcess(service.store.folder.path) as process:
        done = service.wait(job.id, timeout_s=300.0)
        assert process.status.num_restarts == 0
    assert done.state is JobState.DONE, done.error


@pytest.mark.slow
def test_memory_stays_flat_over_two_hundred_jobs(service: JobService, model: Model) -> None:
    import resource

    def run(num_jobs: int) -> int:
        for seed in range(num_jobs):
            service.add({**SMALL, "seed": seed, "num_inference_steps": 1})
        with Worker(service.store, load_model=lambda name: model) as worker:
            while (job := worker.claim()) is not None:
                assert worker.run_job(job).state is JobState.DONE
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    job_id = service.add(SMALL).id
    watchers = [threading.Thread(target=lambda: list(service.events(job_id))) for _ in range(5)]
    for watcher in watchers:
        watcher.start()
    before = run(50)
    after = run(150)
    for watcher in watchers:
        watcher.join()
    assert after - before < 24 * 1024**2, f"{(after - before) / 1e6:.0f} MB more"
