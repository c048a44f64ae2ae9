"""What the worker does with jobs, with a model that takes no time."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image

import pixeldance.api  # noqa: F401 - takes seconds, which no time limit here allows for
from pixeldance.errors import CheckpointError
from pixeldance.jobs import (
    Job,
    JobEvent,
    JobService,
    JobState,
    JobStateError,
    JobStore,
    Phase,
    Worker,
    WorkerBusyError,
)
from pixeldance.pictures import load_picture
from pixeldance.video import read_clip, read_recipe

SMALL = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 4}
TIMEOUT_S = 60.0


class Gate:
    """A model whose every step waits until it is let through."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self._permits = threading.Semaphore(0)
        self.pipeline, self.facts, self.memory_plan = model.pipeline, model.facts, None
        self.num_steps = 0

    def let(self, num_steps: int) -> None:
        self._permits.release(num_steps)

    def generate(self, request: Any, *, on_step: Callable[[Any], Any]) -> Any:
        def gated(event: Any) -> Any:
            assert self._permits.acquire(timeout=TIMEOUT_S)
            self.num_steps += 1
            return on_step(event)

        return self._model.generate(request, on_step=gated)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path)) as opened:
        yield opened


@contextmanager
def worker_of(service: JobService, model: Any, **options: Any) -> Iterator[Worker]:
    """A worker that runs in a thread, on a store of its own as in another process."""
    with JobStore(service.store.folder.path) as store:
        worker = Worker(store, load_model=lambda name: model, **options)
        with worker:
            thread = threading.Thread(target=worker.run)
            thread.start()
            try:
                yield worker
            finally:
                worker.leave()
                thread.join()


def run_all(service: JobService, model: Any) -> list[Job]:
    """Run the jobs of the queue, and none after them."""
    with Worker(service.store, load_model=lambda name: model) as worker:
        done = []
        while (job := worker.claim()) is not None:
            done.append(worker.run_job(job))
        return done


def until(service: JobService, job: Job, is_met: Callable[[JobEvent], bool]) -> JobEvent:
    for event in service.events(job.id, timeout_s=TIMEOUT_S):
        if is_met(event):
            return event
    raise AssertionError(f"it never came to that: {service.get(job.id)}")


def test_jobs_are_run_in_the_order_of_the_queue(service: JobService) -> None:
    jobs = [service.add({**SMALL, "seed": seed}) for seed in (1, 2, 3)]
    service.run_next(jobs[2].id)
    seeds: list[int] = []
    done = run_all(service, FakeModel(log=seeds.append))
    assert seeds == [3, 1, 2]
    assert [job.state for job in done] == [JobState.DONE] * 3
    assert service.counts()["done"] == 3


def test_a_finished_job_has_a_clip_a_recipe_a_thumbnail_and_its_last_frame(
    service: JobService, tmp_path: Path
) -> None:
    picture = tmp_path / "fox.png"
    Image.new("RGB", (48, 32), "red").save(picture)
    job = service.add({**SMALL, "seed": 150, "last_frame": picture, "keyframes": {0: picture}})
    (done,) = run_all(service, FakeModel())
    (record,) = done.clips
    files = service.clip_files(job.id)
    clip = read_clip(files.clip)
    assert (
        clip.frames.shape == (record.num_frames, record.height, record.width, 3) == (5, 32, 48, 3)
    )
    assert (record.seed, record.num_steps_done) == (150, 4)
    np.testing.assert_array_equal(
        np.asarray(load_picture(files.last_frame)), np.full((32, 48, 3), 150, np.uint8)
    )
    assert load_picture(files.thumbnail).size == (48, 32)
    assert record.num_bytes == sum(path.stat().st_size for path in files) > 0
    assert service.usage().clips_bytes == record.num_bytes
    recipe = read_recipe(files.recipe)
    assert recipe["frames"]["sha256"] == record.sha256
    assert recipe["request"]["last_frame"]["name"] == "fox.png"
    assert recipe["request"]["keyframes"]["0"]["name"] == "fox.png"
    service.remove(job.id)
    assert list(service.store.folder.clips.iterdir()) == []


