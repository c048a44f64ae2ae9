"""What the server does not do, for whoever asks and however."""

import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from server_helpers import ADDRESS, TOKEN, HandWorker, app_with_page, client, listening, png
from starlette.testclient import TestClient

from pixeldance.errors import InputError
from pixeldance.jobs import JobService, JobStore
from pixeldance.server import launch, limits
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def http(service: JobService) -> TestClient:
    return client(service)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def exchange(http: httpx.Client, data: bytes, *, timeout_s: float = 10) -> bytes:
    """Send raw bytes and read the answer to its end."""
    address = (http.base_url.host, http.base_url.port or 80)
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.sendall(data)
        parts = []
        with suppress(ConnectionResetError):  # closed before all was read
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


# ---- names and origins


FOREIGN_HOSTS = ["attacker.example", "127.0.0.1.attacker.example", "localhost.attacker.example:80"]
FOREIGN_HOSTS += ["10.0.0.1", "192.168.0.5:7860", "127.0.0.1:7860, x", "a b", "[::1", ""]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_header_is_refused(http: TestClient, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/health"), ("POST", "/v1/videos")):
        answer = http.request(method, path, headers={"Host": host})
        assert (answer.status_code, code(answer)) == (400, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "[::1]:7860"])
def test_names_of_this_machine_are_let_in(http: TestClient, host: str) -> None:
    assert http.get("/health", headers={"Host": host}).status_code == 200


def test_further_names_can_be_allowed(service: JobService) -> None:
    http = client(service, allowed_hosts=("Studio.example",))
    assert http.get("/health", headers={"Host": "studio.example"}).status_code == 200
    assert http.get("/health", headers={"Host": "other.example"}).status_code == 400


def test_an_open_server_is_known_by_its_addresses_but_not_by_any_name(service: JobService) -> None:
    http = client(service, host="0.0.0.0", token=TOKEN)
    hosts = {"192.168.0.5:7860": 200, "[fd00::1]": 200, "attacker.example": 400}
    hosts[socket.gethostname()] = 200
    for host, status in hosts.items():
        assert http.get("/health", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, True),
        ({"Origin": ADDRESS}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://attacker.example"}, False),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "file://127.0.0.1:7860"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_pages_of_other_sites_change_nothing(
    http: TestClient, service: JobService, headers: dict[str, str], is_let_in: bool
) -> None:
    video_id = service.add({"prompt": "a"}).id
    calls = [("POST", "/v1/videos"), ("POST", f"/v1/videos/{video_id}/cancel")]
    calls.append(("DELETE", f"/v1/videos/{video_id}"))
    for method, path in calls:
        # What a page can send without asking: a form.
        data = {"prompt": "b"} if path == "/v1/videos" else None
        answer = http.request(method, path, data=data, headers=headers)
        assert answer.status_code == (200 if is_let_in else 403), path
    assert service.list().total == 1


def test_every_answer_has_the_headers_that_keep_others_out(http: TestClient) -> None:
    answers = [http.get("/health"), http.get("/v1/videos"), http.get("/nothing")]
    answers.append(http.get("/health", headers={"Host": "attacker.example"}))
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_an_error_inside_tells_nothing_of_the_inside(
    http: TestClient, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(service, "counts", fail)
    answer = http.post("/v1/videos", json={"prompt": "a"})
    assert (answer.status_code, code(answer)) == (500, "server_error")
    assert "secret" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# ---- tokens


def test_others_are_never_let_in_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.5", "studio.example", ""):
        with pytest.raises(InputError, match="without a token"):
            ServerSettings(host=host)
        ServerSettings(host=host, token=TOKEN)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        ServerSettings(host=host)
    for token in ("", "short", "with space in the middle", "ünicode-token-long"):
        with pytest.raises(InputError, match="at least 16 characters"):
            ServerSettings(token=token)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Cookie": f"token={TOKEN}"}, 401),
        ({"Cookie": "pixeldance-00000000="}, 401),
    ],
)
def test_only_the_token_opens_the_api(
    service: JobService, headers: dict[str, str], status: int
) -> None:
    http = client(service, token=TOKEN)
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    calls = [("GET", "/v1/videos"), ("GET", "/v1/models"), ("GET", "/v1/openapi.json")]
    calls += [("POST", "/v1/videos"), ("GET", "/v1/videos?token=" + TOKEN)]
    for method, path in calls:
        data = {"prompt": "a"} if method == "POST" else None
        answer = http.request(method, path, headers=encoded, data=data)  # type: ignore[arg-type]
        assert answer.status_code == status, path
        if status == 401:
            assert code(answer) == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert http.get("/health").status_code == 200


