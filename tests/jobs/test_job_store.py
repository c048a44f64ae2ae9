"""What is asked of the store: it keeps what it acknowledged, in the order that was asked for."""

import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixeldance.errors import InputError, PixelDanceError
from pixeldance.jobs import (
    Job,
    JobService,
    JobState,
    JobStateError,
    JobStore,
    StorageFullError,
    UnknownJobError,
    default_data_folder,
)
from pixeldance.request import GenerationRequest


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path / "data")) as opened:
        yield opened


def blocks(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def queue(service: JobService) -> list[str]:
    jobs = service.list(state="queued").jobs
    assert [job.place for job in jobs] == list(range(len(jobs)))
    return [job.request["prompt"] for job in jobs]


def test_an_acknowledged_job_is_there_when_the_store_is_opened_again(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path)) as service:
        added = service.add({"prompt": "a fox", "seed": 7, "first_frame": blocks(1)})
    with JobService(JobStore(tmp_path)) as service:
        assert service.get(added.id) == added
    assert (added.state, added.place, added.seed) == (JobState.QUEUED, 0, 7)


def test_a_job_does_not_depend_on_the_file_of_its_picture(
    service: JobService, tmp_path: Path
) -> None:
    path = tmp_path / "fox.png"
    blocks(1).save(path)
    job = service.add({"first_frame": path, "keyframes": {8: str(path)}})
    path.unlink()
    request = service.request(job.id)
    for source in (request.first_frame, request.keyframes[8]):
        assert isinstance(source, Path)
        np.testing.assert_array_equal(np.asarray(Image.open(source)), np.asarray(blocks(1)))
    assert {record["name"] for record in job.pictures.values()} == {"fox.png"}
    assert len(list(service.store.folder.pictures.glob("*.png"))) == 1  # stored by content


@pytest.mark.parametrize(
    "fields",
    [{"prompt": 3}, {"nonsense": 1}, {"first_frame": "gone.png"}, {"num_frames": 6}],
)
def test_a_wrong_request_leaves_nothing(service: JobService, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        service.add(fields)
    assert service.list().jobs == []
    assert list(service.store.folder.pictures.iterdir()) == []


def test_fields_that_are_left_out_stay_open(service: JobService) -> None:
    job = service.add(GenerationRequest(prompt="a fox"))
    assert job.request == {"prompt": "a fox"}
    assert service.request(job.id).seed is None
    assert service.add({"prompt": "a fox"}).seed != job.seed


def test_an_idempotency_key_adds_once(service: JobService) -> None:
    fields = {"prompt": "a fox", "first_frame": blocks(1)}
    one = service.add(fields, idempotency_key="k")
    assert service.add(fields, idempotency_key="k") == one
    service.stop(one.id)
    assert service.add(fields, idempotency_key="k").id == one.id
    assert service.add(fields).id != one.id
    with pytest.raises(InputError, match="was used for another request"):
        service.add({"prompt": "a cat"}, idempotency_key="k")


def test_adding_with_one_key_at_once_adds_once(service: JobService) -> None:
    ids: list[str] = []

    def add() -> None:
        ids.append(service.add({"prompt": "a fox"}, idempotency_key="k").id)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids))) == (8, 1)


def test_jobs_are_moved_within_the_queue(service: JobService) -> None:
    ids = {prompt: service.add({"prompt": prompt}).id for prompt in "abcd"}
    service.run_next(ids["c"])
    assert queue(service) == list("cabd")
    service.move(ids["c"], 2)
    assert queue(service) == list("abcd")
    service.move(ids["a"], 99)
    assert queue(service) == list("bcda")
    with pytest.raises(InputError, match="at least 0"):
        service.move(ids["a"], -1)


def test_the_queue_never_runs_out_of_places_between_two_jobs(service: JobService) -> None:
    ids = [service.add({"prompt": prompt}).id for prompt in "abc"]
    for turn in range(70):  # halving a gap 53 times exhausts the digits of a number
        service.move(ids[1 + turn % 2], 1)
        assert queue(service) == (["a", "b", "c"] if turn % 2 == 0 else ["a", "c", "b"])


def test_a_queued_job_is_edited_in_its_place(service: JobService) -> None:
    job = service.add({"prompt": "a", "seed": 1, "first_frame": blocks(1), "last_frame": blocks(2)})
    service.add({"prompt": "z"})
    edited = service.edit(job.id, {"prompt": "b", "last_frame": None, "num_inference_steps": 3})
    assert queue(service) == ["b", "z"]
    assert edited.request == {
        "prompt": "b",
        "seed": 1,
        "num_inference_steps": 3,
        "first_frame": job.request["first_frame"],
    }
    assert (edited.seed, edited.num_steps) == (1, 3)
    stored = [path.stem for path in service.store.folder.pictures.glob("*.png")]
    assert stored == [job.request["first_frame"]["sha256"]]  # the other one is needed no more
    assert service.edit(job.id, {"seed": 5}).seed == 5
    with pytest.raises(InputError, match="seed must be"):
        service.edit(job.id, {"seed": -1})
    assert service.get(job.id).seed == 5


def test_duplicating_copies_the_request_and_draws_an_open_seed_anew(service: JobService) -> None:
    job = service.add({"prompt": "a", "first_frame": blocks(1)})
    copy = service.duplicate(job.id, {"num_frames": 9})
    assert copy.id != job.id
    assert copy.request == {**job.request, "num_frames": 9}
    assert copy.seed != job.seed
    service.remove(job.id)
    assert service.request(copy.id).first_frame.is_file()


