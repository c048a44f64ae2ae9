"""The event stream of a video, from its start to its final event."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_helpers import HandWorker, client, listening

from pixeldance.jobs import JobService, Phase
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings


def messages(answer: httpx.Response) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Name, id and data of each event."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield fields["event"], number, json.loads(fields["data"])
            fields = {}


def add(service: JobService, **fields: Any) -> str:
    return service.add({"prompt": "a fox", **fields}).id


def test_a_stream_tells_every_step_and_ends_with_the_end(
    service: JobService, worker: HandWorker
) -> None:
    video_id = add(service)
    with listening(create_app(service, ServerSettings(), has_page=False)) as http:
        with http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Cache-Control"] == "no-store"
            events = messages(answer)
            name, first, data = next(events)
            assert (name, data["status"], data["phase"]) == ("progress", "queued", "queued")
            worker.claim()
            assert next(events)[2]["status"] == "in_progress"
            worker.step(3)
            name, number, data = next(events)
            assert (name, data["progress"], data["phase"]) == ("progress", 37, "denoising")
            assert (data["step"], data["num_steps"]) == (3, 8)
            assert (data["seconds_per_step"], data["remaining_seconds"]) == (0.5, 2.5)
            worker.step(8, phase=Phase.DECODING)
            assert next(events)[2]["progress"] == 99
            worker.finish()
            *_, last = events  # and the stream ends
        assert first is not None
        assert number is not None
        assert first < number < last[1]
        assert (last[0], last[2]["status"], last[2]["progress"]) == ("completed", "completed", 100)

        # Whoever was cut off goes on behind the event that it has.
        path = f"/v1/videos/{video_id}/events"
        again = http.get(path, headers={"Last-Event-ID": str(number)})
        assert [event[0] for event in messages(again)] == ["completed"]
        done = http.get(path, headers={"Last-Event-ID": str(last[1])})
        assert (done.status_code, done.content) == (204, b"")
        assert http.get(path, headers={"Last-Event-ID": "x"}).status_code == 400


def test_cancelling_a_run_is_told_after_its_step(service: JobService, worker: HandWorker) -> None:
    video_id = add(service)
    worker.claim()
    with (
        listening(create_app(service, ServerSettings(), has_page=False)) as http,
        http.stream("GET", f"/v1/videos/{video_id}/events") as answer,
    ):
        events = messages(answer)
        next(events)
        http.post(f"/v1/videos/{video_id}/cancel")
        assert not worker.step(1)
        *_, last = events
    assert last[0] == "cancelled"


def test_a_video_that_is_deleted_ends_its_stream(service: JobService) -> None:
    video_id = add(service)
    with (
        listening(create_app(service, ServerSettings(), has_page=False)) as http,
        http.stream("GET", f"/v1/videos/{video_id}/events") as answer,
    ):
        events = messages(answer)
        next(events)
        assert http.delete(f"/v1/videos/{video_id}").status_code == 200
        assert [event[0] for event in events] == ["deleted"]


def test_a_silent_stream_shows_that_it_is_alive(service: JobService) -> None:
    app = create_app(service, ServerSettings(heartbeat_s=0.05), has_page=False)
    with (
        listening(app) as http,
        http.stream("GET", f"/v1/videos/{add(service)}/events") as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith(":"))
        assert [next(lines), next(lines)] == [": alive", ": alive"]


def test_the_number_of_streams_is_bounded_and_places_come_back(service: JobService) -> None:
    path = f"/v1/videos/{add(service)}/events"
    with listening(
        create_app(service, ServerSettings(max_event_streams=2), has_page=False)
    ) as http:
        with http.stream("GET", path) as one, http.stream("GET", path) as two:
            streams = messages(one), messages(two)  # kept: they close with their iterators
            assert [next(stream)[0] for stream in streams] == ["progress"] * 2
            refused = http.get(path)
            assert refused.status_code == 429
            assert refused.headers["Retry-After"]
        is_free = threading.Event()
        for _ in range(100):  # the server learns of it a moment later
            with http.stream("GET", path) as again:
                if again.status_code == 200:
                    return
            is_free.wait(0.05)
        pytest.fail("no place came back")


def test_50_watchers_see_the_end(service: JobService, worker: HandWorker) -> None:
    path = f"/v1/videos/{add(service)}/events"
    ends: list[str] = []
    started = threading.Barrier(51, timeout=20)

    with listening(create_app(service, ServerSettings(), has_page=False)) as http:
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=http.base_url, trust_env=False, limits=limits) as many:

            def watch() -> None:
                with many.stream("GET", path, timeout=20) as answer:
                    events = messages(answer)
                    next(events)
                    started.wait()
                    *_, last = events
                    ends.append(last[0])

            threads = [threading.Thread(target=watch) for _ in range(50)]
            for thread in threads:
                thread.start()
            started.wait()
            worker.make()
            for thread in threads:
                thread.join(20)
    assert ends == ["completed"] * 50


def test_a_finished_video_is_told_in_one_event(service: JobService, worker: HandWorker) -> None:
    add(service)
    answer = client(service).get(f"/v1/videos/{worker.make()}/events")
    assert [event[0] for event in messages(answer)] == ["completed"]
