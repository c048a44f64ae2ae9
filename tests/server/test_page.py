"""The page as a browser uses it: over HTTP, on this machine only."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny import picture, tiny_pipeline

from pixeldance.api import Clip, Model, StepEvent, StepListener
from pixeldance.request import GenerationRequest
from pixeldance.server import build_app, serve
from pixeldance.video import read_clip

UPLOADED = {"_type": "gradio.FileData"}


@dataclass
class WatchedModel:
    """A tiny model that can be held after a step, and counts its steps."""

    model: Model
    steps: list[int] = field(default_factory=list)
    has_stepped: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def generate(self, request: GenerationRequest, *, on_step: StepListener) -> Clip:
        def watched(event: StepEvent) -> None:
            self.steps.append(event.step)
            self.has_stepped.set()
            assert self.may_go_on.wait(20)
            on_step(event)

        return self.model.generate(request, on_step=watched)


class Page:
    """The server, and the folder that Gradio may write to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[WatchedModel] = []
        self.tabs: list[Tab] = []
        self.model = WatchedModel(Model(name="tiny", pipeline=tiny_pipeline(), sha256="0" * 64))
        self.blocks = build_app(self.load)
        self.address = serve(self.blocks, is_blocking=False)

    def load(self) -> WatchedModel:
        self.loaded.append(self.model)
        return self.model

    def tab(self, name: str) -> "Tab":
        self.tabs.append(Tab(self.address, name))
        return self.tabs[-1]


