"""The page in a real browser: what a person does and sees, from dropped pictures to a clip."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from server_helpers import listening
from studio_helpers import FadingWorker

from pixeldance.jobs import JobService, JobStore
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings

pytestmark = pytest.mark.slow

STEP_S = 0.02
expect.set_options(timeout=60_000)


class Studio:
    """A server with a worker that takes its time, and what the browser asked of it."""

    def __init__(
        self, folder: Path, service: JobService, http: httpx.Client, worker: FadingWorker
    ) -> None:
        self.worker = worker
        self.folder = folder
        self.service = service
        self.address = str(http.base_url)
        self.foreign: list[str] = []
        self.errors: list[str] = []

    def open(self, browser: Browser, width: int = 1280) -> Page:
        page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((self.address, "data:", "blob:"))
                else self.foreign.append(request.url)
            ),
        )
        page.goto(self.address)
        expect(page.locator("#summary")).to_contain_text("frames at")
        return page

    def files(self) -> set[Path]:
        return set((self.folder / "gradio").rglob("*"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    (tmp_path / "gradio").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    is_over = threading.Event()
    with JobService(JobStore(tmp_path / "data")) as service:
        worker = FadingWorker(service)

        def work() -> None:
            while not is_over.wait(0.05):
                worker.run_next(STEP_S)

        with listening(create_app(service, ServerSettings())) as http:
            thread = threading.Thread(target=work)
            thread.start()
            try:
                yield Studio(tmp_path, service, http, worker)
            finally:
                is_over.set()
                worker.may_go_on.set()
                for job in service.list(state="running").jobs:
                    service.stop(job.id)
                thread.join(60)
                worker.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for seed, size in enumerate([(96, 96), (96, 48)]):
        blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(tmp_path / f"picture-{seed}.png")
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def give(page: Page, role: str, path: Path) -> None:
    page.set_input_files(f"#wells [data-file={role}]", path)
    expect(page.locator(f"[data-well={role}] .st-view")).to_be_visible()


def test_from_two_pictures_to_a_clip_and_on(
    browser: Browser, studio: Studio, pictures: list[Path]
) -> None:
    page = studio.open(browser)
    give(page, "first_frame", pictures[0])
    give(page, "last_frame", pictures[1])
    expect(page.locator("#wells .st-warning")).to_contain_text("different shapes (1.00 and 2.00")
    page.fill("#prompt textarea", "a <b>fox</b>")
    page.fill("#duration input", "1")
    expect(page.locator("#summary")).to_contain_text("13 frames at 12 per second = 1.08 s")
    before = studio.files()
    studio.worker.may_go_on.clear()
    page.keyboard.press("Control+Enter")
    strip = page.locator(".st-strip")
    expect(strip).to_be_visible()
    assert strip.evaluate("element => getComputedStyle(element).animationName") == "st-play"

    page.reload()  # the job goes on, the draft comes back
    expect(page.locator("#live")).to_contain_text("a <b>fox</b>")
    expect(page.locator("#prompt textarea")).to_have_value("a <b>fox</b>")
    expect(page.locator("#wells .st-view")).to_have_count(2)
    expect(studio.open(browser).locator(".st-row.st-running")).to_be_visible()

    studio.worker.may_go_on.set()
    video = page.locator("#viewer video")
    expect(video).to_be_visible()
    page.wait_for_function("document.querySelector('#viewer video').readyState >= 2")
    assert studio.files() == before
    expect(page.locator("#viewer .st-badges")).to_contain_text("Last frame exact")
    page.get_by_role("button", name="Continue from the last frame").click()
    expect(page.locator("[data-well=first_frame]")).to_contain_text("-last.png")
    expect(page.locator("[data-well=last_frame] .st-view")).to_have_count(0)
    assert studio.foreign == []
    assert studio.errors == []


def test_escape_stops_within_a_step(browser: Browser, studio: Studio) -> None:
    page = studio.open(browser)
    studio.worker.may_go_on.clear()
    page.get_by_role("button", name="Run the example").click()
    expect(page.locator("#stop")).to_be_enabled()
    page.keyboard.press("Escape")
    (job,) = studio.service.list().jobs
    assert studio.service.wait(job.id, timeout_s=20).state == "cancelled"
    expect(page.locator(".st-row")).to_contain_text("Stopped")
    expect(page.locator("#stop")).to_be_disabled()


def test_nothing_is_wider_than_a_phone(
    browser: Browser, studio: Studio, pictures: list[Path]
) -> None:
    page = studio.open(browser, width=390)
    give(page, "first_frame", pictures[1])
    page.fill("#prompt textarea", "fail")
    for _ in range(3):
        page.locator("#generate").click()
    expect(page.locator(".st-row")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for name in ("#generate", "#stop"):
        expect(page.locator(name)).to_be_in_viewport()
    expect(page.locator(".st-row.st-failed").first).to_contain_text("too little memory")


def test_a_clip_dropped_on_the_page_brings_its_settings(browser: Browser, studio: Studio) -> None:
    page = studio.open(browser)
    page.get_by_role("button", name="Run the example").click()
    expect(page.locator(".st-card")).to_be_visible()
    (job,) = studio.service.list().jobs
    content = list(studio.service.clip_files(job.id).clip.read_bytes())
    dropped = page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "made.mp4"));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#masthead", "drop", {"dataTransfer": dropped})
    expect(page.locator("#message")).to_contain_text("The settings of the clip are in the form.")
    expect(page.locator("#prompt textarea")).to_have_value(job.request["prompt"])
    expect(page.locator("#seed textarea, #seed input").first).to_have_value(str(job.seed))
    expect(page.locator("#wells .st-view")).to_have_count(2)
