"""The page as people get it: ``python app.py`` with the embedded model, in a real browser."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from studio_helpers import DESKTOP, PHONE, Visitor, drop, drop_picture

from pixeldance.jobs import Job, JobService, JobState, JobStore
from pixeldance.video import read_clip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "pixeldance" / "examples"
WIDTH, HEIGHT, NUM_FRAMES = 128, 80, 13
PROMPT = "a <b>star</b> moves to the right"
NUM_PREVIEWS = 30
TIMEOUT_S = 300.0  # only a hang reaches it

WATCH_PREVIEWS = """
window.previews = new Set();
new MutationObserver(() => {
    const strip = document.querySelector(".st-strip");
    if (strip) window.previews.add(strip.style.backgroundImage);
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
"""Collects the previews that a tab shows; they differ if their pixels do."""


class Server:
    """The program in a process of its own, on a data folder that outlives it.

    Args:
        folder: Everything that it writes goes below.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._system_tmp = folder / "tmp"
        self._system_tmp.mkdir()
        self._log = folder / "server.log"
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it, at the port that it had before; returns its address."""
        options = ["--port", str(self._port), "--data-dir", str(self.data), "--device", "cpu"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "app.py", *options],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self._system_tmp)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), self.log
        self._port = int(address.rstrip("/").rpartition(":")[2])
        return address

    def end(self, number: int) -> None:
        """Send it a signal and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.communicate(timeout=60)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def temporary_files(self) -> dict[Path, int]:
        """All that lies where it and its worker put temporary files, with sizes."""
        places = (self.data / "tmp", self._system_tmp)
        return {path: path.stat().st_size for place in places for path in place.rglob("*")}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.end(signal.SIGTERM)
    assert "Traceback" not in server.log


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server.start(), script=WATCH_PREVIEWS)
    yield visitor
    assert visitor.foreign == []
    assert visitor.errors == []


@pytest.fixture
def service(visitor: Visitor, server: Server) -> Iterator[JobService]:
    """The server's jobs, looked at from outside."""
    with JobService(JobStore(server.data)) as service:
        yield service


def fill_form(
    page: Page,
    *,
    quality: str | None = None,
    num_steps: int | None = None,
    num_frames: int = NUM_FRAMES,
) -> None:
    """Ask for a small clip between the two pictures of the example."""
    drop_picture(page, "first_frame", EXAMPLES / "first.png")
    drop_picture(page, "last_frame", EXAMPLES / "last.png")
    page.fill("#prompt textarea", PROMPT)
    page.fill("#duration input", f"{num_frames / 12:.2f}")
    if quality is not None:
        page.locator("#preset").get_by_text(quality).click()
    page.get_by_role("button", name="Advanced").click()
    page.fill("#width input", str(WIDTH))
    page.fill("#height input", str(HEIGHT))
    if num_steps is not None:
        page.locator("#steps input[type=number]").fill(str(num_steps))
        page.keyboard.press("Tab")
        expect(page.locator("#summary")).to_contain_text(f"{num_steps} steps")
    expect(page.locator("#summary")).to_contain_text(f"{num_frames} frames at 12 per second")
    expect(page.locator("#summary")).to_contain_text("128 × 80 pixels")  # noqa: RUF001


def wait_for_previews(page: Page, number: int) -> None:
    """Wait until a tab has shown so many different previews since it was loaded."""
    page.wait_for_function("number => window.previews.size >= number", arg=number)


def wait_for_step(service: JobService, job_id: str, step: int) -> None:
    for event in service.events(job_id, timeout_s=TIMEOUT_S):
        if event.step >= step:
            return
    raise AssertionError(f"the job never came to step {step}")


def steps_while_stopping(service: JobService, job_id: str) -> list[int]:
    """Steps of a job at each look between its stop being asked and its end."""
    steps = []
    deadline = time.monotonic() + TIMEOUT_S
    while not (job := service.get(job_id)).is_final:
        assert time.monotonic() < deadline, "it went on"
        if job.is_stopping:
            steps.append(service.event(job_id).step)
        time.sleep(0.005)
    return steps


def only_job(service: JobService) -> Job:
    (job,) = service.list().jobs
    return job