def test_a_link_logs_a_browser_in(service: JobService) -> None:
    http = client(service, token=TOKEN)
    page = {"Accept": "text/html"}
    hint = http.get("/", headers=page)
    assert hint.status_code == 401
    assert "link" in hint.text
    assert http.get("/?token=wrong").status_code == 401
    answer = http.get(f"/?token={TOKEN}", headers=page, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert TOKEN not in cookie
    assert http.get("/v1/videos").status_code == 200  # the client keeps cookies
    foreign = {"Origin": "http://attacker.example"}
    assert http.post("/v1/videos", data={"prompt": "a"}, headers=foreign).status_code == 403
    other = client(service, token=TOKEN + "2")
    other.cookies = http.cookies
    assert other.get("/v1/videos").status_code == 401


def test_the_document_says_that_a_token_is_needed(service: JobService) -> None:
    http = client(service, token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    document = http.get("/v1/openapi.json", headers=headers).json()
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in client(service).get("/v1/openapi.json").json()


# ---- sizes


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b"x" * 1000


def test_bodies_that_are_too_large_are_refused_before_and_while_they_come_in(
    service: JobService,
) -> None:
    http = client(service, max_upload_bytes=20_000, max_json_bytes=10_000)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for kind, number in (("application/json", 12_000), (form["Content-Type"], 120_000)):
        for body in (b"x" * number, chunks(number)):
            answer = http.post("/v1/videos", content=body, headers={"Content-Type": kind})
            assert (answer.status_code, code(answer)) == (413, "body_too_large"), kind
    files = {"first_frame": ("a.png", png() + b"x" * 100_000)}
    assert http.post("/v1/videos", files=files).status_code == 413
    assert service.list().total == 0
    assert http.post("/v1/videos", files={"first_frame": ("a.png", png())}).status_code == 200


def bomb(side: int) -> bytes:
    """A small PNG file that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_bombs_are_not_decoded(http: TestClient, service: JobService) -> None:
    answer = http.post("/v1/videos", files={"last_frame": ("bomb.png", bomb(30_000))})
    assert (answer.status_code, code(answer)) == (400, "invalid_picture")
    assert answer.json()["error"]["param"] == "last_frame"
    assert "million pixels" in answer.json()["error"]["message"]
    # Many pictures have no more pixels than one may have.
    small = client(service, max_pixels=2 * 32 * 32)
    roles = ("first_frame", "last_frame", "keyframes[8]")
    for number, status in ((2, 200), (3, 400)):
        files = {role: ("a.png", png()) for role in roles[:number]}
        assert small.post("/v1/videos", files=files).status_code == status


def test_a_form_of_very_many_parts_is_refused(http: TestClient) -> None:
    files = [(f"keyframes[{number}]", ("a.png", b"x")) for number in range(100)]
    assert http.post("/v1/videos", files=files).status_code == 400
    fields = {f"field{number}": "x" for number in range(300)}
    assert http.post("/v1/videos", data=fields, files=files[:1]).status_code == 400


def test_deep_and_wide_json_is_refused(http: TestClient) -> None:
    for body in (b'{"a":' * 50_000, b'{"prompt":' + b"1" * 5000 + b"}", b'{"prompt": NaN}'):
        assert http.post("/v1/videos", content=body, headers=JSON).status_code == 400


# ---- paths


OUTSIDE = [
    "/../../../../etc/passwd",
    "/..%2f..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/videos/../../jobs.db",
    "/v1/videos/..%2f..%2fjobs.db/content",
    "/v1/videos/%2e%2e%2f%2e%2e%2fjobs.db/content",
    "/v1/videos/....//....//jobs.db/content",
    "/v1/videos/%00/content",
    "/v1/videos/%2Fetc%2Fpasswd/content",
    "/v1/videos/..%5c..%5cjobs.db/content",
    "/v1/models/..%2f..%2fetc",
    "//etc/passwd",
    "/jobs.db",
    "/static/../../../etc/passwd",
]


def test_no_path_leads_outside(service: JobService, worker: HandWorker) -> None:
    service.add({"prompt": "a"})
    video_id = worker.make()
    more = [f"/v1/videos/{video_id}/content{query}" for query in ("/../../../jobs.db", "%2f..")]
    with listening(create_app(service, ServerSettings(), has_page=False)) as http:
        for path in [*OUTSIDE, *more]:
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            answer = exchange(http, request.encode())
            assert answer.split()[1] in {b"400", b"404"}, path
            assert b"SQLite" not in answer
            assert b"root:" not in answer


def test_what_others_may_not_read_is_theirs_alone(service: JobService) -> None:
    if os.name == "posix":
        assert service.store.folder.path.stat().st_mode & 0o077 == 0


# ---- slow clients


def test_slow_clients_are_cut_off_and_hold_nobody_up(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "HEADER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(limits, "GRACE_S", 1.0)
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with listening(create_app(service, ServerSettings(), has_page=False)) as http:
        address = (http.base_url.host, http.base_url.port or 80)
        connections = [socket.create_connection(address, timeout=10) for _ in range(40)]
        start = time.monotonic()
        try:
            for number, connection in enumerate(connections):
                connection.sendall(head if number % 2 else body)
            connections[0].sendall(b"{")
            assert http.get("/health").status_code == 200
            assert http.post("/v1/videos", json={"prompt": "a"}).status_code == 200
            assert time.monotonic() - start < 10
            for number, connection in enumerate(connections):
                answer = connection.recv(65536)
                assert answer == b"" if number % 2 else answer.startswith(b"HTTP/1.1 408 ")
        finally:
            for connection in connections:
                connection.close()
    assert service.list().total == 1


def test_a_head_that_never_ends_is_refused(service: JobService) -> None:
    with listening(create_app(service, ServerSettings(), has_page=False)) as http:
        answer = exchange(http, b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * launch.MAX_HEADER_BYTES)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""


# ---- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The page on a server; its client has the folder of uploads as ``page.uploads``."""
    folder = tmp_path_factory.mktemp("page")
    settings = ServerSettings(max_upload_bytes=50_000)
    with pytest.MonkeyPatch.context() as patch, JobService(JobStore(folder / "data")) as service:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        with listening(app_with_page(service, settings)) as http:
            yield http


def uploads() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])


