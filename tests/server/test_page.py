"""The page over HTTP, as a browser uses it, mounted in the application with its guard."""

import asyncio
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from httpx import Response
from PIL import Image
from server_helpers import ADDRESS
from starlette.testclient import TestClient
from studio_helpers import FadingWorker
from tiny_wan import write_checkpoint

from pixeldance.jobs import Job, JobService, JobStore
from pixeldance.server.app import create_app
from pixeldance.server.page import page_assets
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.form import WIDGETS
from pixeldance.server.studio.widgets import default_values

MEDIA = "/studio/media"


class Tab:
    """What the browser does, without a browser."""

    def __init__(self, http: TestClient, name: str) -> None:
        self.http = http
        self.name = name
        self.config = http.get("/config").json()
        self.pictures: Any = None

    def post(self, function: str, data: list[Any], event: dict[str, Any] | None = None) -> Response:
        body = {
            "fn_index": self.dependency(function)["id"],
            "data": data,
            "event_data": event,
            "session_hash": self.name,
        }
        return self.http.post("/gradio_api/run/predict", json=body)

    def call(self, function: str, data: list[Any], event: dict[str, Any] | None = None) -> Any:
        answer = self.post(function, data, event)
        assert answer.status_code == 200, answer.text
        outputs = [self.component(number) for number in self.dependency(function)["outputs"]]
        return dict(zip(outputs, answer.json()["data"], strict=True))

    def dependency(self, function: str) -> dict[str, Any]:
        return next(d for d in self.config["dependencies"] if d["api_name"] == function)

    def component(self, number: int) -> str:
        found = next(one for one in self.config["components"] if one["id"] == number)
        return str(found["props"].get("elem_id") or found["props"].get("storage_key") or number)

    def upload(self, name: str, content: bytes) -> str:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        return str(answer.raise_for_status().json()[0])

    def form(self, do: str, **event: Any) -> dict[str, Any]:
        values = list(default_values("pixeldance-mini").values())
        shown = self.call("form", [self.pictures, None, *values], {"do": do, **event})
        kept = shown["pixeldance-studio-pictures"]
        if not is_skipped(kept):
            self.pictures = kept
        return shown

    def generate(self, **changes: Any) -> dict[str, Any]:
        values = default_values("pixeldance-mini") | changes
        return self.call("generate", [self.pictures, None, *(values[name] for name in WIDGETS)])

    def refresh(self) -> dict[str, Any]:
        return self.call("refresh", [None, None])


def is_skipped(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and "value" not in value


class Server:
    """The application, its jobs and a worker moved by hand."""

    def __init__(self, folder: Path, http: TestClient, service: JobService) -> None:
        self.folder = folder
        self.http = http
        self.service = service
        self.worker = FadingWorker(service)

    def tab(self, name: str) -> Tab:
        return Tab(self.http, name)

    def made(self, tab: Tab, prompt: str = "a fox") -> Job:
        tab.generate(prompt=prompt, num_inference_steps=2, duration=0.5)
        self.worker.run_next(0.0)
        return self.service.list(state="done").jobs[0]


@contextmanager
def serving(folder: Path, settings: ServerSettings) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, JobService(JobStore(folder / "data")) as service:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))

        async def create() -> Any:
            return create_app(service, settings)

        # In a running event loop: without one, Gradio makes some that it never closes.
        with TestClient(asyncio.run(create()), base_url=ADDRESS) as http:
            server = Server(folder, http, service)
            yield server
            server.worker.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("page"), ServerSettings(max_queued=3)) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_jobs(server: Server) -> None:
    for job in server.service.list().jobs:
        server.service.remove(job.id)