def test_several_clips_count_their_seeds_on(service: JobService) -> None:
    job = service.add({**SMALL, "seed": 2**63 - 2, "num_videos": 3})
    (done,) = run_all(service, FakeModel())
    assert [clip.seed for clip in done.clips] == [2**63 - 2, 2**63 - 1, 0]
    assert [clip.number for clip in done.clips] == [1, 2, 3]
    assert service.event(job.id).step == service.event(job.id).num_steps == 12


def test_events_tell_of_every_phase_and_never_go_back(service: JobService) -> None:
    job = service.add(SMALL)
    gate = Gate(FakeModel())
    with worker_of(service, gate):
        until(service, job, lambda event: event.phase is Phase.ENCODING)
        for step in (1, 2, 3):
            gate.let(1)
            event = until(service, job, lambda event, step=step: event.step == step)
            assert (event.phase, event.num_steps, event.clip) == (Phase.DENOISING, 4, 1)
            assert event.seconds_per_step is not None
            assert event.remaining_s == pytest.approx((4 - step) * event.seconds_per_step)
        gate.let(1)
        last = until(service, job, lambda event: event.is_final)
    assert (last.state, last.phase, last.step) == (JobState.DONE, Phase.FINISHED, 4)
    late = list(service.events(job.id))
    assert late == [last]
    assert list(service.events(job.id, after=last.number)) == [last]


def test_fifty_watchers_see_numbers_that_grow_and_the_end(service: JobService) -> None:
    job = service.add({**SMALL, "num_inference_steps": 20})
    seen: list[list[JobEvent]] = [[] for _ in range(50)]

    async def watch(events: list[JobEvent]) -> None:
        async for event in service.watch(job.id):
            events.append(event)

    async def watch_all() -> None:
        await asyncio.gather(*(watch(events) for events in seen))

    with worker_of(service, FakeModel(seconds_per_step=0.02)):
        asyncio.run(asyncio.wait_for(watch_all(), TIMEOUT_S))
    for events in seen:
        numbers = [event.number for event in events]
        assert numbers == sorted(set(numbers))
        assert events[-1].state is JobState.DONE


def test_stop_acts_after_the_step(service: JobService) -> None:
    job, other = service.add(SMALL), service.add(SMALL)
    gate = Gate(FakeModel())
    with worker_of(service, gate):
        gate.let(1)
        until(service, job, lambda event: event.step == 1)
        assert service.stop(job.id).is_stopping
        gate.let(1)
        assert service.wait(job.id, timeout_s=TIMEOUT_S).state is JobState.CANCELLED
        assert gate.num_steps == 2
        assert service.get(job.id).clips == ()
        gate.let(4)
        assert service.wait(other.id, timeout_s=TIMEOUT_S).state is JobState.DONE
    assert list(service.store.folder.clips.iterdir()) == [
        service.store.folder.clip_folder(other.id)
    ]


def test_finishing_early_keeps_what_there_is_and_says_so(service: JobService) -> None:
    job = service.add({**SMALL, "num_videos": 3})
    gate = Gate(FakeModel())
    with worker_of(service, gate):
        gate.let(5)
        until(service, job, lambda event: event.step == 5)
        assert service.finish_early(job.id).is_finishing
        gate.let(1)
        done = service.wait(job.id, timeout_s=TIMEOUT_S)
    assert done.state is JobState.DONE
    assert [clip.num_steps_done for clip in done.clips] == [4, 2]
    assert service.recipe(job.id, 2)["num_steps_done"] == 2
    assert "num_steps_done" not in service.recipe(job.id, 1)