CLOSED = [
    "GET /monitoring",
    "GET /monitoring/summary",
    "GET /monitoring/x",
    "GET /openapi.json",
    "GET /gradio_api/openapi.json",
    "GET /docs",
    "GET /redoc",
    "GET /gradio_api/runs",
    "GET /gradio_api/run-history/records",
    "GET /gradio_api/token",
    "GET /gradio_api/user",
    "GET /gradio_api/dev/reload",
    "GET /gradio_api/deep_link?session_hash=x",
    "GET /gradio_api/proxy=http://127.0.0.1:1/",
    "GET /gradio_api/proxy=https://huggingface.co/x",
    "GET /gradio_api/stream/a/b/c/playlist.m3u8",
    "GET /gradio_api/file//etc/passwd",
    "GET /gradio_api/custom_component/a/client/b/c.js",
    "GET /gradio_api/call/act/x",
    "GET /gradio_api/queue/status",
    "GET /gradio_api/vibe-code",
    "GET /gradio_api/profiling/traces",
    "GET /gradio_api/mcp/sse",
    "GET /logout",
    "POST /login",
    "POST /gradio_api/call/act",
    "POST /gradio_api/call/v2/act",
    "POST /gradio_api/api/predict",
    "POST /gradio_api/stream/x",
    "POST /gradio_api/process_recording",
    "POST /gradio_api/component_server",
    "POST /gradio_api/vibe-edit",
    "POST /gradio_api/run-history/connect",
]


