"""Films as jobs: only what is missing is made, and nothing that was made is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from film_model import FilmModel
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.jobs import Job, JobService, JobState, JobStateError, JobStore, Worker, films
from pixeldance.jobs.films import story_from_json
from pixeldance.stories import Story, read_film_recipe, redone, story_of_recipe
from pixeldance.video import read_clip

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2}
TIMEOUT_S = 60.0


def story(**fields: Any) -> Story:
    """A cut of 9 frames, 8 that go on, a cut of 5 that ends at a picture."""
    shots = [
        {"prompt": "a fox", "num_frames": 9},
        {"prompt": "it jumps", "num_frames": 8},
        {
            "prompt": "a bear",
            "transition": "cut",
            "num_frames": 5,
            "last_frame": Image.new("RGB", (48, 32), (9, 200, 7)),
        },
    ]
    return Story.parse({**SMALL, "shots": shots, **fields})


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path)) as opened:
        yield opened


@pytest.fixture
def model() -> FilmModel:
    return FilmModel()


def run(service: JobService, model: Any) -> Job:
    """Run the first job of the queue to its end."""
    with Worker(service.store, load_model=lambda name: model) as worker:
        job = worker.claim()
        assert job is not None
        return worker.run_job(job)


def test_a_film_is_made_with_its_recipe(service: JobService, model: FilmModel) -> None:
    added = service.add(story())
    assert added.is_film
    assert (added.state, added.num_steps, added.place) == (JobState.QUEUED, 6, 0)
    assert added.request["prompt"] == "Film of 3 shots: a fox · it jumps · a bear"
    job = run(service, model)
    assert job.state is JobState.DONE
    (clip,) = job.clips
    assert (clip.num_frames, clip.height, clip.width, clip.fps) == (22, 32, 48, 12)
    files = service.clip_files(job.id)
    assert read_clip(files.clip).frames.shape == (22, 32, 48, 3)
    assert files.last_frame.is_file()
    assert files.thumbnail.is_file()
    again = story_of_recipe(read_film_recipe(files.recipe))
    assert [shot.prompt for shot in again.shots] == ["a fox", "it jumps", "a bear"]
    assert clip.num_bytes == service.usage().clips_bytes
    assert service.event(job.id).step == 6


def test_the_story_comes_back_from_the_store(service: JobService) -> None:
    picture = Image.new("RGB", (48, 32), (9, 200, 7))
    shot = {"prompt": "x", "keyframes": {"0.5s": picture, "-1": picture}, "duration": 1.5}
    told = Story.parse({**SMALL, "seed": 5, "shots": [*story().shots, shot]})
    job = service.add(told)
    back = story_from_json(job.request, service.store.folder)
    assert back.seed == 5
    assert [one.pictures.keys() for one in back.shots] == [
        one.pictures.keys() for one in told.shots
    ]
    assert [one.name for one in back.shots] == [one.name for one in told.shots]
    assert back.shots[3].duration == 1.5
    assert all(Path(str(path)).is_file() for path in back.shots[3].pictures.values())


def test_only_what_depends_on_a_change_is_made_again(service: JobService, model: FilmModel) -> None:
    told = story()
    service.add(told)
    run(service, model)
    assert [prompt for prompt, _ in model.asked] == ["a fox", "it jumps", "a bear"]
    model.asked.clear()
    service.add(redone(told, "shot-1", seed=77))
    job = run(service, model)
    assert model.asked == [("a fox", 77), ("it jumps", 0)]  # not the cut
    assert job.state is JobState.DONE
    model.asked.clear()
    service.add(redone(told, "shot-1", seed=77))
    assert run(service, model).state is JobState.DONE
    assert model.asked == []


def test_a_stopped_film_goes_on_where_it_was(service: JobService, model: FilmModel) -> None:
    job = service.add(story())
    steps = []

    class Stopping(FilmModel):
        def generate(self, request: Any, *, on_step: Any) -> Any:
            if request.prompt == "it jumps":
                service.stop(job.id)
            return super().generate(request, on_step=on_step)

    stopping = Stopping()
    assert run(service, stopping).state is JobState.CANCELLED
    assert [prompt for prompt, _ in stopping.asked] == ["a fox", "it jumps"]
    service.requeue(job.id)

    class Looking(FilmModel):
        def generate(self, request: Any, *, on_step: Any) -> Any:
            event = service.event(job.id)
            steps.append((event.clip, event.num_clips, event.step, event.num_steps))
            return super().generate(request, on_step=on_step)

    looking = Looking()
    assert run(service, looking).state is JobState.DONE
    assert [prompt for prompt, _ in looking.asked] == ["it jumps", "a bear"]
    assert steps == [(2, 3, 2, 6), (3, 3, 4, 6)]


def test_a_failing_shot_is_told_in_words(service: JobService, model: FilmModel) -> None:
    service.add(Story.parse({**SMALL, "shots": [{"prompt": "fail", "num_frames": 5}]}))
    job = run(service, model)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "the model broke" in job.error
    assert job.clips == ()


def test_what_is_no_film_is_refused_before_it_waits(service: JobService, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shots = [{"first_frame": tmp_path / "broken.png", "transition": "cut"}]
    with pytest.raises(InputError, match="Shot 1, first_frame"):
        service.add(Story.parse({**SMALL, "shots": shots}))
    assert service.list().total == 0


def test_a_film_has_no_settings_of_one_clip(service: JobService) -> None:
    job = service.add(story())
    for change in (service.request, service.duplicate, lambda job_id: service.edit(job_id, {})):
        with pytest.raises(InputError, match="film of several shots"):
            change(job.id)
    assert service.list().total == 1
    service.store.running.claim()
    with pytest.raises(JobStateError, match="cannot be finished early"):
        service.finish_early(job.id)


def test_pictures_stay_as_long_as_the_job(service: JobService) -> None:
    job = service.add(story())
    record = job.request["story"]["shots"][2]["last_frame"]
    path = service.store.folder.picture(record["sha256"])
    service.store.storage.sweep()
    assert path.is_file()
    service.stop(job.id)
    service.remove(job.id)
    assert not path.exists()


def test_the_cache_keeps_its_limit(
    service: JobService, model: FilmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "MAX_CACHE_BYTES", 1)
    service.add(story())
    run(service, model)
    cache = service.store.folder.film_clips
    first = {path.name for path in cache.iterdir()}
    assert len(first) == 3  # a film's own clips stay, however large it is
    service.add(redone(story(), "shot-3", seed=8))
    run(service, model)
    second = {path.name for path in cache.iterdir()}
    assert len(second) == 3
    assert len(first - second) == 1


def test_the_page_may_go_while_a_film_is_made(tmp_path: Path, model: FilmModel) -> None:
    """Nobody but the worker is needed once the job is added."""
    with JobService(JobStore(tmp_path)) as page:
        job_id = page.add(story()).id
    with JobStore(tmp_path) as store:
        worker = Worker(store, load_model=lambda name: model)  # type: ignore[arg-type, return-value]

        def work() -> None:
            with worker:
                worker.run()

        thread = threading.Thread(target=work)
        thread.start()
        with JobService(JobStore(tmp_path)) as watcher:
            assert watcher.wait(job_id, timeout_s=TIMEOUT_S).state is JobState.DONE
        worker.leave()
        thread.join(TIMEOUT_S)


@pytest.mark.slow
def test_a_killed_worker_costs_the_clip_in_hand_only(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "film_model.py"), str(tmp_path)]
    with JobService(JobStore(tmp_path)) as service:
        log = tmp_path / "starts.log"
        job = service.add(story())
        with subprocess.Popen([*command, "0.5"], stdin=subprocess.PIPE) as process:
            wait_for(lambda: log.is_file() and "it jumps" in log.read_text())
            os.kill(process.pid, signal.SIGKILL)
        with subprocess.Popen([*command, "0"], stdin=subprocess.PIPE) as process:
            done = service.wait(job.id, timeout_s=TIMEOUT_S)
            process.terminate()
        assert done.state is JobState.DONE
        assert log.read_text().splitlines() == ["a fox 0", "it jumps 0", "it jumps 0", "a bear 0"]
        assert not [*service.store.folder.film_clips.glob(".*")]


def wait_for(condition: Any) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
