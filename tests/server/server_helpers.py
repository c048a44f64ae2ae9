"""A job service whose jobs are moved on by hand, and a server that really listens."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from pixeldance.jobs import Job, JobClip, JobService, JobState, Phase
from pixeldance.jobs.live import BoardWriter, Note
from pixeldance.server.app import create_app
from pixeldance.server.launch import HttpServer, listening_socket
from pixeldance.server.settings import ServerSettings

ADDRESS = "http://127.0.0.1:7860"
CLIP = bytes(range(256)) * 8
TOKEN = "correct-horse-battery"


class HandWorker:
    """Does what a worker does, one step per call."""

    def __init__(self, service: JobService) -> None:
        self._store = service.store
        self._board = BoardWriter(service.store.folder.live)
        self._number = 0
        self.job: Job | None = None

    def close(self) -> None:
        self._board.close()

    def claim(self) -> Job:
        self.job = self._store.running.claim()
        assert self.job is not None
        return self.job

    def step(self, step: int, *, phase: Phase = Phase.DENOISING) -> bool:
        """Make a step; False if the job was asked to stop, which ends it."""
        job = self.job
        assert job is not None
        if self._store.running.control(job.id).command == "stop":
            self._store.running.end(job.id, JobState.CANCELLED)
            self._board.clear()
            return False
        self._number += 1
        self._board.write(
            Note(
                job_id=job.id,
                attempt=job.num_attempts,
                number=self._number,
                phase=phase,
                step=step,
                num_steps=job.num_steps,
                clip=1,
                num_clips=1,
                seconds_per_step=0.5,
                remaining_s=0.5 * (job.num_steps - step),
                preview_number=None,
                preview=None,
            )
        )
        return True

    def finish(self) -> None:
        job = self.job
        assert job is not None
        files = self._store.folder.clip_files(job.id, 1)
        files.clip.parent.mkdir()
        files.clip.write_bytes(CLIP)
        files.recipe.write_text("{}")
        picture(8).save(files.last_frame, format="PNG")
        picture(4).save(files.thumbnail, format="JPEG")
        clip = JobClip(
            number=1,
            seed=job.seed,
            num_frames=25,
            height=144,
            width=256,
            fps=12,
            num_steps_done=job.num_steps,
            num_bytes=files.num_bytes,
            sha256="0" * 64,
        )
        self._store.running.add_clip(job, clip, is_last=True)
        self._board.clear()

    def make(self) -> str:
        """Make the next clip of the queue; returns the id of its job."""
        self.claim()
        self.finish()
        assert self.job is not None
        return self.job.id


def picture(side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), (200, 30, 30))


def png(side: int = 32) -> bytes:
    stream = io.BytesIO()
    picture(side).save(stream, "PNG")
    return stream.getvalue()


def client(service: JobService, **settings: Any) -> TestClient:
    """A client of the API alone, in this process."""
    app = create_app(service, ServerSettings(**settings), has_page=False)
    return TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)


def app_with_page(service: JobService, settings: ServerSettings) -> FastAPI:
    """The whole application."""

    async def make() -> FastAPI:
        return create_app(service, settings)

    # In a running event loop: without one, Gradio makes some that it never closes.
    return asyncio.run(make())


@contextmanager
def listening(app: FastAPI) -> Iterator[httpx.Client]:
    """A server on a free port, and a client of it."""
    with listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        is_ready = threading.Event()
        server = HttpServer(app, on_ready=is_ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert is_ready.wait(20)
            address = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=address, trust_env=False, timeout=20) as http:
                yield http
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tmp").glob("server-*"))
