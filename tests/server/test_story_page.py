"""The storyboard's side of the server: what it tells of a story, and the films that it orders."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

sys.path.append(str(Path(__file__).parents[1] / "jobs"))
from film_model import FilmModel

from pixeldance.jobs import JobService, Worker
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.panels import Panels, Seen
from pixeldance.server.studio.story_routes import story_router
from pixeldance.stories import read_story

FILM = {"height": 32, "width": 48, "num_inference_steps": 2}
ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gradio" / "abc"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return folder


@pytest.fixture
def context(service: JobService, uploads: Path) -> StudioContext:
    return StudioContext(service, ServerSettings(max_queued=3))


@pytest.fixture
def browser_of(context: StudioContext) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(story_router(context))
    with TestClient(app, base_url=ADDRESS) as client:
        yield client


class Board:
    """A storyboard as a browser has it."""

    def __init__(self, client: TestClient, *shots: dict[str, Any], **film: Any) -> None:
        self._client = client
        self.shots = [dict(shot) for shot in shots]
        self.film = FILM | film
        self.jobs: list[str] = []

    @property
    def draft(self) -> dict[str, Any]:
        return {"film": self.film, "shots": self.shots, "jobs": self.jobs}

    def post(self, path: str, body: Any = None) -> Any:
        return self._client.post(f"/studio/story/{path}", json=self.draft if body is None else body)

    def look(self) -> dict[str, Any]:
        answer = self.post("look")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def states(self) -> list[str]:
        return [shot["state"] for shot in self.look()["shots"]]

    def make(self) -> str:
        answer = self.post("films")
        assert answer.status_code == 200, answer.text
        self.jobs.append(answer.json()["job"])
        return self.jobs[-1]


@pytest.fixture
def board(browser_of: TestClient) -> Board:
    shots = [{"prompt": "a fox", "duration": 0.75}, {"prompt": "it jumps", "duration": 0.6}]
    return Board(browser_of, *shots, {"prompt": "a bear", "transition": "cut", "duration": 0.5})


def run(service: JobService, model: FilmModel) -> None:
    with Worker(service.store, load_model=lambda name: model) as worker:  # type: ignore[arg-type, return-value]
        job = worker.claim()
        assert job is not None
        worker.run_job(job)


def given(uploads: Path, name: str, colour: str = "red") -> dict[str, Any]:
    Image.new("RGB", (48, 32), colour).save(uploads / name, format="PNG")
    return {"path": str(uploads / name), "name": name}


def picture(board: Board, uploads: Path, name: str, colour: str = "red") -> dict[str, Any]:
    answer = board.post("pictures", given(uploads, name, colour))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# ---- making


def test_a_film_is_made_and_one_shot_of_it_again(board: Board, service: JobService) -> None:
    model = FilmModel()
    before = board.look()
    assert board.states() == ["missing"] * 3
    assert before["can_make"]
    assert before["film"] is None
    assert "22 frames at 12 per second = 1.83 s" in before["summary"]
    assert "3 of 3 clips to make" in before["summary"]
    board.make()
    assert board.states() == ["waiting"] * 3
    assert not board.look()["can_make"]  # it waits already
    run(service, model)
    made = board.look()
    assert board.states() == ["made"] * 3
    assert made["film"]["is_current"]
    assert not made["can_make"]
    assert made["progress"] is None
    assert len({shot["poster"] for shot in made["shots"]}) == 3

    model.asked.clear()
    board.shots[1]["seed"] = "12345"
    again = board.look()
    assert board.states() == ["made", "missing", "made"]
    assert not again["film"]["is_current"]
    assert again["film"]["url"] == made["film"]["url"]  # the old one can still be seen
    board.make()
    run(service, model)
    assert model.asked == [("it jumps", 12345)]
    assert board.look()["film"]["is_current"]


def test_other_orders_need_only_what_goes_on_from_others(board: Board, service: JobService) -> None:
    board.make()
    run(service, FilmModel())
    board.shots.insert(0, board.shots.pop())  # the bear, then the fox goes on from it
    assert board.states() == ["made", "missing", "missing"]
    board.shots[1]["transition"] = "cut"
    assert board.states() == ["made"] * 3
    view = board.look()
    assert not view["film"]["is_current"]
    assert view["can_make"]  # only to be joined


def test_what_is_being_made_is_told_by_shot(board: Board, service: JobService) -> None:
    seen: list[Any] = []

    class Looking(FilmModel):
        def generate(self, request: Any, *, on_step: Any) -> Any:
            view = board.look()
            seen.append(([shot["label"] for shot in view["shots"]], view["progress"]["step"]))
            return super().generate(request, on_step=on_step)

    board.shots[0]["duration"] = 3
    board.make()
    run(service, Looking())
    labels, steps = zip(*seen, strict=True)
    assert labels[0] == ["Being made · 1 of 2", "Waiting", "Waiting"]
    assert labels[1] == ["Being made · 2 of 2", "Waiting", "Waiting"]
    assert labels[3] == ["Made", "Made", "Being made"]
    assert steps == (0, 2, 4, 6)


def test_stop_keeps_what_is_made(board: Board, service: JobService) -> None:
    class Stopping(FilmModel):
        def generate(self, request: Any, *, on_step: Any) -> Any:
            if request.prompt == "it jumps":
                board.post("stop")
            return super().generate(request, on_step=on_step)

    board.make()
    run(service, Stopping())
    assert board.states() == ["made", "missing", "missing"]
    view = board.look()
    assert view["can_make"]
    assert view["progress"] is None


def test_why_a_film_failed_is_told(board: Board, service: JobService) -> None:
    board.shots[0]["prompt"] = "fail"
    board.make()
    run(service, FilmModel())
    view = board.look()
    assert "the model broke" in view["problem"]
    assert view["can_make"]


def test_jobs_that_are_gone_or_no_films_are_passed_over(board: Board, service: JobService) -> None:
    clip = service.add({"prompt": "a clip"})
    board.jobs = ["unknown", clip.id, 7]  # type: ignore[list-item]
    assert board.look()["progress"] is None
    board.post("stop")
    assert service.get(clip.id).state == "queued"


def test_a_full_queue_is_told(board: Board, service: JobService) -> None:
    for _ in range(3):
        service.add({"prompt": "a clip"})
    answer = board.post("films")
    assert answer.status_code == 400
    assert "3 jobs are waiting already" in answer.json()["error"]["message"]


# ---- what is wrong


def test_problems_stand_beside_their_shots(board: Board) -> None:
    board.shots[1] |= {"transition": "morph"}
    board.shots[2] |= {"duration": "long"}
    problems = [shot["problem"] for shot in board.look()["shots"]]
    assert problems[:2] == ["", ""]  # those of single shots first
    assert problems[2] == "duration must be a finite number, got 'long'."
    del board.shots[2]["duration"]
    problems = [shot["problem"] for shot in board.look()["shots"]]
    assert problems == ["", "morph needs a last picture. Give one, or use continue.", ""]
    assert not board.look()["can_make"]
    answer = board.post("films")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Shot 2: ")


def test_problems_of_pictures_stand_beside_their_shots(board: Board, uploads: Path) -> None:
    board.shots[1]["last_frame"] = picture(board, uploads, "fox.png") | {"sha256": "0" * 64}
    problems = [shot["problem"] for shot in board.look()["shots"]]
    assert problems == ["", "The last picture is not here any more. Choose it again.", ""]


def test_problems_of_the_film_stand_beside_it(board: Board) -> None:
    board.film |= {"width": 50}
    assert "width must be a multiple of 16" in board.look()["problem"]
    board.film |= {"width": 48, "model": "/etc"}
    assert board.look()["problem"].startswith("Choose one of the models")
    del board.film["model"]
    board.film["loop"] = True
    assert "loop needs a picture" in board.look()["problem"]


@pytest.mark.parametrize("draft", [{}, {"shots": 3, "film": []}, {"shots": [None], "jobs": "x"}])
def test_a_draft_may_be_anything(board: Board, draft: Any) -> None:
    assert board.post("look", draft).status_code == 200


def test_the_first_shot_is_a_cut_whatever_it_was_elsewhere(board: Board) -> None:
    board.shots[0]["transition"] = "continue"
    assert board.look()["problem"] == ""
    assert board.states() == ["missing"] * 3


# ---- pictures and files


def test_only_uploads_are_read(board: Board, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("shots: [{prompt: secret}]")
    for path in ("pictures", "import"):
        answer = board.post(path, {"path": str(secret), "name": "x.yaml"})
        assert answer.status_code == 400
        assert "secret" not in answer.text


def test_a_story_goes_to_a_file_and_comes_back(board: Board, uploads: Path, tmp_path: Path) -> None:
    board.shots[2] |= {
        "first_frame": picture(board, uploads, "a.png"),
        "last_frame": picture(board, uploads, "b.png", "blue"),
        "last_frame_strength": 0.5,
        "name": "the end",
        "seed": str(2**60),
    }
    before = board.look()
    assert before["problem"] == ""
    text = board.post("export").text
    (tmp_path / "story.yaml").write_text(text)
    told = read_story(tmp_path / "story.yaml")  # as the command line reads it
    assert [shot.prompt for shot in told.shots] == ["a fox", "it jumps", "a bear"]
    assert told.shots[2].seed == 2**60
    (uploads / "story.yaml").write_text(text)
    file = {"path": str(uploads / "story.yaml"), "name": "story.yaml"}
    answer = board.post("import", file).json()
    assert answer["message"] == ""
    board.film, board.shots = answer["draft"]["film"], answer["draft"]["shots"]
    assert board.look() == before
    assert board.shots[2]["seed"] == str(2**60)  # as text: a browser would round it


def test_an_import_keeps_what_is_wrong_and_says_what_is_missing(
    board: Board, uploads: Path
) -> None:
    (uploads / "story.yaml").write_text(
        "fps: 10\nmodel: /etc\nshots:\n- {prompt: a fox, first_frame: /etc/fox.png, colour: red}\n"
        "- {prompt: it jumps, duration: soon}\n- {num_frames: 8}\n"
    )
    file = {"path": str(uploads / "story.yaml"), "name": "story.yaml"}
    answer = board.post("import", file).json()
    assert "Shot 1: give fox.png again; it is not in the file." in answer["message"]
    assert "Shot 1 has 'colour', which nobody knows" in answer["message"]
    assert "'/etc' is not offered here" in answer["message"]
    shots = answer["draft"]["shots"]
    assert shots[1]["duration"] == "soon"
    assert shots[2]["duration"] == 0.8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("shots: [", "is not valid YAML"),
        ("a: 1", "no list of shots"),
        ("a: &a [1]\nshots: [{prompt: *a}]", "aliases"),
        ("shots: !!python/name:os.system ''", "is not valid YAML"),
    ],
)
def test_files_that_are_no_stories(board: Board, uploads: Path, content: str, words: str) -> None:
    (uploads / "story.yaml").write_text(content)
    file = {"path": str(uploads / "story.yaml"), "name": "story.yaml"}
    answer = board.post("import", file)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_the_settings_of_a_film_bring_its_story(
    board: Board, service: JobService, uploads: Path
) -> None:
    job_id = board.make()
    run(service, FilmModel())
    recipe = uploads / "film.json"
    recipe.write_bytes(service.clip_files(job_id).recipe.read_bytes())
    answer = board.post("import", {"path": str(recipe), "name": "film.json"}).json()
    board.film, board.shots = answer["draft"]["film"], answer["draft"]["shots"]
    assert answer["message"] == ""
    assert board.states() == ["made"] * 3


def test_posters_are_small_pictures_of_made_shots(
    board: Board, service: JobService, browser_of: TestClient
) -> None:
    board.make()
    run(service, FilmModel())
    answer = browser_of.get(board.look()["shots"][0]["poster"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert browser_of.get(f"/studio/story/posters/{'0' * 64}.jpg").status_code == 404
    assert browser_of.get("/studio/story/posters/..%2f..%2fjobs.jpg").status_code in {404, 422}


# ---- films among the clips


def test_films_are_shown_among_the_clips(
    board: Board, context: StudioContext, service: JobService
) -> None:
    panels = Panels(context)
    board.make()
    waiting, _ = panels.news(View(), Seen())
    assert "Film of 3 shots: a fox" in waiting["queue"]
    assert 'data-form="edit"' not in waiting["queue"]
    run(service, FilmModel())
    done, _ = panels.news(View(), Seen())
    assert "Film of 3 shots: a fox" in done["gallery"]
    assert 'data-form="settings"' not in done["gallery"] + done["viewer"]
    assert "clip.webm" not in done["viewer"]
    assert 'data-form="continue"' in done["viewer"]
    panels.close()