def test_the_page_is_there_and_gets_nothing_from_elsewhere(page: httpx.Client) -> None:
    answer = page.get("/")
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert page.get("/config").status_code == 200
    assert page.get("/v1/videos").status_code == 200
    config = page.get("/config", headers={"X-Forwarded-Host": "attacker.example"})
    assert "attacker.example" not in config.text


@pytest.mark.parametrize("call", CLOSED)
def test_what_the_page_does_not_need_is_closed(page: httpx.Client, call: str) -> None:
    method, path = call.split(" ")
    answer = page.request(method, path)
    assert (answer.status_code, code(answer)) == (404, "not_found")


def test_functions_of_the_page_cannot_be_called_by_name(page: httpx.Client) -> None:
    names = [entry["api_name"] for entry in page.get("/config").json()["dependencies"]]
    named = sorted({name for name in names if name})
    assert named
    for name in named[:3]:
        for way in ("call", "call/v2", "api"):
            assert page.post(f"/gradio_api/{way}/{name}", json={"data": []}).status_code == 404


def test_only_uploads_are_served(page: httpx.Client, tmp_path: Path) -> None:
    data = uploads().parent / "data" / "jobs.db"
    assert data.is_file()
    (tmp_path / "x.txt").write_text("secret")
    uploads().mkdir(exist_ok=True)
    link = uploads() / "link"
    link.symlink_to(data)
    outside = [data, tmp_path / "x.txt", link, f"{uploads()}/../data/jobs.db", "/etc/passwd"]
    outside += [Path.cwd() / "pyproject.toml", "pyproject.toml", "C:/Windows/win.ini", "//host/x"]
    outside += ["http://127.0.0.1:1/", "https://attacker.example/x", "%00", ""]
    for path in outside:
        for prefix in ("/gradio_api/file=", "/file="):
            answer = page.get(f"{prefix}{path}")
            assert answer.status_code == 404, path
    link.unlink()


def test_an_upload_is_served_as_what_cannot_run(page: httpx.Client) -> None:
    for name, content in (("a.png", png()), ("evil.html", b"<script>1</script>")):
        path = page.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]
        assert Path(path).is_relative_to(uploads())
        answer = page.get(f"/gradio_api/file={path}")
        assert answer.content == content
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].endswith("sandbox")


def test_uploads_have_a_limit_and_their_names_no_power(page: httpx.Client) -> None:
    for size, status in ((60_000, 413), (200_000, 413)):
        answer = page.post("/gradio_api/upload", files={"files": ("a.png", b"x" * size)})
        assert answer.status_code == status
    for name in ("../../../evil.png", "/etc/evil.png", "..\\..\\evil.png"):
        answer = page.post("/gradio_api/upload", files={"files": (name, b"x")})
        for path in answer.json() if answer.status_code == 200 else []:
            assert Path(path).resolve().is_relative_to(uploads().resolve())


def test_the_page_is_behind_the_same_guard(page: httpx.Client) -> None:
    foreign = {"Host": "attacker.example"}
    for path in ("/", "/config", "/gradio_api/queue/data", "/theme.css"):
        assert page.get(path, headers=foreign).status_code == 400
    other_site = {"Origin": "http://attacker.example"}
    for path in ("queue/join", "run/predict", "upload", "cancel"):
        # Forms and text need no permission of the browser.
        kind = {**other_site, "Content-Type": "text/plain"}
        answer = page.post(f"/gradio_api/{path}", content=b"{}", headers=kind)
        assert answer.status_code == 403, path


def test_the_page_needs_the_token_too(service: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(service.store.folder.path / "gradio"))
    app = app_with_page(service, ServerSettings(token=TOKEN))
    http = TestClient(app, base_url=ADDRESS)
    for path in ("/", "/config", "/assets/x.js", "/gradio_api/info", "/theme.css"):
        assert http.get(path).status_code == 401, path
    assert http.post("/gradio_api/upload", files={"files": ("a", b"x")}).status_code == 401
    assert http.get(f"/?token={TOKEN}").status_code == 200
    assert http.get("/config").status_code == 200