def test_a_clip_between_two_dropped_pictures_plays_and_brings_its_settings_back(
    visitor: Visitor, service: JobService, tmp_path: Path
) -> None:
    page = visitor.open()
    fill_form(page, quality="Draft")
    page.keyboard.press("Control+Enter")
    video = page.locator("#viewer video")
    expect(video).to_be_visible()
    page.wait_for_function("document.querySelector('#viewer video').readyState >= 2")
    assert video.evaluate("video => video.duration") == pytest.approx(NUM_FRAMES / 12, abs=0.01)
    page.wait_for_function("document.querySelector('#viewer video').currentTime > 0.2")  # it plays
    expect(page.locator("#viewer .st-badges")).to_contain_text("First frame")

    with page.expect_download() as download:
        page.get_by_role("link", name="MP4").click()
    clip = tmp_path / "made.mp4"
    download.value.save_as(clip)
    assert read_clip(clip).frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)

    phone = visitor.open(PHONE)  # another browser: its form is empty
    expect(phone.locator("#viewer video")).to_be_visible()
    expect(phone.locator("#prompt textarea")).to_have_value("")
    drop(phone, "#masthead", clip)
    expect(phone.locator("#message")).to_contain_text("The settings of the clip are in the form.")
    expect(phone.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(phone.locator("#seed textarea, #seed input").first).to_have_value(
        str(only_job(service).seed)
    )
    expect(phone.locator("#wells .st-view")).to_have_count(2)
    expect(phone.locator("#summary")).to_contain_text("13 frames at 12 per second = 1.08 s")
    expect(phone.locator("#summary")).to_contain_text("128 × 80 pixels · 4 steps")  # noqa: RUF001
    phone.screenshot(path=tmp_path / "phone.png", full_page=True)
    with Image.open(tmp_path / "phone.png") as screenshot:
        assert screenshot.width == PHONE


def test_a_long_run_is_watched_found_again_shared_and_stopped(
    visitor: Visitor, service: JobService, server: Server
) -> None:
    page = visitor.open()
    fill_form(page, num_steps=200, num_frames=129)  # long enough on a fast machine, too
    page.locator("#generate").click()
    wait_for_previews(page, 2)  # it moves
    job = only_job(service)

    page.reload()
    running = f"[data-running='{job.id}']"
    expect(page.locator(running)).to_contain_text(PROMPT)
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#wells .st-view")).to_have_count(2)

    other = visitor.open_tab(page.context)
    expect(other.locator(running)).to_be_visible()
    other.locator("#generate").click()
    for tab in (page, other):
        expect(tab.locator(".st-row")).to_have_count(2)
    rows = [tab.locator(".st-row").all_inner_texts() for tab in (page, other)]
    assert rows[0] == rows[1]
    page.get_by_role("button", name="Remove from the queue").click()
    expect(other.locator(".st-row")).to_have_count(1)
    other.close()

    before = server.temporary_files()
    page.evaluate("window.previews.clear()")
    wait_for_previews(page, NUM_PREVIEWS)
    assert server.temporary_files() == before

    page.keyboard.press("Escape")
    steps = steps_while_stopping(service, job.id)
    assert service.get(job.id).state is JobState.CANCELLED
    assert max(steps, default=0) - min(steps, default=0) <= 1
    expect(page.locator(".st-row")).to_contain_text("Stopped")
    expect(page.locator("#stop")).to_be_disabled()
    assert service.counts()["running"] == 0


def test_a_server_that_is_killed_finishes_its_job_when_it_is_back(
    visitor: Visitor, service: JobService, server: Server
) -> None:
    page = visitor.open(DESKTOP)
    fill_form(page, num_steps=24)
    page.locator("#generate").click()
    expect(page.locator(".st-row.st-running")).to_be_visible()
    job = only_job(service)
    wait_for_step(service, job.id, 2)
    server.end(signal.SIGKILL)
    assert service.get(job.id).state in {JobState.RUNNING, JobState.QUEUED}

    server.start()
    page.reload()
    expect(page.locator("#viewer video")).to_be_visible()
    page.wait_for_function("document.querySelector('#viewer video').readyState >= 2")
    expect(page.locator(".st-card")).to_have_count(1)
    expect(page.locator(".st-row")).to_have_count(0)
    done = only_job(service)
    assert (done.id, done.state, done.num_attempts) == (job.id, JobState.DONE, 2)
    assert [clip.num_steps_done for clip in done.clips] == [24]
    clip = read_clip(service.clip_files(job.id).clip)
    assert clip.frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
