from collections.abc import Iterator
from pathlib import Path

import pytest
from server_helpers import HandWorker

from pixeldance.jobs import JobService, JobStore


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path / "data")) as service:
        yield service


@pytest.fixture
def worker(service: JobService) -> Iterator[HandWorker]:
    worker = HandWorker(service)
    yield worker
    worker.close()