def test_a_running_job_pauses_after_its_step_and_resumes(service: JobService) -> None:
    job = service.add(SMALL)
    gate = Gate(FakeModel())
    with worker_of(service, gate):
        gate.let(1)
        until(service, job, lambda event: event.step == 1)
        service.pause(job.id)
        gate.let(3)
        event = until(service, job, lambda event: event.step == 2)
        time.sleep(0.3)
        assert (gate.num_steps, event.is_paused) == (2, True)
        with pytest.raises(JobStateError, match="Stop it first"):
            service.remove(job.id)
        service.resume(job.id)
        assert service.wait(job.id, timeout_s=TIMEOUT_S).state is JobState.DONE


def test_a_paused_running_job_can_be_stopped(service: JobService) -> None:
    job = service.add(SMALL)
    gate = Gate(FakeModel())
    with worker_of(service, gate):
        gate.let(1)
        until(service, job, lambda event: event.step == 1)
        service.pause(job.id)
        gate.let(1)
        until(service, job, lambda event: event.step == 2)
        service.stop(job.id)
        assert service.wait(job.id, timeout_s=TIMEOUT_S).state is JobState.CANCELLED
    assert not service.get(job.id).is_paused


def test_a_paused_queued_job_is_passed_over(service: JobService) -> None:
    one, two = service.add(SMALL), service.add(SMALL)
    service.pause(one.id)
    assert [job.id for job in run_all(service, FakeModel())] == [two.id]
    service.resume(one.id)
    assert [job.id for job in run_all(service, FakeModel())] == [one.id]


def test_a_failed_job_says_why_in_plain_words_and_the_next_one_runs(service: JobService) -> None:
    bad, good = service.add({**SMALL, "prompt": "fail"}), service.add(SMALL)
    run_all(service, FakeModel())
    failed = service.get(bad.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert "the model broke" in failed.error
    assert "\n" not in failed.error
    assert failed.traceback is not None
    assert "in generate" in failed.traceback
    assert "traceback" not in failed.to_json()
    assert service.get(good.id).state is JobState.DONE
    assert service.requeue(bad.id).error is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CheckpointError("There is no model 'nix'."), "There is no model 'nix'."),
        (MemoryError(), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried"), "not enough memory"),
        (OSError(28, "No space left on device"), "disk is full"),
    ],
)
def test_known_errors_are_told_in_words(service: JobService, error: Exception, words: str) -> None:
    job = service.add(SMALL)

    def load_model(name: str) -> Any:
        raise error

    with Worker(service.store, load_model=load_model) as worker:
        claimed = worker.claim()
        assert claimed is not None
        failed = worker.run_job(claimed)
    assert failed.id == job.id
    assert words in str(failed.error)


def test_the_model_is_loaded_for_the_first_job_and_kept(service: JobService) -> None:
    loaded: list[str] = []

    def load_model(name: str) -> Any:
        loaded.append(name)
        return FakeModel()

    for model in ("a", "a", "b"):
        service.add({**SMALL, "model": model})
    with Worker(service.store, load_model=load_model) as worker:
        assert loaded == []
        while (job := worker.claim()) is not None:
            worker.run_job(job)
    assert loaded == ["a", "b"]


def test_there_is_one_worker_at_a_time(service: JobService) -> None:
    started: list[int] = []
    for seed in range(20):
        service.add({**SMALL, "num_inference_steps": 1, "seed": seed})
    with worker_of(service, FakeModel(0.01, started.append)):
        with JobStore(service.store.folder.path) as store:
            second = Worker(store, load_model=lambda name: FakeModel(0.01, started.append))
            with pytest.raises(WorkerBusyError, match="process id"), second:
                pass
        deadline = time.monotonic() + TIMEOUT_S
        while service.counts()["done"] < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert sorted(started) == list(range(20))


def test_two_stores_cannot_claim_one_job(service: JobService) -> None:
    for _ in range(40):
        service.add(SMALL)
    claimed: list[str] = []

    def claim() -> None:
        with JobStore(service.store.folder.path) as store:
            while (job := store.running.claim()) is not None:
                claimed.append(job.id)

    with worker_of(service, FakeModel()) as worker:
        worker.leave()  # it holds the lock: opening the stores recovers nothing
        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(claimed) == len(set(claimed))


