"""The HTTP API as a client of OpenAI's /v1/videos uses it."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_helpers import ADDRESS, CLIP, HandWorker, client, picture, png
from starlette.testclient import TestClient

from pixeldance.jobs import JobService, JobState, JobStore
from pixeldance.pictures import picture_sha256
from pixeldance.request import GenerationRequest
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings

SHA256 = picture_sha256(picture())


@pytest.fixture
def http(service: JobService) -> TestClient:
    return client(service)


def create(http: TestClient, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/videos", json={"prompt": "a fox", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


def test_a_video_goes_from_the_queue_to_its_content(http: TestClient, worker: HandWorker) -> None:
    # The form that OpenAI's client sends for videos.create(prompt=, seconds=, size=, ...).
    answer = http.post(
        "/v1/videos",
        data={"prompt": "a fox", "seconds": "2", "size": "256x144", "model": "pixeldance-mini"},
        files={"input_reference": ("fox.png", png(), "image/png")},
    )
    assert answer.status_code == 200
    video = answer.json()
    assert video["object"] == "video"
    assert (video["status"], video["progress"], video["queue_place"]) == ("queued", 0, 0)
    assert (video["size"], video["seconds"], video["model"]) == (
        "256x144",
        "2.08",
        "pixeldance-mini",
    )
    assert (video["num_frames"], video["fps"]) == (25, 12)
    assert video["request"]["first_frame"]["sha256"] == SHA256
    assert isinstance(video["created_at"], int)
    assert video["completed_at"] is video["error"] is video["expires_at"] is None

    path = f"/v1/videos/{video['id']}"
    assert refusal(http.get(f"{path}/content"), 409)["code"] == "video_not_ready"
    worker.claim()
    worker.step(2)
    running = http.get(path).json()
    assert (running["status"], running["progress"]) == ("in_progress", 25)
    worker.finish()
    done = http.get(path).json()
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert done["completed_at"] >= done["started_at"] >= done["created_at"]
    assert http.get(f"{path}/content").content == CLIP
    assert http.delete(path).json() == {
        "id": video["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    assert refusal(http.get(path), 404)["code"] == "video_not_found"


def test_all_fields_arrive_from_a_form_and_from_json_alike(
    http: TestClient, service: JobService
) -> None:
    plain = {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "last_frame_strength": 0.5,
        "width": 64,
        "height": 48,
        "fit": "cover",
        "focus": "0.5,0.25",
        "num_frames": 9,
        "fps": 8,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "seed": 2**63 - 1,
        "num_videos": 2,
        "model": "pixeldance-mini",
    }
    roles = {"first_frame": png(), "last_frame": png(), "keyframes[4]": png()}
    in_form = http.post(
        "/v1/videos",
        data={name: str(value) for name, value in plain.items()},
        files={role: ("a.png", content) for role, content in roles.items()},
    ).json()
    encoded = base64.b64encode(png()).decode()
    in_json = create(
        http,
        **{**plain, "seed": str(2**63 - 1), "focus": [0.5, 0.25]},
        first_frame=encoded,
        last_frame=f"data:image/png;base64,{encoded}",
        keyframes={"4": encoded},
    )
    assert in_form["request"] == in_json["request"]
    stored = service.request(in_form["id"])
    assert {name: getattr(stored, name) for name in plain} == {**plain, "focus": (0.5, 0.25)}
    assert set(stored.pictures) == {"first_frame", "last_frame", "keyframe:4"}
    assert plain.keys() | {"first_frame", "last_frame", "keyframes"} == (
        GenerationRequest.model_fields.keys() - {"aspect_ratio", "duration", "guidance_scale_2"}
    )


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"promt": "a"}, "promt", "Did you mean 'prompt'?"),
        ({"seconds": "1000"}, "seconds", "at most 257 are allowed"),
        ({"seconds": "soon"}, "seconds", "must be a finite number"),
        ({"seconds": 2, "duration": 2}, "seconds", "mean the same"),
        ({"size": "huge"}, "size", "such as 256x144"),
        ({"size": "256x144", "width": 256}, "size", "without width"),
        ({"size": "250x144"}, "width", "multiple of 16"),
        ({"num_frames": 8}, "num_frames", "8"),
        ({"num_frames": "9"}, "num_frames", "whole number"),
        ({"last_frame_strength": 0.5}, "last_frame_strength", "no effect"),
        ({"model": "/etc"}, "model", "There is no model '/etc' here"),
        ({"model": "someone/else"}, "model", "There is no model"),
        ({"first_frame": "https://a.example/b.png"}, "first_frame", "nothing is fetched"),
        ({"last_frame": "file:///etc/passwd"}, "last_frame", "nothing is fetched"),
        ({"first_frame": "/etc/passwd"}, "first_frame", "is not a picture"),
        ({"first_frame": "/etc/hosts12"}, "first_frame", "not a picture in a known format"),
        ({"first_frame": {"path": "/etc/passwd"}}, "first_frame", "is not a picture"),
        ({"keyframes": {"4": "/etc/passwd"}}, "keyframes[4]", "is not a picture"),
        ({"keyframes": ["/etc/passwd"]}, "keyframes", "must map frame numbers"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(
    http: TestClient, service: JobService, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(http.post("/v1/videos", json=fields), 400)
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert service.list().total == 0


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"[1", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"[]", 400),
        ("application/json", b"\xff\xfe{", 400),
        ("application/json", b"", 400),
        ("multipart/form-data; boundary=x", b"nothing of the kind", 400),
        ("multipart/form-data", b"--x", 400),
        ("text/plain", b"{}", 415),
        ("", b"{}", 415),
    ],
)
def test_bodies_of_no_use_are_refused(
    http: TestClient, kind: str, body: bytes, status: int
) -> None:
    refusal(http.post("/v1/videos", content=body, headers={"Content-Type": kind}), status)


def test_a_form_field_given_twice_is_refused(http: TestClient) -> None:
    answer = http.post("/v1/videos", data={"prompt": ["a", "b"]})
    assert "given twice" in refusal(answer, 400)["message"]


def test_the_list_comes_in_pages(http: TestClient, worker: HandWorker) -> None:
    assert http.get("/v1/videos").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = [create(http)["id"] for _ in range(5)]
    worker.make()  # states must not change the order
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2, "order": "asc"}
    while True:
        page = http.get("/v1/videos", params=query).json()
        seen += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert seen == ids
    newest = http.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in newest["data"]] == ids[:-3:-1]
    assert (newest["first_id"], newest["last_id"]) == (ids[-1], ids[-2])


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=sideways"])
def test_wrong_parameters_are_refused_as_400(http: TestClient, query: str) -> None:
    error = refusal(http.get(f"/v1/videos?{query}"), 400)
    assert error["param"] == query.partition("=")[0]


def test_unknown_videos_and_paths_are_not_found(http: TestClient) -> None:
    for path in ("", "/content", "/events"):
        assert refusal(http.get(f"/v1/videos/nope{path}"), 404)["code"] == "video_not_found"
    refusal(http.post("/v1/videos/nope/cancel"), 404)
    refusal(http.delete("/v1/videos/nope"), 404)
    refusal(http.get("/v1/videos?after=nope"), 404)
    refusal(http.get("/v1/nothing"), 404)
    refusal(http.get("/"), 404)
    refusal(http.put("/v1/videos"), 405)


def test_cancelling_acts_at_once_in_the_queue_and_after_the_step_of_a_run(
    http: TestClient, worker: HandWorker
) -> None:
    first, second = create(http)["id"], create(http)["id"]
    for _ in range(2):  # doing it again is no error
        assert http.post(f"/v1/videos/{second}/cancel").json()["status"] == "cancelled"
    worker.claim()
    assert worker.step(1)
    assert http.post(f"/v1/videos/{first}/cancel").json()["status"] == "in_progress"
    refusal(http.delete(f"/v1/videos/{first}"), 409)
    assert not worker.step(2)
    assert http.get(f"/v1/videos/{first}").json()["status"] == "cancelled"
    assert refusal(http.get(f"/v1/videos/{first}/content"), 404)["code"] == "content_not_found"


def test_a_finished_video_cannot_be_cancelled(http: TestClient, worker: HandWorker) -> None:
    create(http)
    assert refusal(http.post(f"/v1/videos/{worker.make()}/cancel"), 409)["code"] == "wrong_state"


def test_the_same_key_adds_nothing(http: TestClient, service: JobService) -> None:
    def send(key: str, prompt: str) -> httpx.Response:
        return http.post("/v1/videos", json={"prompt": prompt}, headers={"Idempotency-Key": key})

    one, two = send("k1", "a fox"), send("k1", "a fox")
    assert one.json()["id"] == two.json()["id"]
    error = refusal(send("k1", "a cat"), 409)
    assert (error["code"], error["param"]) == ("idempotency_key_in_use", "Idempotency-Key")
    assert send("k2", "a fox").json()["id"] != one.json()["id"]
    refusal(send("x" * 256, "a fox"), 400)
    assert service.list().total == 2


@pytest.mark.parametrize(
    ("given", "status", "content", "told"),
    [
        (None, 200, CLIP, None),
        ("bytes=0-99", 206, CLIP[:100], f"bytes 0-99/{len(CLIP)}"),
        ("bytes=100-", 206, CLIP[100:], f"bytes 100-{len(CLIP) - 1}/{len(CLIP)}"),
        ("bytes=-10", 206, CLIP[-10:], f"bytes {len(CLIP) - 10}-{len(CLIP) - 1}/{len(CLIP)}"),
        ("bytes=999999-", 416, b"", f"bytes */{len(CLIP)}"),
    ],
)
def test_players_can_seek(
    http: TestClient,
    worker: HandWorker,
    given: str | None,
    status: int,
    content: bytes,
    told: str | None,
) -> None:
    create(http)
    headers = {} if given is None else {"Range": given}
    answer = http.get(f"/v1/videos/{worker.make()}/content", headers=headers)
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("Content-Range") == told


def test_every_file_has_its_type_and_name(http: TestClient, worker: HandWorker) -> None:
    create(http)
    path = f"/v1/videos/{worker.make()}/content"
    types = {
        "video": ("video/mp4", ".mp4"),
        "thumbnail": ("image/jpeg", "-thumbnail.jpg"),
        "last_frame": ("image/png", "-last.png"),
        "recipe": ("application/json", ".json"),
    }
    for variant, (kind, suffix) in types.items():
        answer = http.get(path, params={"variant": variant})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == kind
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        disposition = answer.headers["Content-Disposition"]
        assert disposition.startswith('inline; filename="pixeldance-')
        assert disposition.endswith(f'-1{suffix}"')
    saved = http.get(path, params={"download": "1"})
    assert saved.headers["Content-Disposition"].startswith("attachment;")
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CLIP))
    refusal(http.get(path, params={"variant": "../jobs.db"}), 400)
    refusal(http.get(path, params={"number": "2"}), 404)
    refusal(http.get(path, params={"number": "17"}), 400)


def test_a_failed_video_says_why(http: TestClient, service: JobService, worker: HandWorker) -> None:
    video = create(http)
    worker.claim()
    end = service.store.running.end
    end(video["id"], JobState.FAILED, error="No memory.", traceback="secret")
    answer = http.get(f"/v1/videos/{video['id']}")
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "generation_failed", "message": "No memory."}
    assert "secret" not in answer.text


def test_models_are_listed_without_their_folders(service: JobService, tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    http = client(service, model=str(model))
    listed = http.get("/v1/models")
    assert {"mine", "pixeldance-mini"} <= {entry["id"] for entry in listed.json()["data"]}
    assert str(tmp_path) not in listed.text
    assert http.get("/v1/models/mine").json()["object"] == "model"
    refusal(http.get("/v1/models/other"), 404)
    for fields in ({}, {"model": "mine"}):
        video = create(http, **fields)
        assert video["model"] == "mine"
        assert service.request(video["id"]).model == str(model)
        assert str(tmp_path) not in json.dumps(video)


def test_200_at_once_fill_the_queue_exactly(service: JobService) -> None:
    app = create_app(service, ServerSettings(max_queued=150), has_page=False)

    async def send_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as http:
            calls = [http.post("/v1/videos", json={"prompt": str(n)}) for n in range(200)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(send_all())
    made = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(set(made)) == 150
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert refusal(refused[0], 429)["type"] == "rate_limit_error"
    assert service.counts()["queued"] == 150


def test_a_full_queue_still_answers_for_what_is_in_it(service: JobService) -> None:
    http = client(service, max_queued=1)

    def send(key: str) -> httpx.Response:
        return http.post("/v1/videos", json={"prompt": "a"}, headers={"Idempotency-Key": key})

    first = send("k1").json()["id"]
    assert send("k1").json()["id"] == first
    refusal(send("k2"), 429)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with JobService(JobStore(tmp_path, quota_bytes=0)) as service:
        error = refusal(client(service).post("/v1/videos", json={"prompt": "a"}), 507)
    assert error["code"] == "storage_full"


def test_the_openapi_document_describes_every_call(http: TestClient) -> None:
    document = http.get("/v1/openapi.json").json()
    calls = {(path, method) for path, item in document["paths"].items() for method in item}
    assert calls == {
        ("/health", "get"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/v1/videos", "get"),
        ("/v1/videos", "post"),
        ("/v1/videos/{video_id}", "get"),
        ("/v1/videos/{video_id}", "delete"),
        ("/v1/videos/{video_id}/cancel", "post"),
        ("/v1/videos/{video_id}/content", "get"),
        ("/v1/videos/{video_id}/events", "get"),
    }
    content = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    names = {*GenerationRequest.model_fields, "seconds", "size", "input_reference"}
    for body in content.values():
        assert set(body["schema"]["properties"]) == names
    example = content["application/json"]["examples"]["text"]["value"]
    assert http.post("/v1/videos", json=example).status_code == 200
    # 422 is what FastAPI adds of itself; it is told as 400.
    assert all(
        "422" not in call["responses"] for p in document["paths"].values() for call in p.values()
    )
    assert http.get("/docs").status_code == http.get("/redoc").status_code == 404


def test_health_tells_of_the_worker(service: JobService) -> None:
    assert client(service).get("/health").json() == {"status": "ok"}
