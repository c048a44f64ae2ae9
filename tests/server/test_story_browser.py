"""The storyboard in a real browser: a film is made, and one shot of it once more."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Dialog, Locator, Page, expect
from server_helpers import listening
from studio_helpers import PHONE, Visitor, drop

sys.path.append(str(Path(__file__).parents[1] / "jobs"))
from film_model import FilmModel

from pixeldance.jobs import JobService, JobStore, Worker
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings
from pixeldance.stories import read_story

pytestmark = pytest.mark.slow


class Theatre(Visitor):
    """A visitor of the storyboard of a server whose worker has a model that takes no time."""

    def __init__(
        self, browser: Browser, service: JobService, http: httpx.Client, model: FilmModel
    ) -> None:
        super().__init__(browser, f"{str(http.base_url).rstrip('/')}/")
        self.service = service
        self.model = model

    def made(self) -> list[str]:
        """Prompts of the clips that were made since the last call."""
        prompts = [prompt for prompt, _ in self.model.asked]
        self.model.asked.clear()
        return prompts


@pytest.fixture
def theatre(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    (tmp_path / "gradio").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    model = FilmModel(seconds_per_step=0.01)
    with (
        JobService(JobStore(tmp_path / "data")) as service,
        JobStore(tmp_path / "data") as store,
    ):
        worker = Worker(store, load_model=lambda name: model)  # type: ignore[arg-type, return-value]

        def work() -> None:
            with worker:
                worker.run()

        with listening(create_app(service, ServerSettings())) as http:
            thread = threading.Thread(target=work)
            thread.start()
            try:
                yield Theatre(browser, service, http, model)
            finally:
                for context in browser.contexts:  # or they ask a server that is gone
                    context.close()
                worker.leave()
                model.may_go_on.set()
                thread.join(60)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "sunset.png"
    Image.new("RGB", (48, 32), "orange").save(path)
    return path


def to_story(page: Page) -> Page:
    page.get_by_role("tab", name="Story").click()
    expect(page.locator("#make-film")).to_be_visible()
    return page


def make_small(page: Page) -> None:
    page.get_by_text("Film settings").click()
    for label, value in (("Width", "48"), ("Height", "32"), ("Steps", "2")):
        page.locator("#story").get_by_label(label, exact=True).fill(value)
    page.get_by_text("Film settings").click()


def shot(page: Page, number: int) -> Locator:
    return page.locator(".sy-shot").nth(number - 1)


def write_shots(page: Page, *prompts: str) -> None:
    for number, prompt in enumerate(prompts, 1):
        if number > 1:
            page.get_by_role("button", name="Add a shot").click()
        shot(page, number).locator("textarea").fill(prompt)
        shot(page, number).get_by_label("Seconds").fill("1")  # one clip each


def expect_prompts(page: Page, *prompts: str) -> None:
    expect(page.locator(".sy-shot")).to_have_count(len(prompts))
    for number, prompt in enumerate(prompts, 1):
        expect(shot(page, number).locator("textarea")).to_have_value(prompt)


def expect_states(page: Page, *states: str) -> None:
    for number, state in enumerate(states, 1):
        expect(shot(page, number).locator("[data-state]")).to_contain_text(state)


def test_a_film_and_one_shot_of_it_again(theatre: Theatre, picture: Path) -> None:
    page = to_story(theatre.open())
    make_small(page)
    write_shots(page, "a fox", "a bear", "it jumps")
    shot(page, 3).get_by_role("button", name="Move it left").click()
    expect_prompts(page, "a fox", "it jumps", "a bear")
    drop(page, ".sy-shot:nth-child(3) [data-well=last_frame]", picture)
    expect(shot(page, 3).locator(".sy-strength")).to_be_visible()
    shot(page, 3).locator("select").select_option("cut")
    expect(page.locator("[data-summary]")).to_contain_text("48 × 32 pixels · 3 of 3 clips")  # noqa: RUF001
    theatre.model.may_go_on.clear()
    page.keyboard.press("Control+Enter")
    expect_states(page, "Being made", "Waiting", "Waiting")

    page.reload()  # the film goes on, the story comes back
    to_story(page)
    expect_prompts(page, "a fox", "it jumps", "a bear")
    expect_states(page, "Being made", "Waiting", "Waiting")
    expect(shot(page, 3).locator("select")).to_have_value("cut")
    expect(shot(page, 3).get_by_alt_text("sunset.png")).to_be_visible()
    context = page.context
    page.close()  # nobody looks
    theatre.model.may_go_on.set()
    page = to_story(theatre.open_tab(context))
    expect_states(page, "Made", "Made", "Made")
    page.wait_for_function("document.querySelector('.sy-film video').readyState >= 1")
    expect(page.locator(".sy-film").get_by_role("link", name="MP4")).to_be_visible()
    assert theatre.made() == ["a fox", "it jumps", "a bear"]
    assert len(theatre.service.list().jobs) == 1

    film = page.locator(".sy-film video").get_attribute("src")
    shot(page, 1).get_by_role("button", name="Redo").click()
    expect(page.locator(".sy-film video")).not_to_have_attribute("src", film or "")
    assert theatre.made() == ["a fox", "it jumps"]  # what goes on from it, but not the cut
    expect(shot(page, 1).locator("[data-facts]")).to_contain_text("seed")
    shot(page, 3).get_by_role("button", name="Redo").click()
    expect(page.locator("#make-film")).to_be_disabled()
    expect(page.locator("[data-stale]")).to_be_hidden()
    expect_states(page, "Made", "Made", "Made")
    assert theatre.made() == ["a bear"]
    assert theatre.foreign == []
    assert theatre.errors == []


def test_stop_keeps_what_is_made(theatre: Theatre) -> None:
    page = to_story(theatre.open())
    write_shots(page, "a fox")
    theatre.model.may_go_on.clear()
    page.locator("#make-film").click()
    expect_states(page, "Being made")
    page.locator("#story").get_by_role("button", name="Stop").click()
    expect_states(page, "To make")
    expect(page.locator("#make-film")).to_be_enabled()


def test_input_is_never_lost(theatre: Theatre, picture: Path, tmp_path: Path) -> None:
    page = to_story(theatre.open())
    write_shots(page, "a fox", "it jumps")
    duration = shot(page, 2).get_by_label("Seconds")
    duration.fill("long")
    expect(shot(page, 2).locator("[data-problem]")).to_contain_text("got 'long'")
    expect(shot(page, 1).locator("[data-problem]")).to_be_hidden()
    expect(page.locator("#make-film")).to_be_disabled()
    expect(duration).to_have_value("long")
    page.reload()
    to_story(page)
    expect(duration).to_have_value("long")
    duration.fill("1.5")
    expect(shot(page, 2).locator("[data-problem]")).to_be_hidden()

    (tmp_path / "broken.png").write_bytes(b"no picture")
    drop(page, ".sy-shot:nth-child(2) [data-well=last_frame]", tmp_path / "broken.png")
    expect(page.locator("[data-notice]")).to_contain_text("broken.png")
    drop(page, ".sy-shot:nth-child(1) [data-well=first_frame]", picture)
    expect(page.get_by_alt_text("sunset.png")).to_be_visible()
    shot(page, 1).get_by_role("button", name="Duplicate it").click()
    expect_prompts(page, "a fox", "a fox", "it jumps")

    with page.expect_download() as download:
        page.get_by_role("button", name="Save the story").click()
    saved = tmp_path / "saved.yaml"
    download.value.save_as(saved)
    assert [one.prompt for one in read_story(saved).shots] == ["a fox", "a fox", "it jumps"]
    asked: list[str] = []

    def agree(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", agree)
    shot(page, 2).get_by_role("button", name="Remove it").click()
    expect_prompts(page, "a fox", "it jumps")
    page.get_by_role("button", name="Begin anew").click()
    expect_prompts(page, "")
    page.set_input_files("[data-import]", saved)
    expect_prompts(page, "a fox", "a fox", "it jumps")
    expect_states(page, "To make", "To make", "To make")
    assert len(asked) == 2
    assert theatre.errors == []


def test_the_storyboard_fits_a_phone(theatre: Theatre) -> None:
    page = to_story(theatre.open(PHONE))
    make_small(page)
    write_shots(page, "a fox", "it jumps")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    expect(page.locator("#make-film")).to_be_in_viewport(ratio=1)  # wherever one is
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator("#make-film")).to_be_in_viewport(ratio=1)
    page.locator("#make-film").click()
    expect_states(page, "Made", "Made")
