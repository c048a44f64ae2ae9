"""Events of the page: what its buttons do to the form and to jobs, whatever a browser sends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studio_helpers import FadingWorker

from pixeldance.errors import DataError, InputError
from pixeldance.jobs import Job, JobService, JobState
from pixeldance.pictures import picture_sha256
from pixeldance.request import GenerationRequest
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.actions import act, changes_between, running_job
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.form import FormPictures
from pixeldance.server.studio.form_events import FormChange, FormEvents
from pixeldance.server.studio.uploads import uploaded_file


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gradio" / "abc"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return folder


@pytest.fixture
def context(service: JobService, uploads: Path) -> StudioContext:
    return StudioContext(service, ServerSettings())


@pytest.fixture
def fading(service: JobService) -> Iterator[FadingWorker]:
    worker = FadingWorker(service)
    yield worker
    worker.close()


def picture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def upload(folder: Path, name: str, seed: int = 0) -> dict[str, Any]:
    picture(seed).save(folder / name, format="PNG")
    return {"path": str(folder / name), "name": name}


def handle(
    context: StudioContext, do: str, pictures: FormPictures | None = None, **event: Any
) -> FormChange:
    return FormEvents(context).handle(
        {"do": do, **event}, pictures or FormPictures(), View(), num_frames=25
    )


def made(service: JobService, fading: FadingWorker, **fields: Any) -> Job:
    job = service.add(
        {
            "prompt": "a fox",
            "num_inference_steps": 2,
            "duration": 0.5,
            "first_frame": picture(1),
            "last_frame": picture(2),
            "seed": 7,
            **fields,
        }
    )
    fading.run_next(0.0)
    return service.get(job.id)


# ---- pictures


def test_pictures_are_given_swapped_and_taken_out(context: StudioContext, uploads: Path) -> None:
    one = handle(context, "file", role="first_frame", **upload(uploads, "one.png")).pictures
    two = handle(context, "file", one, role="last_frame", **upload(uploads, "two.png", 1)).pictures
    assert two.first_frame is not None
    assert two.last_frame is not None
    assert (two.first_frame.name, two.last_frame.name) == ("one.png", "two.png")
    swapped = handle(context, "swap", two).pictures
    assert (swapped.first_frame, swapped.last_frame) == (two.last_frame, two.first_frame)
    moved = handle(context, "focus", two, x="0.25", y=2).pictures
    assert moved.focus == (0.25, 1.0)
    cleared = handle(context, "clear", moved, role="first_frame").pictures
    assert (cleared.first_frame, cleared.focus) == (None, (0.5, 0.5))
    assert cleared.last_frame == two.last_frame


def test_key_frames_are_added_moved_and_removed(context: StudioContext, uploads: Path) -> None:
    one = handle(context, "file", role="keyframe", **upload(uploads, "one.png")).pictures
    assert [(frame, kept.name) for frame, kept in one.keyframes] == [(12, "one.png")]
    moved = handle(context, "keyframe_move", one, index="0", value="-1").pictures
    assert moved.keyframes[0][0] == -1
    assert handle(context, "keyframe_remove", moved, index="0").pictures.keyframes == ()


@pytest.mark.parametrize(
    ("do", "event"),
    [
        ("nonsense", {}),
        ("clear", {"role": "x"}),
        ("pick", {"role": "first_frame", "value": "1"}),
        ("focus", {"x": "nan", "y": 0}),
        ("focus", {"x": None}),
        ("keyframe_move", {"index": 3, "value": 1}),
        ("keyframe_move", {"index": float("inf"), "value": 1}),
        ("use_frame", {"role": "first_frame", "job": ["x"], "clip": 1, "frame": 0}),
        ("settings", {"job": "unknown"}),
        ("edit", {}),
        ("file", {"role": "first_frame", "path": "/etc/passwd"}),
        ("drop", {"path": {"a": 1}}),
    ],
)
def test_what_makes_no_sense_is_refused(
    context: StudioContext, do: str, event: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        handle(context, do, **event)


# ---- uploads


def test_only_uploads_are_read(uploads: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    picture().save(secret)
    (uploads / "link.png").symlink_to(secret)
    hostile = [secret, uploads / ".." / ".." / "secret.png", uploads / "link.png", uploads, "\0", 5]
    for path in [*map(str, hostile[:4]), *hostile[4:], str(uploads / "gone.png")]:
        with pytest.raises(InputError, match="was not uploaded"):
            uploaded_file(path)
    picture().save(uploads / "a.png")
    assert uploaded_file(str(uploads / "a.png"), "../b.png").name == "../b.png"


def test_a_bad_picture_is_said_without_folders(context: StudioContext, uploads: Path) -> None:
    (uploads / "note.png").write_bytes(b"not a picture")
    with pytest.raises(InputError) as error:
        handle(context, "file", role="first_frame", path=str(uploads / "note.png"))
    assert context.plain(error.value).startswith("Picture 'note.png' is not a picture")


# ---- settings that come back


def test_settings_of_a_clip_come_back(
    context: StudioContext, service: JobService, fading: FadingWorker
) -> None:
    job = made(service, fading, last_frame_strength=0.5, aspect_ratio="1:1", focus=(0.1, 0.2))
    change = handle(context, "settings", job=job.id, clip="1")
    assert change.values["prompt"] == "a fox"
    assert (change.values["seed"], change.values["is_seed_locked"]) == ("7", True)
    assert (change.values["last_frame_strength"], change.values["aspect_ratio"]) == (0.5, "1:1")
    assert change.pictures.focus == (0.1, 0.2)
    assert change.pictures.first_frame is not None
    assert change.pictures.first_frame.sha256 == picture_sha256(picture(1))
    assert change.view.editing is None


@pytest.mark.parametrize("ending", [".mp4", ".json"])
def test_a_clip_or_its_settings_dropped_anywhere_come_back(
    context: StudioContext, service: JobService, fading: FadingWorker, uploads: Path, ending: str
) -> None:
    files = service.clip_files(made(service, fading).id)
    source = files.clip if ending == ".mp4" else files.recipe
    (uploads / f"x{ending}").write_bytes(source.read_bytes())
    change = handle(context, "drop", path=str(uploads / f"x{ending}"))
    assert change.values["prompt"] == "a fox"
    assert (change.values["seed"], change.values["is_seed_locked"]) == ("7", True)
    assert change.message == "The settings of the clip are in the form."
    assert change.pictures.first_frame is not None
    assert change.pictures.last_frame is not None
    width, height = change.pictures.first_frame.width, change.pictures.first_frame.height
    assert (width, height) == (service.list().jobs[0].clips[0].width, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_frame": "/etc/passwd"},
        {"model": "/tmp/models/evil"},
        {"num_inference_steps": 10**9},
        {"prompt": 5},
        {"unknown": 1},
        {"keyframes": {"4": {"sha256": "x"}}},
        {"schema_version": 99},
    ],
)
def test_hostile_settings_are_refused(
    context: StudioContext,
    service: JobService,
    fading: FadingWorker,
    uploads: Path,
    changes: dict[str, Any],
) -> None:
    recipe = service.recipe(made(service, fading).id)
    recipe["request"] |= changes
    (uploads / "x.json").write_text(json.dumps(recipe))
    with pytest.raises((InputError, DataError)):
        handle(context, "drop", path=str(uploads / "x.json"))


def test_a_model_that_is_not_here_is_replaced_and_said(
    context: StudioContext, service: JobService, fading: FadingWorker, uploads: Path
) -> None:
    recipe = service.recipe(made(service, fading).id)
    recipe["request"]["model"] = "enormous"
    (uploads / "x.json").write_text(json.dumps(recipe))
    change = handle(context, "drop", path=str(uploads / "x.json"))
    assert change.values["model"] == "pixeldance-mini"
    assert "'enormous' is not offered here" in change.message


def test_a_json_without_settings_is_refused(context: StudioContext, uploads: Path) -> None:
    (uploads / "x.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"'x.json' holds no pixeldance recipe"):
        handle(context, "drop", path=str(uploads / "x.json"), name="x.json")


def test_a_picture_dropped_anywhere_fills_the_first_empty_well(
    context: StudioContext, uploads: Path
) -> None:
    one = handle(context, "drop", **upload(uploads, "one.png")).pictures
    two = handle(context, "drop", one, **upload(uploads, "two.png", 1)).pictures
    assert one.first_frame is not None
    assert two.last_frame is not None
    assert (one.last_frame, two.first_frame) == (None, one.first_frame)


# ---- clips go on


def test_a_clip_is_continued_without_loss(
    context: StudioContext, service: JobService, fading: FadingWorker
) -> None:
    job = made(service, fading)
    last = service.clip_files(job.id).last_frame
    change = handle(context, "continue", job=job.id, clip="1")
    assert change.pictures.last_frame is None
    assert change.pictures.first_frame is not None
    path = context.drafts.path(change.pictures.first_frame)
    with Image.open(path) as kept, Image.open(last) as truth:
        assert np.array_equal(np.asarray(kept), np.asarray(truth))
    assert change.values == {}


def test_any_frame_of_a_clip_can_be_used(
    context: StudioContext, service: JobService, fading: FadingWorker
) -> None:
    job = made(service, fading)
    event = {"role": "last_frame", "job": job.id, "clip": "1"}
    used = handle(context, "use_frame", frame=2, **event).pictures.last_frame
    assert used is not None
    assert (used.name, used.frame, used.num_frames) == ("seed-7-2.png", 2, 5)
    end = handle(context, "use_frame", frame="4", **event).pictures.last_frame
    assert end is not None
    assert (end.name, end.frame) == ("seed-7-last.png", None)


def test_the_example_fills_the_form(context: StudioContext) -> None:
    change = handle(context, "example")
    assert change.values["prompt"].startswith("a glowing star")
    assert change.pictures.first_frame is not None
    assert change.pictures.last_frame is not None


# ---- jobs


def test_jobs_are_moved_copied_paused_and_removed(service: JobService) -> None:
    ids = [service.add({"prompt": name}).id for name in "abc"]

    def order() -> list[str]:
        return [job.request["prompt"] for job in service.list(state="queued").jobs]

    def do(name: str, job_id: str) -> None:
        act(service, {"do": name, "job": job_id})

    do("up", ids[2])
    assert order() == ["a", "c", "b"]
    do("down", ids[0])
    assert order() == ["c", "a", "b"]
    do("next", ids[1])
    assert order() == ["b", "c", "a"]
    do("duplicate", ids[2])
    assert order() == ["b", "c", "a", "c"]
    do("pause", ids[1])
    assert service.get(ids[1]).is_paused
    do("resume", ids[1])
    assert not service.get(ids[1]).is_paused
    do("remove", ids[1])
    assert order() == ["c", "a", "c"]


def test_the_running_job_is_found_and_failed_ones_are_put_back(
    service: JobService, fading: FadingWorker
) -> None:
    assert running_job(service) is None
    job = service.add({"prompt": "fail", "num_inference_steps": 1, "duration": 0.5})
    fading.run_next(0.0)
    assert service.get(job.id).state is JobState.FAILED
    act(service, {"do": "requeue", "job": job.id})
    fading.claim()
    assert running_job(service) == service.get(job.id)
    act(service, {"do": "finish", "job": job.id})
    assert service.get(job.id).is_finishing


@pytest.mark.parametrize(
    "event", [{}, {"do": "close"}, {"do": "pause"}, {"do": "up", "job": "x"}, {"do": ["pause"]}]
)
def test_other_actions_are_refused(service: JobService, event: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        act(service, event)


def test_an_edited_job_has_just_the_new_request(service: JobService) -> None:
    job = service.add({"prompt": "old", "negative_prompt": "x", "guidance_scale": 2, "fps": 10})
    request = GenerationRequest(prompt="new", fps=12)
    edited = service.edit(job.id, changes_between(job, request))
    assert edited.request == {"prompt": "new", "fps": 12}
    assert edited.seed == job.seed