def png(seed: int = 0, width: int = 48, height: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def test_the_page_is_one_document_that_asks_nobody_else(server: Server) -> None:
    html = server.http.get("/").raise_for_status().text
    assert "window.studio = " in html
    assets = page_assets()
    for content in (assets.css, assets.head):
        assert not re.search(r"(https?:)?//[\w-]+\.\w", content.replace("http://www.w3.org", ""))
    assert assets.theme._stylesheets == []


def test_a_job_is_made_from_two_pictures_and_a_sentence(server: Server) -> None:
    tab = server.tab("make")
    for role, seed in (("first_frame", 1), ("last_frame", 2)):
        tab.form("file", role=role, path=tab.upload(f"{role}.png", png(seed)))
    shown = tab.generate(prompt="a fox", seed="9", is_seed_locked=True, last_frame_strength=0.5)
    (job,) = server.service.list(state="queued").jobs
    assert job.request["prompt"] == "a fox"
    assert (job.seed, job.request["last_frame_strength"]) == (9, 0.5)
    names = [record["name"] for record in job.pictures.values()]
    assert names == ["first_frame.png", "last_frame.png"]
    assert shown["seed"] == "9"
    assert shown["message"] == ""


def test_what_is_wrong_is_said_and_adds_nothing(server: Server) -> None:
    tab = server.tab("wrong")
    message = tab.generate(num_inference_steps=0)["message"]
    assert "num_inference_steps must be at least 1, got 0" in message
    assert 'role="alert"' in message
    assert server.service.list().total == 0


def test_a_full_queue_is_said(server: Server) -> None:
    tab = server.tab("full")
    for _ in range(3):
        assert tab.generate()["message"] == ""
    assert "3 jobs are waiting already" in tab.generate()["message"]


def test_a_second_tab_and_a_reload_see_what_runs(server: Server) -> None:
    server.tab("one").generate(prompt="a fox", num_inference_steps=2)
    server.worker.claim()
    server.worker.step(1)
    for name in ("two", "reloaded"):
        shown = server.tab(name).refresh()
        assert "step 1 of 2" in shown["live"]
        assert "data:image/jpeg;base64," in shown["preview"]
        assert shown["stop"]["interactive"] is True
    again = server.tab("two").refresh()  # the same session: nothing is new
    assert is_skipped(again["live"])
    files = list((server.folder / "gradio").rglob("*.jpg"))
    server.tab("one").call("stop", [])
    assert not server.worker.step(2)
    assert files == []  # previews leave none


def test_a_job_is_edited_in_the_form(server: Server) -> None:
    tab = server.tab("edit")
    tab.generate(prompt="old")
    (job,) = server.service.list().jobs
    shown = tab.form("edit", job=job.id)
    assert shown["prompt"] == "old"
    assert shown["generate"]["value"] == "Save changes"
    assert tab.generate(prompt="new")["generate"]["value"] == "Generate"
    (edited,) = server.service.list().jobs
    assert (edited.id, edited.request["prompt"]) == (job.id, "new")


def test_the_draft_comes_back(server: Server) -> None:
    tab = server.tab("draft")
    tab.form("file", role="first_frame", path=tab.upload("mine.png", png(3)))
    values = default_values("pixeldance-mini") | {"prompt": "half a sentence", "model": "/etc"}
    draft = [values[name] for name in WIDGETS]
    shown = server.tab("again").call("load", [tab.pictures, draft])
    assert shown["prompt"] == "half a sentence"
    assert shown["model"] == "pixeldance-mini"
    assert "mine.png" in shown["wells"]
    sha256 = tab.pictures["first_frame"]["sha256"]
    answer = server.http.get(f"{MEDIA}/pictures/{sha256}.jpg")
    assert answer.headers["content-type"] == "image/jpeg"


def test_the_draft_of_the_strength_comes_back(server: Server) -> None:
    tab = server.tab("strength")
    tab.form("file", role="last_frame", path=tab.upload("mine.png", png(3)))
    values = default_values("pixeldance-mini") | {"last_frame_strength": 0.4}
    shown = tab.call("load", [tab.pictures, [values[name] for name in WIDGETS]])["strength"]
    assert (shown["value"], shown["interactive"]) == (0.4, True)


def test_a_model_with_two_experts_has_its_own_form(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "i2v-a14b", "i2v-a14b"))
    with serving(tmp_path, ServerSettings(model=folder)) as wan:
        tab = wan.tab("wan")
        shown = tab.call("load", [None, None])
        assert (shown["steps"], shown["guidance"], shown["fps"]) == (40, 3.5, 16)
        assert shown["guidance-2"]["visible"]
        assert "<b>i2v-a14b</b> · licence not stated" in tab.refresh()["model"]

        tab.generate(model=folder, guidance_scale=3.0, guidance_scale_2=2.0)
        (job,) = wan.service.list().jobs
        assert job.request["guidance_scale_2"] == 2.0
        assert tab.form("settings", job=job.id)["guidance-2"] == 2.0

        mini = tab.call("take_model", ["pixeldance-mini"])
        assert (mini["steps"], mini["guidance"], mini["guidance-2"]) == (8, 1.0, None)
        values = default_values("pixeldance-mini")
        hints = tab.call("hints", [None, *(values[name] for name in WIDGETS)])
        assert not hints["guidance-2"]["visible"]
        presets = [
            tab.call("show_preset", [8, 1.0, name])["preset"]
            for name in (folder, "pixeldance-mini")
        ]
        assert [len(preset["choices"]) for preset in presets] == [2, 3]
        assert [preset["value"] for preset in presets] == [None, "Standard"]


