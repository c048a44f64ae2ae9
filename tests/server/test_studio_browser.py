"""The page in a real browser: what a person does and sees, from dropped pictures to a clip."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from server_helpers import listening
from studio_helpers import PHONE, FadingWorker, Visitor, drop, drop_picture

from pixeldance.jobs import JobService, JobStore
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings

pytestmark = pytest.mark.slow

STEP_S = 0.02

WHAT_COVERS_THE_BAR = """() => {
    const bar = document.querySelector("#bar");
    for (let y = 0; y < document.documentElement.scrollHeight; y += 8) {
        scrollTo(0, y);
        const box = bar.getBoundingClientRect();
        const top = document.elementFromPoint(box.left + 30, box.top + 20);
        if (!bar.contains(top)) return top.outerHTML;
    }
    return null;
}"""
"""What lies before the bar with the buttons at some height of the page, if anything does."""


class Studio(Visitor):
    """A visitor of a server whose worker takes its time."""

    def __init__(
        self, browser: Browser, service: JobService, http: httpx.Client, worker: FadingWorker
    ) -> None:
        super().__init__(browser, f"{str(http.base_url).rstrip('/')}/")
        self.worker = worker
        self.service = service


@pytest.fixture
def studio(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
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
                yield Studio(browser, service, http, worker)
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


def test_from_two_pictures_to_a_clip_and_on(studio: Studio, pictures: list[Path]) -> None:
    page = studio.open()
    expect(page.locator("#generate")).to_be_in_viewport(ratio=1)  # without scrolling
    drop_picture(page, "first_frame", pictures[0])
    page.set_input_files("#wells [data-file=last_frame]", pictures[1])  # chosen, not dropped
    expect(page.locator("#wells .st-warning")).to_contain_text("different shapes (1.00 and 2.00")
    page.fill("#prompt textarea", "a <b>fox</b>")
    page.fill("#duration input", "1")
    expect(page.locator("#summary")).to_contain_text("13 frames at 12 per second = 1.08 s")
    studio.worker.may_go_on.clear()
    page.keyboard.press("Control+Enter")
    strip = page.locator(".st-strip")
    expect(strip).to_be_visible()
    assert strip.evaluate("element => getComputedStyle(element).animationName") == "st-play"

    page.reload()  # the job goes on, the draft comes back
    expect(page.locator("#live")).to_contain_text("a <b>fox</b>")
    expect(page.locator("#prompt textarea")).to_have_value("a <b>fox</b>")
    expect(page.locator("#wells .st-view")).to_have_count(2)
    expect(studio.open().locator(".st-row.st-running")).to_be_visible()

    studio.worker.may_go_on.set()
    video = page.locator("#viewer video")
    expect(video).to_be_visible()
    page.wait_for_function("document.querySelector('#viewer video').readyState >= 2")
    expect(page.locator("#viewer .st-badges")).to_contain_text("Last frame exact")
    page.get_by_role("button", name="Continue from the last frame").click()
    expect(page.locator("[data-well=first_frame]")).to_contain_text("-last.png")
    expect(page.locator("[data-well=last_frame] .st-view")).to_have_count(0)
    assert studio.foreign == []
    assert studio.errors == []


def test_escape_stops_within_a_step(studio: Studio) -> None:
    page = studio.open()
    studio.worker.may_go_on.clear()
    page.get_by_role("button", name="Run the example").click()
    expect(page.locator("#stop")).to_be_enabled()
    page.keyboard.press("Escape")
    (job,) = studio.service.list().jobs
    assert studio.service.wait(job.id, timeout_s=20).state == "cancelled"
    expect(page.locator(".st-row")).to_contain_text("Stopped")
    expect(page.locator("#stop")).to_be_disabled()


def test_nothing_is_wider_than_a_phone(studio: Studio, pictures: list[Path]) -> None:
    page = studio.open(PHONE)
    drop_picture(page, "first_frame", pictures[1])
    page.fill("#prompt textarea", "fail")
    for _ in range(3):
        page.locator("#generate").click()
    expect(page.locator(".st-row")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert page.evaluate(WHAT_COVERS_THE_BAR) is None
    for name in ("#generate", "#stop"):
        expect(page.locator(name)).to_be_in_viewport()
    expect(page.locator(".st-row.st-failed").first).to_contain_text("too little memory")


def test_a_clip_dropped_on_the_page_brings_its_settings(studio: Studio) -> None:
    page = studio.open()
    page.get_by_role("button", name="Run the example").click()
    expect(page.locator(".st-card")).to_be_visible()
    (job,) = studio.service.list().jobs
    drop(page, "#masthead", studio.service.clip_files(job.id).clip)
    expect(page.locator("#message")).to_contain_text("The settings of the clip are in the form.")
    expect(page.locator("#prompt textarea")).to_have_value(job.request["prompt"])
    expect(page.locator("#seed textarea, #seed input").first).to_have_value(str(job.seed))
    expect(page.locator("#wells .st-view")).to_have_count(2)
