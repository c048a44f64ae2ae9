"""The commands about jobs."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel
from typer.testing import CliRunner, Result

from pixeldance.cli import app
from pixeldance.jobs import JobService, JobStore
from pixeldance.pictures import load_picture

SMALL = ("--num-frames", "5", "--steps", "3", "--height", "32", "--width", "48")


@pytest.fixture(autouse=True)
def _data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELDANCE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pixeldance.cli.jobs.load_model", lambda name, **options: FakeModel())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["jobs", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def add(prompt: str) -> str:
    result = run("add", "--prompt", prompt, *SMALL)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def prompts(*arguments: str) -> list[str]:
    return [job["request"]["prompt"] for job in as_json("list", *arguments)["jobs"]]


def test_a_queue_is_filled_run_and_looked_at() -> None:
    one, two = add("a fox"), add("a cat")
    assert prompts() == ["a fox", "a cat"]
    run("next", two)
    assert prompts("--state", "queued") == ["a cat", "a fox"]
    result = run("run")
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.split()]
    assert [path.parent.name for path in paths] == [two, one]
    assert all(path.is_file() for path in paths)
    assert "step 3/3" in result.stderr
    shown = as_json("show", one)
    assert (shown["state"], shown["files"][0]["clip"]) == ("done", str(paths[1]))
    assert load_picture(shown["files"][0]["last_frame"]).size == (48, 32)
    assert run("run").stdout == ""


def test_a_list_has_a_line_for_each_job() -> None:
    one, two = add("a fox"), add("a\x1b[31m cat")
    run("pause", two)
    assert run("list").stdout.splitlines() == [
        f"{one}  queued 0              a fox",
        f"{two}  queued 1 paused       a\\x1b[31m cat",
    ]
    assert run("list", "--search", "CAT", "--limit", "1").stdout.startswith(two)
    limited = run("list", "--limit", "1")
    assert "1 of 2 jobs" in limited.stderr


def test_jobs_are_stopped_requeued_and_removed() -> None:
    ids = [add("a"), add("b")]
    assert [job["state"] for job in as_json("stop", *ids)["jobs"]] == ["cancelled"] * 2
    assert as_json("requeue", ids[0])["jobs"][0]["place"] == 0
    assert as_json("pause", ids[0])["jobs"][0]["is_paused"]
    assert not as_json("resume", ids[0])["jobs"][0]["is_paused"]
    assert as_json("remove", ids[1]) == {"removed": [ids[1]]}
    assert prompts() == ["a"]
    run("run")
    assert as_json("clean", "--older-than", "1") == {"removed": []}
    assert as_json("clean", "--keep", "0") == {"removed": [ids[0]]}


def test_a_failed_job_is_exit_code_1_and_shows_its_error() -> None:
    job_id = add("fail")
    add("good")
    result = run("run", "--json")
    assert result.exit_code == 1
    assert [job["state"] for job in json.loads(result.stdout)["jobs"]] == ["failed", "done"]
    assert "the model broke" in result.stderr
    assert "the model broke" in run("show", job_id).stdout
    assert "Traceback" in as_json("show", job_id)["traceback"]


def test_adding_again_with_a_key_adds_nothing() -> None:
    ids = {as_json("add", "--prompt", "a", "--idempotency-key", "k")["id"] for _ in range(2)}
    assert len(ids) == 1
    assert len(prompts()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nix"), "There is no job 'nix'"),
        (("finish", "nix"), "There is no job 'nix'"),
        (("clean",), "Say what to remove"),
        (("list", "--state", "lost"), "no state 'lost'"),
        (("add", "--steps", "0"), "--steps must be at least 1"),
        (("add", "--first-frame", "gone.png"), "does not exist"),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_run_says_who_is_at_work_already(tmp_path: Path) -> None:
    from pixeldance.jobs import Worker

    with (
        JobService(JobStore(tmp_path / "data")) as service,
        Worker(service.store, load_model=lambda name: FakeModel()),  # type: ignore[arg-type,return-value]
    ):
        result = run("run")
    assert result.exit_code == 1
    assert "the worker with process id" in result.stderr


def test_ctrl_c_puts_the_job_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(FakeModel):
        def generate(self, *args: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr("pixeldance.cli.jobs.load_model", lambda name, **options: Interrupted())
    add("a")
    assert run("run").exit_code == 130
    assert prompts("--state", "queued") == ["a"]
