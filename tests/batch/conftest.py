from pathlib import Path

import pytest
from batch_helpers import CountingModel, save_tiny_model

from pixeldance.api import Model, load


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Model:
    return load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture
def model(tiny_model: Model) -> CountingModel:
    return CountingModel(tiny_model)