def test_only_uploads_are_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(4))
    event = {"do": "file", "role": "first_frame", "path": str(tmp_path / "secret.png")}
    data = [None, None, *default_values("pixeldance-mini").values()]
    answer = server.tab("thief").post("form", data, event)
    assert answer.status_code == 500
    assert "cannot be accessed" in answer.json()["error"]


def test_a_finished_clip_can_be_had_in_every_form(server: Server) -> None:
    job = server.made(server.tab("clip"))
    files = server.service.clip_files(job.id)
    base = f"{MEDIA}/clips/{job.id}/1"
    for name, path in (("clip.mp4", files.clip), ("last.png", files.last_frame)):
        assert server.http.get(f"{base}/{name}").content == path.read_bytes()
    part = server.http.get(f"{base}/clip.mp4", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    with av.open(BytesIO(server.http.get(f"{base}/clip.webm").content)) as container:
        assert len(list(container.decode(video=0))) == 5
    with Image.open(BytesIO(server.http.get(f"{base}/clip.gif").content)) as gif:
        assert gif.n_frames == 5
    answer = server.http.get(f"{base}/frames.zip?download=1")
    assert answer.headers["content-disposition"].startswith('attachment; filename="pixeldance-')
    with zipfile.ZipFile(BytesIO(answer.content)) as archive:
        last = archive.read("frame-0004.png")
        with Image.open(BytesIO(last)) as given, Image.open(files.last_frame) as truth:
            assert np.array_equal(np.asarray(given), np.asarray(truth))


@pytest.mark.parametrize(
    "path",
    [
        "clips/000000000000/1/clip.mp4",
        "clips/..%2f..%2fjobs.db/1/clip.mp4",
        "clips/{job}/2/clip.mp4",
        "clips/{job}/1/clip-1.mp4",
        "clips/{job}/1/..%2fclip.mp4",
        "pictures/..%2f..%2fjobs.jpg",
        "pictures/" + "0" * 64 + ".jpg",
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    job = server.made(server.tab("serve"))
    answer = server.http.get(f"{MEDIA}/{path.format(job=job.id)}")
    assert answer.status_code in (400, 404, 422), answer.text


def test_the_example_runs_at_once(server: Server) -> None:
    tab = server.tab("example")
    tab.call("act", [], {"do": "run_example"})
    (job,) = server.service.list().jobs
    assert job.request["prompt"].startswith("a glowing star")
    assert set(job.pictures) == {"first_frame", "last_frame"}
