"""The command that runs the server: its options and what they mean."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pixeldance.backbones.options import ModelOptions
from pixeldance.cli import app
from pixeldance.server import launch
from pixeldance.server.settings import ServerSettings

TOKEN = "correct-horse-battery"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the function that serves, which does not."""
    calls: list[dict[str, Any]] = []

    def serve(settings: ServerSettings, **options: Any) -> None:
        calls.append({"settings": settings, **options})
        options["on_ready"]("http://127.0.0.1:7860/")

    monkeypatch.setattr(launch, "serve", serve)
    monkeypatch.delenv("PIXELDANCE_TOKEN", raising=False)
    return calls


def run(*options: str) -> Any:
    return CliRunner().invoke(app, ["serve", *options])


def test_without_options_it_is_for_this_machine_alone(calls: list[dict[str, Any]]) -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout == "http://127.0.0.1:7860/\n"
    (call,) = calls
    assert call["settings"] == ServerSettings()
    assert (call["port"], call["folder"], call["has_page"]) == (None, None, True)


def test_options_arrive(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--host", "0.0.0.0", "--port", "8000", "--data-dir", str(tmp_path)]
    options += ["--token", TOKEN, "--max-upload-mb", "5", "--max-queue", "7", "--no-page"]
    options += ["--device", "cpu", "--dtype", "float32"]
    options += ["--allowed-host", "one.example", "--allowed-host", "two.example"]
    assert run(*options).exit_code == 0
    (call,) = calls
    assert call["settings"] == ServerSettings(
        host="0.0.0.0",
        token=TOKEN,
        allowed_hosts=("one.example", "two.example"),
        max_upload_bytes=5 * 1024**2,
        max_queued=7,
        model_options=ModelOptions(device="cpu", dtype="float32"),
    )
    assert (call["port"], call["folder"], call["has_page"]) == (8000, tmp_path, False)


def test_a_token_is_made_where_others_can_reach_it(calls: list[dict[str, Any]]) -> None:
    for _ in range(2):
        assert run("--host", "0.0.0.0").exit_code == 0
    one, two = (call["settings"].token for call in calls)
    assert one != two
    assert min(len(one), len(two)) >= 32


def test_the_environment_can_give_the_token(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELDANCE_TOKEN", TOKEN)
    assert run().exit_code == 0
    assert calls[0]["settings"].token == TOKEN


def test_a_folder_as_model_is_found_from_anywhere(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    run("--model", "mine")
    run("--model", "pixeldance-mini")
    assert [call["settings"].model for call in calls] == [str(tmp_path / "mine"), "pixeldance-mini"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token", "short"], "at least 16 characters"),
        (["--max-queue", "0"], "--max-queue"),
        (["--port", "70000"], "--port"),
        (["--open", "--no-page"], "--open needs the page"),
    ],
)
def test_wrong_options_are_refused(
    calls: list[dict[str, Any]], options: list[str], message: str
) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert calls == []


def test_open_shows_the_page_in_a_browser(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run("--open")
    assert opened == ["http://127.0.0.1:7860/"]
