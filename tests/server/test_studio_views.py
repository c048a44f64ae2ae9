"""The panels as HTML: what is shown, and that nothing that is given can become markup."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studio_helpers import FadingWorker

from pixeldance.geometry import Size
from pixeldance.jobs import Job, JobService, Phase, Preview
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.drafts import DraftPicture
from pixeldance.server.studio.fidelity import Fidelity, badge_html, measure
from pixeldance.server.studio.form import FormPictures
from pixeldance.server.studio.live import PreviewStrips, duration_text, live_html
from pixeldance.server.studio.markup import button, note, text
from pixeldance.server.studio.panels import Panels, Seen
from pixeldance.server.studio.queue import queue_html
from pixeldance.server.studio.wells import keyframes_html, shape_warning, wells_html

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def picture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def fading(service: JobService) -> Any:
    worker = FadingWorker(service)
    yield worker
    worker.close()


@pytest.fixture
def panels(service: JobService) -> Panels:
    return Panels(StudioContext(service, ServerSettings()))


def added(service: JobService, prompt: str = "a fox", **fields: Any) -> Job:
    given = {"num_inference_steps": 2, "duration": 0.5, "first_frame": picture(), **fields}
    return service.add({"prompt": prompt, **given})


def draft(name: str = "a.png", width: int = 64, height: int = 36) -> DraftPicture:
    return DraftPicture(sha256="0" * 64, name=name, width=width, height=height)


def url_of(sha256: str) -> str:
    return f"pictures/{sha256}.jpg"


def queue_of(service: JobService, **options: Any) -> str:
    page = service.list()
    return queue_html(page.jobs, total=page.total, url_of=url_of, **{"editing": None, **options})


# ---- escaping


def test_text_cannot_leave_its_place() -> None:
    assert text(HOSTILE) == "&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;"
    made = button(HOSTILE, "act", "stop", title=HOSTILE, confirm=HOSTILE, job=HOSTILE)
    assert made.count("<") == made.count(">") == 2
    assert "<img" not in note(HOSTILE, kind="problem")


def test_what_people_and_files_say_stays_text(
    service: JobService, fading: FadingWorker, panels: Panels
) -> None:
    added(service, HOSTILE)
    fading.run_next(0.0)
    added(service, HOSTILE)
    added(service, HOSTILE)
    fading.claim()
    fading.step(1)
    (clip,) = service.list(state="done").jobs
    html, _ = panels.news(View(compared=((clip.id, 1), (clip.id, 1)), search="fox"), Seen())
    html |= panels.news(View(compared=((clip.id, 1),)), Seen())[0] | {"search": html["gallery"]}
    pictures = FormPictures(
        first_frame=draft(HOSTILE), last_frame=draft(HOSTILE, 36), keyframes=((4, draft(HOSTILE)),)
    )
    html["wells"] = wells_html(pictures, Size(36, 64), fit="cover", is_loop=False, url_of=url_of)
    html["keyframes"] = keyframes_html(pictures, 25, url_of)
    for name, panel in html.items():
        assert "<img src=x" not in panel, name
    for name in ("live", "queue", "viewer", "compare", "gallery", "wells", "keyframes"):
        assert "&lt;img src=x" in html[name] or name == "gallery", name


# ---- the wells


def test_the_wells_show_what_is_used() -> None:
    pictures = FormPictures(first_frame=draft("wide.png", 128, 36))
    html = wells_html(pictures, Size(36, 64), fit="cover", is_loop=False, url_of=url_of)
    assert 'class="st-seen" style="left:25.00%;top:0.00%;width:50.00%;height:100.00%"' in html
    assert 'data-focus="0.5000,0.5000"' in html
    assert "Choose a file" in html  # of the last picture
    whole = wells_html(pictures, Size(36, 64), fit="contain", is_loop=False, url_of=url_of)
    assert "st-seen" not in whole
    assert "left:0.00%;top:25.00%;width:100.00%;height:50.00%" in whole


def test_a_loop_shows_the_first_picture_twice_and_takes_no_other() -> None:
    pictures = FormPictures(first_frame=draft("one.png"), last_frame=draft("two.png"))
    html = wells_html(pictures, Size(36, 64), fit="cover", is_loop=True, url_of=url_of)
    assert "two.png" not in html
    assert html.count("<img") == 2
    assert 'data-well="last_frame"' not in html
    assert re.search(r'data-form="swap"[^>]* disabled>', html)


def test_a_frame_of_a_clip_can_be_picked() -> None:
    frame = replace(draft(), clip_sha256="1" * 64, frame=3, num_frames=25)
    html = wells_html(
        FormPictures(first_frame=frame), Size(36, 64), fit="cover", is_loop=False, url_of=url_of
    )
    assert (
        'type="range" min="0" max="24" value="3" data-form="pick" data-role="first_frame"' in html
    )


@pytest.mark.parametrize(("width", "warns"), [(64, False), (65, False), (66, True)])
def test_different_shapes_are_warned_of(width: int, warns: bool) -> None:
    pictures = FormPictures(first_frame=draft(), last_frame=draft("b.png", width))
    assert bool(shape_warning(pictures, is_loop=False)) is warns
    assert shape_warning(pictures, is_loop=True) == ""


# ---- queue and progress


def test_the_queue_offers_what_can_be_done(service: JobService, fading: FadingWorker) -> None:
    first, second = added(service, "one"), added(service, "two")
    html = queue_of(service, editing=second.id)
    rows = html.split("<li ")[1:]
    assert "<b>Next</b>" in rows[0]
    assert "<b>Waiting, 1 before it</b>" in rows[1]
    assert "st-edited" in rows[1]
    for do in ("up", "down", "next", "pause", "edit", "duplicate", "remove"):
        assert re.search(f'data-(act|form)="{do}"[^>]* data-job="{second.id}"', rows[1]), do
    assert re.search('data-act="up"[^>]* disabled>', rows[0])
    service.pause(first.id)
    assert "<b>Paused</b>" in queue_of(service)


def test_a_failed_job_says_why_and_can_be_put_back(
    service: JobService, fading: FadingWorker
) -> None:
    job = added(service, "fail")
    fading.run_next(0.0)
    html = queue_of(service)
    assert "There is too little memory. Choose a smaller size" in html
    assert f'data-act="requeue" data-key="requeue-{job.id}"' in html
    assert 'data-act="up"' not in html


def test_progress_is_told_in_words(service: JobService, fading: FadingWorker) -> None:
    job = added(service)
    assert "1 in the queue" in live_html(None, None, num_waiting=1, has_clip=True)
    assert "press Generate" in live_html(None, None, num_waiting=0)
    assert live_html(None, None, num_waiting=0, has_clip=True) == ""
    fading.claim()
    fading.step(1)
    html = live_html(service.get(job.id), service.event(job.id), num_waiting=0)
    assert 'max="2" value="1"' in html
    assert "Making the clip · step 1 of 2 · 0.5 s per step · 0.5 s left" in html
    fading.step(2, phase=Phase.DECODING)  # it takes time that nobody knows
    html = live_html(service.get(job.id), service.event(job.id), num_waiting=0)
    assert "Decoding · step 2 of 2" in html
    assert "left" not in html
    fading.step(1)
    service.pause(job.id)
    assert "Paused · step 1 of 2" in live_html(
        service.get(job.id), service.event(job.id), num_waiting=0
    )
    service.stop(job.id)
    assert "Stopping after this step" in live_html(
        service.get(job.id), service.event(job.id), num_waiting=0
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s")],
)
def test_durations_are_told_as_people_do(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


def test_a_preview_moves_without_a_file_and_is_made_once() -> None:
    strips = PreviewStrips()
    frames = np.zeros((9, 18, 32, 3), np.uint8)
    html = strips.html("a", Preview(number=1, frames=frames))
    assert "url(data:image/jpeg;base64," in html
    assert "background-size:900% 100%" in html
    assert "steps(9,jump-none)" in html
    assert strips.html("a", Preview(number=1, frames=frames + 99)) is html
    assert strips.html("a", Preview(number=2, frames=frames + 99)) != html
    assert strips.html("a", None) == ""


# ---- what has changed


def test_only_what_is_new_is_drawn(
    service: JobService, fading: FadingWorker, panels: Panels
) -> None:
    view = View()
    first, seen = panels.news(view, Seen())
    assert set(first) == {"model", "live", "preview", "queue", "viewer", "compare", "gallery"}
    assert panels.news(view, seen) == ({}, seen)
    added(service)
    news, seen = panels.news(view, seen)
    assert set(news) == {"live", "queue"}
    assert seen.is_running is False
    fading.claim()
    fading.step(1)
    news, seen = panels.news(view, seen)
    assert set(news) == {"live", "preview", "queue"}
    assert seen.is_running is True
    fading.finish()
    news, seen = panels.news(view, seen)
    assert {"viewer", "gallery", "preview"} <= set(news)


def test_the_viewer_shows_the_latest_clip_or_the_chosen_one(
    service: JobService, fading: FadingWorker, panels: Panels
) -> None:
    jobs = [added(service, prompt) for prompt in ("one", "two")]
    for _ in jobs:
        fading.run_next(0.0)
    html, _ = panels.news(View(), Seen())
    assert f'src="studio/media/clips/{jobs[1].id}/1/clip.mp4"' in html["viewer"]
    assert html["gallery"].count("st-card") == 2
    html, _ = panels.news(View(clip=(jobs[0].id, 1), search="one"), Seen())
    assert f'src="studio/media/clips/{jobs[0].id}/1/clip.mp4"' in html["viewer"]
    assert html["gallery"].count("st-card") == 1
    html, _ = panels.news(View(clip=("unknown", 1), search="nothing <b>"), Seen())
    assert "Nothing found for “nothing &lt;b&gt;”" in html["gallery"]
    keys = tuple((job.id, 1) for job in jobs)
    html, _ = panels.news(View(compared=keys), Seen())
    assert html["compare"].count("<video") == 2
    html, _ = panels.news(View(num_cards=1), Seen())
    assert 'data-show="more"' in html["gallery"]


@pytest.mark.parametrize(
    ("event", "view"),
    [
        ({"do": "select", "job": "a", "clip": "2"}, View(clip=("a", 2))),
        ({"do": "more"}, View(num_cards=24)),
        ({"do": "compare", "job": "a", "clip": 1}, View(compared=(("a", 1),))),
        ({"do": "select", "job": "a", "clip": "x"}, View()),
        ({"do": "select"}, View()),
        ({}, View()),
    ],
)
def test_events_move_the_view(event: dict[str, Any], view: View) -> None:
    assert View().after(event) == view


def test_the_two_clips_chosen_last_are_compared() -> None:
    view = View()
    for job in "abc":
        view = view.after({"do": "compare", "job": job, "clip": "1"})
    assert view.compared == (("b", 1), ("c", 1))
    assert view.after({"do": "compare", "job": "b", "clip": "1"}).compared == (("c", 1),)
    assert view.after({"do": "compare_none"}).compared == ()


# ---- fidelity


def test_fidelity_is_measured_against_the_pictures() -> None:
    frames = np.full((6, 16, 16, 3), 100, np.uint8)
    first = Image.fromarray(frames[0] + 1)  # 1 grey level: 20 log10(255) dB
    last = Image.fromarray(frames[0])
    found = measure(frames, last, {"first_frame": first, "last_frame": last})
    assert found.first_db == pytest.approx(48.13, abs=0.01)
    assert found.last_db == 100
    assert found.end_jump == 1
    jump = measure(frames, Image.fromarray(frames[0] + 50), {})
    assert (jump.first_db, jump.last_db) == (None, None)
    assert jump.end_jump == 201  # (50 + 1/4) / (0 + 1/4)


def test_badges_say_how_good_it_is() -> None:
    html = badge_html(Fidelity(35.2, 20.0, 4.0))
    assert 'st-good" title' in html
    assert "First frame 35 dB" in html
    assert re.search('st-poor"[^>]*>Last frame 20 dB', html)
    assert re.search('st-poor"[^>]*>End jump × 4.0', html)  # noqa: RUF001
    assert "Last frame exact" in badge_html(Fidelity(None, 100.0, 1.0))
    assert badge_html(Fidelity(None, None, 9.0)) == badge_html(None) == ""


def test_fidelity_arrives_later_as_news(
    service: JobService, fading: FadingWorker, tmp_path: Path
) -> None:
    added(service, last_frame=picture(1))
    fading.run_next(0.0)
    panels = Panels(StudioContext(service, ServerSettings()))
    _, seen = panels.news(View(), Seen())
    panels.close()  # waits for what is being measured
    news, _ = panels.news(View(), seen)
    assert "Last frame exact" in news["viewer"]