def test_a_queued_job_is_stopped_at_once_and_can_be_requeued(service: JobService) -> None:
    one, two = service.add({"prompt": "a"}), service.add({"prompt": "b"})
    assert service.stop(one.id).state is JobState.CANCELLED
    assert queue(service) == ["b"]
    with pytest.raises(JobStateError, match="is cancelled and cannot be stopped"):
        service.stop(one.id)
    service.requeue(one.id)
    assert queue(service) == ["b", "a"]
    with pytest.raises(JobStateError, match="queued and cannot be requeued"):
        service.requeue(two.id)
    with pytest.raises(JobStateError, match="queued and cannot be finished early"):
        service.finish_early(two.id)


def test_removing_a_job_removes_its_files(service: JobService) -> None:
    one, two = (service.add({"first_frame": blocks(1), "prompt": name}) for name in "ab")
    assert service.usage().pictures_bytes > 0
    service.remove(one.id)
    assert len(list(service.store.folder.pictures.iterdir())) == 2  # the other needs it
    service.remove(two.id)
    assert list(service.store.folder.pictures.iterdir()) == []
    assert service.usage().num_bytes == 0


@pytest.mark.parametrize(
    "call",
    ["get", "stop", "pause", "resume", "run_next", "requeue", "remove", "duplicate", "event"],
)
def test_an_unknown_job_is_an_input_error(service: JobService, call: str) -> None:
    with pytest.raises(UnknownJobError, match="no job 'nix'"):
        getattr(service, call)("nix")


def test_listing_filters_counts_and_pages(service: JobService) -> None:
    jobs = [service.add({"prompt": f"Straße {number}"}) for number in range(5)]
    service.stop(jobs[0].id)
    service.stop(jobs[1].id)

    def listed(**options: Any) -> tuple[list[int], int]:
        page = service.list(**options)
        ids = [job.id for job in jobs]
        return [ids.index(job.id) for job in page.jobs], page.total

    assert listed() == ([2, 3, 4, 1, 0], 5)
    assert listed(limit=2, offset=1) == ([3, 4], 5)
    assert listed(state="cancelled") == ([1, 0], 2)
    assert listed(state=["cancelled", "queued"], search="STRASSE 3") == ([3], 1)
    assert listed(search=jobs[4].id) == ([4], 1)
    assert listed(search="100%") == ([], 0)
    assert service.counts()["queued"] == 3
    with pytest.raises(InputError, match="no state 'lost'"):
        service.list(state="lost")
    with pytest.raises(InputError, match="limit must be"):
        service.list(limit=0)


def test_listing_uses_an_index_for_its_order(service: JobService) -> None:
    with sqlite3.connect(service.store.folder.database) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM jobs ORDER BY section, rank, created_at LIMIT 9"
        ).fetchall()
    connection.close()
    assert [row[3] for row in plan] == ["SCAN jobs USING INDEX jobs_in_order"]


def test_a_full_quota_refuses_new_jobs_only(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path, quota_bytes=1)) as service:
        job = service.add({"first_frame": blocks(1)})
        for refused in (
            lambda: service.add({"prompt": "b"}),
            lambda: service.duplicate(job.id),
        ):
            with pytest.raises(StorageFullError, match="Remove old clips"):
                refused()
        service.remove(job.id)
        service.add({"prompt": "b"})


def test_a_full_disk_refuses_new_jobs(service: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageFullError, match="The disk has 0 MB left"):
        service.add({"prompt": "a"})


def test_clean_up_removes_what_is_over_and_only_on_request(service: JobService) -> None:
    jobs = [service.add({"prompt": str(number)}) for number in range(4)]
    for job in jobs[:3]:
        service.stop(job.id)
    with pytest.raises(InputError, match="Say what to remove"):
        service.clean_up()
    assert service.clean_up(older_than_s=3600) == ()
    assert service.clean_up(keep=2) == (jobs[0].id,)
    assert service.clean_up(older_than_s=0) == (jobs[2].id, jobs[1].id)
    assert [job.id for job in service.list().jobs] == [jobs[3].id]


def test_the_data_folder_is_private(tmp_path: Path) -> None:
    with JobStore(tmp_path / "data") as store:
        assert stat.S_IMODE(store.folder.path.stat().st_mode) == 0o700


def test_the_default_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PIXELDANCE_DATA", raising=False)
    for value, expected in (
        (str(tmp_path / "xdg"), tmp_path / "xdg" / "pixeldance"),
        ("relative", tmp_path / ".local" / "share" / "pixeldance"),
        ("", tmp_path / ".local" / "share" / "pixeldance"),
    ):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert default_data_folder() == expected
    monkeypatch.setenv("PIXELDANCE_DATA", "~/mine")
    assert default_data_folder() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    JobStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(PixelDanceError, match="has version 99; this pixeldance reads up to 1"):
        JobStore(tmp_path)


@pytest.mark.parametrize("content", [b"no database at all" * 100, "foreign"])
def test_a_file_that_is_no_job_store_is_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "jobs.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE things (name TEXT)")
        connection.close()
    with pytest.raises(PixelDanceError, match=r"jobs\.db"):
        JobStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PixelDanceError, match="PIXELDANCE_DATA"):
        JobStore(tmp_path / "file" / "data")


def test_a_job_as_json_names_no_folder(
    service: JobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model_index.json").touch()
    monkeypatch.chdir(tmp_path)
    job: Job = service.add({"prompt": "a", "model": "models/mine", "first_frame": blocks(1)})
    assert job.request["model"] == str(folder)  # the worker runs elsewhere
    assert str(tmp_path) not in str(job.to_json())