def test_a_worker_that_leaves_gives_its_job_back(service: JobService) -> None:
    job, other = service.add(SMALL), service.add(SMALL)
    gate = Gate(FakeModel())
    with worker_of(service, gate) as worker:
        gate.let(1)
        until(service, job, lambda event: event.step == 1)
        worker.leave()
        gate.let(1)
    assert [each.id for each in service.list(state="queued").jobs] == [job.id, other.id]
    run_all(service, FakeModel())
    assert service.get(job.id).state is JobState.DONE


def crash(service: JobService) -> Job:
    """Leave a job running as a killed worker does."""
    job = service.store.running.claim()
    assert job is not None
    with JobStore(service.store.folder.path):  # whoever opens the store next finds it
        pass
    return service.get(job.id)


def test_an_interrupted_job_is_requeued_once_and_first(service: JobService) -> None:
    job, _ = service.add(SMALL), service.add(SMALL)
    assert crash(service).place == 0
    again = crash(service)
    assert (again.id, again.state) == (job.id, JobState.INTERRUPTED)
    assert "ended twice" in str(again.error)
    service.requeue(job.id)
    run_all(service, FakeModel())
    assert service.get(job.id).state is JobState.DONE


def test_a_job_that_was_asked_to_stop_is_not_requeued_after_a_crash(service: JobService) -> None:
    service.add(SMALL)
    job = service.store.running.claim()
    assert job is not None
    service.stop(job.id)
    JobStore(service.store.folder.path).close()
    assert service.get(job.id).state is JobState.CANCELLED


def test_clips_that_were_finished_before_a_crash_are_not_made_again(service: JobService) -> None:
    job = service.add({**SMALL, "num_videos": 3, "seed": 5})
    gate = Gate(FakeModel())
    with worker_of(service, gate) as worker:
        gate.let(5)
        until(service, job, lambda event: event.step == 5)
        worker.leave()
        gate.let(1)
    with pytest.raises(JobStateError, match="has finished clips"):
        service.edit(job.id, {"prompt": "b"})
    first = service.clip_files(job.id).clip.stat().st_mtime_ns
    seeds: list[int] = []
    (done,) = run_all(service, FakeModel(log=seeds.append))
    assert seeds == [6, 7]
    assert [clip.seed for clip in done.clips] == [5, 6, 7]
    assert service.clip_files(job.id).clip.stat().st_mtime_ns == first


def test_what_a_crash_left_half_written_is_swept(service: JobService) -> None:
    job = service.add(SMALL)
    run_all(service, FakeModel())
    folder = service.store.folder
    orphans = [
        folder.clip_folder("gone") / "clip-1.mp4",
        folder.clip_folder(job.id) / ".pixeldance-0.partial",
        folder.clip_folder(job.id) / "clip-2.mp4",
        folder.pictures / f"{'0' * 64}.png",
    ]
    orphans[0].parent.mkdir()
    for path in orphans:
        path.touch()
    run_all(service, FakeModel())
    assert [path for path in orphans if path.exists()] == []
    assert all(path.is_file() for path in service.clip_files(job.id))


def test_progress_writes_no_files(service: JobService) -> None:
    job = service.add({**SMALL, "num_inference_steps": 50})
    gate = Gate(FakeModel())

    def files() -> dict[str, int]:
        return {
            str(path): path.stat().st_size
            for path in service.store.folder.path.rglob("*")
            if path.is_file() and "jobs.db" not in path.name
        }

    with worker_of(service, gate):
        gate.let(1)
        until(service, job, lambda event: event.step == 1)
        before = files()
        gate.let(40)
        until(service, job, lambda event: event.step == 41)
        assert files() == before
        service.stop(job.id)
        gate.let(1)
