"""Running the server: its folder, its worker, its socket, and a clean end."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pixeldance.backbones.facts import installed_facts
from pixeldance.errors import PixelDanceError
from pixeldance.jobs import JobService, JobStore, WorkerProcess
from pixeldance.jobs.locks import WorkerLock
from pixeldance.jobs.requests import absolute_model
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings

__all__ = ["DEFAULT_PORT", "HttpServer", "listening_socket", "serve"]

DEFAULT_PORT = 7860

HEADER_TIMEOUT_S = 10.0
"""How long the head of a request may take to come in."""
MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 64 * 1024
HANG_UP_S = 2.0
"""How long calls may go on when the server ends; streams never end by themselves."""

_NUM_PORTS = 100
_STALE_S = 60.0


def serve(
    settings: ServerSettings,
    *,
    folder: str | os.PathLike[str] | None = None,
    port: int | None = None,
    has_page: bool = True,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Run the server with a worker until it is told to end by Ctrl-C or SIGTERM.

    Jobs are kept in the data folder, and so is all that is written meanwhile, which is gone at the
    end. A job that runs then goes back to the queue.

    Args:
        settings: Who may use it and how much it takes.
        folder: The data folder; by default ``jobs.default_data_folder()``.
        port: Port to listen at, 0 for any; by default the first that is free from 7860.
        has_page: Whether there is a page, or the API alone.
        on_ready: Called with the address of the page, and the token in it, once it is there.

    Raises:
        PixelDanceError: If the data folder or the port cannot be used.
        InputError: If options of the model have no effect on it.
    """
    facts = installed_facts(settings.model)
    if facts is not None:
        settings.model_options.check(facts)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminable())
        listener = stack.enter_context(listening_socket(settings.host, port))
        service = stack.enter_context(JobService(JobStore(folder)))
        data = service.store.folder.path
        stack.enter_context(_scratch(data / "tmp"))
        worker = stack.enter_context(
            WorkerProcess(
                data, options=settings.model_options, model=absolute_model(settings.model)
            )
        )
        app = create_app(service, settings, worker=worker, has_page=has_page)
        address = _address(settings, listener)
        HttpServer(app, on_ready=lambda: on_ready(address) if on_ready else None).run([listener])


def listening_socket(host: str, port: int | None) -> socket.socket:
    """Take a port.

    Args:
        host: Address to listen at.
        port: The port, 0 for any; None for the first that is free from 7860.

    Returns:
        The socket; it listens already.

    Raises:
        PixelDanceError: If it is taken, or the address is none of this machine.
    """
    candidates = range(DEFAULT_PORT, DEFAULT_PORT + _NUM_PORTS) if port is None else [port]
    reason = ""
    for candidate in candidates:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind)
        except OSError as error:
            raise PixelDanceError(
                f"There is no address {host!r} here ({error.strerror})."
            ) from None
        try:
            if sys.platform != "win32":  # there it would let two servers have one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # with SO_REUSEADDR, only this tells whether somebody else does
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
        else:
            return listener
    taken = f"port {port}" if port is not None else f"a port from {candidates[0]}"
    raise PixelDanceError(
        f"The server cannot listen at {host}, {taken} ({reason}). Choose another with --port."
    )


def _address(settings: ServerSettings, listener: socket.socket) -> str:
    """Where a browser on this machine finds the page; with the token, if one is needed."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    return address if settings.token is None else f"{address}?token={settings.token}"


class HttpServer(uvicorn.Server):
    """Serves an application; ends on SIGINT and SIGTERM without passing them on.

    Args:
        app: The application.
        on_ready: Called when it listens.
    """

    def __init__(self, app: object, *, on_ready: Callable[[], object] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # paths and addresses are nobody's business
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=int(HANG_UP_S) + 3,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen.

        Args:
            sockets: Where.
        """
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: calls may finish within ``HANG_UP_S``, then their connections are closed.

        Args:
            sockets: Where it listened.
        """
        hanging_up = asyncio.get_running_loop().call_later(HANG_UP_S, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Note a signal; uvicorn's own would be raised again at the end.

        Args:
            sig: The signal.
            frame: Where it came in.
        """
        self.force_exit = self.should_exit
        self.should_exit = True


class _Protocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for the head of a request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the process as Ctrl-C does, so that everything is left in order."""

    def leave(sig: int, _: FrameType | None) -> None:
        raise SystemExit(128 + sig)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[None]:
    """Have everything that is written for a while go to a folder that is gone afterwards.

    That is what Python, Gradio and form parsers put into temporary files, and what a relative path
    would name. Gradio is told to keep to itself, too.
    """
    parent.mkdir(mode=0o700, exist_ok=True)
    _sweep(parent)
    before = tempfile.tempdir
    with (
        tempfile.TemporaryDirectory(prefix="server-", dir=parent) as name,
        WorkerLock(_lock_path(Path(name))) as lock,
    ):
        folder = Path(name)
        lock.try_acquire()
        places = {part: folder / part for part in ("gradio", "files", "empty")}
        for place in places.values():
            place.mkdir(mode=0o700)
        variables = {
            "GRADIO_TEMP_DIR": str(places["gradio"]),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        with _environment(variables), contextlib.chdir(places["empty"]):
            tempfile.tempdir = str(places["files"])
            try:
                yield
            finally:
                tempfile.tempdir = before


def _sweep(parent: Path) -> None:
    """Remove folders of servers that were killed: nobody holds their locks any more."""
    for folder in parent.glob("server-*"):
        with contextlib.suppress(OSError), WorkerLock(_lock_path(folder)) as lock:
            is_old = time.time() - folder.stat().st_mtime > _STALE_S
            if is_old and lock.try_acquire():
                lock.release()
                shutil.rmtree(folder, ignore_errors=True)


def _lock_path(folder: Path) -> Path:
    return folder / "lock"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
