"""What tests of the page share: a browser at it, and a worker that makes clips without a model."""

import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect
from server_helpers import HandWorker

from pixeldance.geometry import Size, fit_picture, resolve_size
from pixeldance.jobs import JobClip, JobService, JobState, Phase
from pixeldance.jobs.live import BoardReader
from pixeldance.jobs.pictures import save_thumbnail
from pixeldance.pictures import load_picture
from pixeldance.request import GenerationRequest
from pixeldance.video import build_recipe, frames_sha256, write_clip

DESKTOP, PHONE = 1280, 390
"""Widths of a window in pixels."""

UI_TIMEOUT_MS = 120_000
"""Only a hang reaches it."""

expect.set_options(timeout=UI_TIMEOUT_MS)

_AS_DROPPED = """([name, content]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(content)], name));
    return transfer;
}"""


class Visitor:
    """Somebody with a browser at the page, and what the browser asked of other hosts.

    Args:
        browser: The browser.
        address: The page's, with a slash at its end.
        script: JavaScript that runs in every tab before the page's own.
    """

    def __init__(self, browser: Browser, address: str, *, script: str = "") -> None:
        self._browser = browser
        self._address = address
        self._script = script
        self.foreign: list[str] = []
        self.errors: list[str] = []

    def open(self, width: int = DESKTOP) -> Page:
        """The page in a window of a browser that has never seen it."""
        context = self._browser.new_context(viewport={"width": width, "height": 844})
        context.set_default_timeout(UI_TIMEOUT_MS)
        context.add_init_script(self._script)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("request", self._note)
        return self.open_tab(context)

    def open_tab(self, context: BrowserContext) -> Page:
        """The page in one more tab of a window."""
        page = context.new_page()
        page.goto(self._address)
        expect(page.locator("#summary")).to_contain_text("frames at")
        return page

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self._address, "data:", "blob:")):
            self.foreign.append(request.url)


def drop(page: Page, selector: str, path: Path) -> None:
    """Drop a file on an element of the page."""
    content = [path.name, list(path.read_bytes())]
    page.dispatch_event(
        selector, "drop", {"dataTransfer": page.evaluate_handle(_AS_DROPPED, content)}
    )


def drop_picture(page: Page, role: str, path: Path) -> None:
    """Drop a picture on a well; returns when it is there."""
    drop(page, f"[data-well={role}]", path)
    expect(page.locator(f"[data-well={role}] .st-view")).to_be_visible()


class FadingWorker(HandWorker):
    """Does what a worker does, one step per call, and shows and saves a crossfade."""

    pixel_budget = 48 * 48

    def __init__(self, service: JobService) -> None:
        super().__init__(service)
        self.may_go_on = threading.Event()
        """While it is not set, running jobs stay at their first step."""
        self.may_go_on.set()

    def step(self, step: int, *, phase: Phase = Phase.DENOISING) -> bool:
        if not super().step(step, phase=phase):
            return False
        job = self.job
        assert job is not None
        note = BoardReader(self._store.folder.live).read()
        assert note is not None
        _, frames, _ = self._made()
        self._number += 1
        shown = note._replace(
            number=self._number, preview_number=self._number, preview=frames[:, ::2, ::2]
        )
        self._board.write(shown)
        return True

    def run_next(self, step_s: float) -> None:
        """Make the next clip, if there is one; a job whose prompt is "fail" fails."""
        self.job = self._store.running.claim()
        if self.job is None:
            return
        for step in range(self.job.num_steps):
            if not self.step(step):
                return
            time.sleep(step_s)
            while self._is_held():
                time.sleep(0.05)
            if self._store.running.control(self.job.id).command == "finish":
                break
        if self.job.request.get("prompt") == "fail":
            words = "There is too little memory. Choose a smaller size or fewer frames."
            self._store.running.end(self.job.id, JobState.FAILED, error=words)
            self._board.clear()
        else:
            self.finish()

    def _is_held(self) -> bool:
        assert self.job is not None
        control = self._store.running.control(self.job.id)
        return control.command is None and (control.is_paused or not self.may_go_on.is_set())

    def finish(self) -> None:
        job, store = self.job, self._store
        assert job is not None
        request, frames, pictures = self._made()
        files = store.folder.clip_files(job.id, 1)
        files.clip.parent.mkdir(exist_ok=True)
        recipe = build_recipe(
            request.to_recipe(pictures),
            seed=job.seed,
            frames=frames,
            fps=request.fps,
            model={"name": request.model, "sha256": "0" * 64},
            versions={},
            timings={},
            pictures=pictures,
        )
        write_clip(files.clip, frames, fps=request.fps, recipe=recipe)
        Image.fromarray(frames[-1]).save(files.last_frame)
        save_thumbnail(Image.fromarray(frames[0]), files.thumbnail)
        clip = JobClip(
            number=1,
            seed=job.seed,
            num_frames=len(frames),
            height=frames.shape[1],
            width=frames.shape[2],
            fps=request.fps,
            num_steps_done=job.num_steps,
            num_bytes=files.num_bytes,
            sha256=frames_sha256(frames),
        )
        store.running.add_clip(job, clip, is_last=True)
        self._board.clear()

    def _made(
        self,
    ) -> tuple[GenerationRequest, npt.NDArray[np.uint8], dict[str, Image.Image]]:
        job = self.job
        assert job is not None
        request = self._store.request(job.id)
        given = {role: load_picture(source) for role, source in request.pictures.items()}
        first = given.get("first_frame")
        size = resolve_size(
            request.aspect_ratio,
            pixel_budget=self.pixel_budget,
            multiple=16,
            first_frame=None if first is None else Size(first.height, first.width),
        )
        fitted = {
            role: fit_picture(one, size, fit=request.fit, focus=request.focus)
            for role, one in given.items()
        }
        grey = Image.new("RGB", (size.width, size.height), "grey")
        ends = [np.asarray(fitted.get(r, grey), float) for r in ("first_frame", "last_frame")]
        parts = np.linspace(0, 1, request.resolved_num_frames)[:, None, None, None]
        return request, ((1 - parts) * ends[0] + parts * ends[1]).round().astype(np.uint8), fitted