class Tab:
    """What the browser does, without a browser."""

    def __init__(self, address: str, name: str) -> None:
        self.http = httpx.Client(base_url=address, trust_env=False, timeout=20)
        self.name = name
        self.config = self.http.get("/config").json()

    def call(self, function: str, data: list[Any]) -> None:
        path = "queue/join" if function == "generate" else "run/predict"
        (number,) = (d["id"] for d in self.config["dependencies"] if d["api_name"] == function)
        body = {"fn_index": number, "data": data, "session_hash": self.name}
        self.http.post(f"/gradio_api/{path}", json=body).raise_for_status()

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        return {"path": answer.raise_for_status().json()[0], "meta": UPLOADED, "orig_name": name}

    def start(self, **values: Any) -> None:
        inputs = {
            "first_frame": None,
            "last_frame": None,
            "prompt": "a red fox jumps",
            "duration": 0.4,
            "seed": "",
            "last_frame_strength": 1,
            "num_inference_steps": 2,
            "guidance_scale": 2,
        }
        assert values.keys() <= inputs.keys()
        self.call("begin", [])
        self.call("generate", list({**inputs, **values}.values()))

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server tells about the run, to its end."""
        query = {"session_hash": self.name}
        with self.http.stream("GET", "/gradio_api/queue/data", params=query) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    yield message
                    if message["msg"] == "process_completed":
                        return

    def result(self) -> dict[str, Any]:
        *_, last = self.messages()
        return last["output"]

    def generate(self, **values: Any) -> dict[str, Any]:
        self.start(**values)
        return self.result()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))

        async def start() -> Page:
            return Page(folder)

        # In a running event loop: without one, Gradio makes some that it never closes.
        page = asyncio.run(start())
        page.model.may_go_on.set()
        yield page
        for tab in page.tabs:
            tab.http.close()
        page.blocks.close(verbose=False)


def png(folder: Path) -> bytes:
    picture(1).save(folder / "picture.png")
    return (folder / "picture.png").read_bytes()


def test_the_widgets_are_the_fields_of_the_request(page: Page) -> None:
    components = page.tab("widgets").config["components"]
    shown = {c["props"].get("info"): c["props"] for c in components}
    for name in ("prompt", "duration", "seed", "last_frame_strength", "num_inference_steps"):
        field = GenerationRequest.model_fields[name]
        assert shown[field.description].get("value") == field.default
    steps = shown[GenerationRequest.model_fields["num_inference_steps"].description]
    assert (steps["minimum"], steps["maximum"]) == (1, 200)


def test_the_model_is_loaded_once_and_not_before_the_first_clip(page: Page, tmp_path: Path) -> None:
    tab = page.tab("load")
    page.loaded.clear()
    bad = tab.upload("note.png", b"not a picture")
    assert "error" in tab.generate(first_frame=bad)
    assert page.loaded == []
    for _ in range(2):
        assert "error" not in tab.generate()
    assert page.loaded == [page.model]


def test_a_clip_is_made_from_both_pictures(page: Page, tmp_path: Path) -> None:
    tab = page.tab("clip")
    seed = 2**63 - 1  # a browser would round it
    tab.start(
        first_frame=tab.upload("one.png", png(tmp_path)),
        last_frame=tab.upload("two.png", png(tmp_path)),
        last_frame_strength=0.5,
        seed=str(seed),
    )
    messages = list(tab.messages())
    shown = [m["progress_data"][0] for m in messages if m["msg"] == "progress"]
    assert (shown[-1]["index"], shown[-1]["length"], shown[-1]["unit"]) == (2, 2, "steps")
    video, used_seed = messages[-1]["output"]["data"]
    path = Path(video["path"])
    assert path.is_relative_to(page.folder)
    clip = read_clip(path)
    assert clip.frames.shape[0] == 5
    assert used_seed == str(seed)
    assert clip.recipe is not None
    assert clip.recipe["seed"] == seed
    request = clip.recipe["request"]
    assert request["prompt"] == "a red fox jumps"
    assert request["last_frame_strength"] == 0.5
    assert (request["first_frame"]["name"], request["last_frame"]["name"]) == ("one.png", "two.png")
    assert tab.http.get(video["url"]).content == path.read_bytes()


def test_equal_requests_never_share_a_file(page: Page) -> None:
    tab = page.tab("twice")
    one, two = (tab.generate(seed="7")["data"][0]["path"] for _ in range(2))
    assert one != two
    assert Path(one).is_file()
    assert Path(two).is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "abc"}, "seed must be a whole number, got 'abc'."),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0."),
        ({"last_frame_strength": 0.5}, "has no effect without a last_frame"),
        ({"duration": 1000}, "at most 257 are allowed"),
    ],
)
def test_a_wrong_value_is_said_in_one_line(
    page: Page, values: dict[str, Any], message: str
) -> None:
    error = page.tab("wrong").generate(**values)["error"]
    assert message in error
    assert "\n" not in error


def test_a_bad_picture_is_said_without_its_folder(page: Page) -> None:
    tab = page.tab("bad")
    error = tab.generate(last_frame=tab.upload("note.png", b"not a picture"))["error"]
    assert error.startswith("Picture 'note.png' is not a picture in a known format")


@pytest.mark.parametrize("meta", [{"meta": UPLOADED}, {}])
def test_only_uploaded_files_are_read(page: Page, tmp_path: Path, meta: dict[str, Any]) -> None:
    png(tmp_path)
    tab = page.tab("foreign")
    steps = len(page.model.steps)
    output = tab.generate(first_frame={"path": str(tmp_path / "picture.png"), **meta})
    assert "uploaded" in output["error"] if not meta else "data" not in output
    assert len(page.model.steps) == steps


def test_stop_acts_within_a_step_and_on_its_own_tab_only(page: Page) -> None:
    page.model.steps.clear()
    page.model.has_stepped.clear()
    page.model.may_go_on.clear()
    tab, waiting, other = (page.tab(name) for name in ("running", "waiting", "other"))
    try:
        tab.start(num_inference_steps=200)
        assert page.model.has_stepped.wait(20)
        other.call("stop", [])
        waiting.start(num_inference_steps=200)
        waiting.call("stop", [])
        tab.call("stop", [])
    finally:
        page.model.may_go_on.set()
    assert tab.result()["error"] == "Stopped. No clip was made."
    assert waiting.result()["error"] == "Stopped. No clip was made."
    assert page.model.steps == [1]
    assert "error" not in tab.generate()


def test_the_server_is_closed_to_others(page: Page) -> None:
    (server,) = page.blocks.server.servers
    assert {socket.getsockname()[0] for socket in server.sockets} == {"127.0.0.1"}
    http = page.tab("closed").http
    assert http.get("/").status_code == 200
    for path in ("/", "/config", "/gradio_api/queue/data"):
        assert http.get(path, headers={"Host": "attacker.example"}).status_code == 400
    for path in ("/openapi.json", "/docs", "/redoc", "/gradio_api/runs"):
        assert http.get(path).status_code == 404, path
    assert http.get("/monitoring").status_code == 403
