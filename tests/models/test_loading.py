from pathlib import Path
from typing import Any

import pytest

from pixeldance.errors import CheckpointError
from pixeldance.models import loading
from pixeldance.models.loading import available_models, find_weights, weights_sha256


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models that is searched, in place of the checkout's."""
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(tmp_path / "shelf"))
    make_model(tmp_path / "shelf" / "red-fox")
    return tmp_path / "shelf"


def test_a_model_is_found_by_name_in_the_folder_of_the_environment(shelf: Path) -> None:
    assert find_weights("red-fox") == shelf / "red-fox"
    assert available_models()["red-fox"] == shelf / "red-fox"


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    model = make_model(tmp_path / "somewhere" / "mine")
    assert find_weights(model) == model
    assert find_weights(str(model)) == model


def test_the_environment_comes_before_the_checkout(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "other" / "red-fox")
    monkeypatch.setattr(loading, "search_folders", lambda: [shelf, tmp_path / "other"])
    assert find_weights("red-fox") == shelf / "red-fox"


def test_only_folders_with_a_model_count(shelf: Path) -> None:
    (shelf / "empty").mkdir()
    (shelf / "README.md").touch()
    names = set(available_models())
    assert "red-fox" in names
    assert not {"empty", "README.md"} & names


@pytest.mark.usefixtures("shelf")
def test_an_unknown_name_lists_the_known_ones_and_suggests() -> None:
    with pytest.raises(CheckpointError, match=r"no model 'red-fx'. Did you mean 'red-fox'\?"):
        find_weights("red-fx")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{tmp_path}' holds no model"):
        find_weights(tmp_path)


def test_a_hub_id_is_downloaded_on_request_and_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(hub_id: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            raise FileNotFoundError(hub_id)
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_weights("someone/fox", download=True) == tmp_path
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
    assert asked == [("someone/fox", patterns)]


@pytest.mark.parametrize("download", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    def fail(hub_id: str, **options: Any) -> str:
        raise OSError(f"no route to {hub_id} {options}\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"^'someone/fox' is no folder .*local folder\.$"):
        find_weights("someone/fox", download=download)


def test_the_fingerprint_depends_on_weights_and_config_and_nothing_else(tmp_path: Path) -> None:
    model = make_model(tmp_path / "one")
    before = weights_sha256(model)
    assert len(before) == 64
    copy = make_model(tmp_path / "elsewhere" / "two")
    (copy / "README.md").write_text("notes")
    assert weights_sha256(copy) == before
    assert weights_sha256(make_model(tmp_path / "three", b"other")) != before
    (copy / "model_index.json").write_text('{"shift": 5.0}')
    assert weights_sha256(copy) != before


def test_no_fingerprint_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        weights_sha256(tmp_path)
