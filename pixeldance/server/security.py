"""What every call must pass before anything looks at it, and what every answer carries.

The server may run on the machine of somebody who surfs the web meanwhile. So a call must name the
server by one of its own names (another name means DNS rebinding), a call that changes something
must not come from another site's page, and no answer may be embedded elsewhere. A token, if there
is one, is needed for all but ``/health``; a browser gets it in a link once and keeps a cookie.
"""

import hashlib
import hmac
import ipaddress
import logging
import re
import socket
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixeldance.server.errors import ApiError, error_response
from pixeldance.server.limits import LimitedCall
from pixeldance.server.settings import ServerSettings

__all__ = ["Guard"]

OPEN_PATHS = frozenset({"/health"})
"""What may be asked without the token."""

COOKIE_AGE_S = 30 * 24 * 3600

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Gradio builds addresses from these; only a proxy that is trusted may set the first.
_DROPPED_HEADERS = frozenset({b"x-forwarded-host", b"x-original-host", b"x-forwarded-server"})

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
# Gradio runs scripts of its page and compiles functions; nothing comes from anywhere else.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
OTHER_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
_WITHOUT_PAGES = ("/v1/", "/gradio_api/")

logger = logging.getLogger(__name__)


class Guard:
    """Stands in front of an application.

    Args:
        app: The application.
        settings: Who may use it and how much it takes.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = _own_names(settings)
        self._token = None if settings.token is None else _Token(settings.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or have the application answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer = _Answer(scope, send)
            try:
                await self._call(scope, receive, answer)
            except Exception as error:
                if not isinstance(error, ApiError):
                    logger.exception("%s %s failed.", scope["method"], scope["path"])
                if not answer.has_begun:
                    await error_response(_told(error))(scope, receive, answer)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            login = self._token.check(scope, headers)
            if login is not None:
                await login(scope, receive, send)
                return
        _check_origin(scope, headers)
        kept = [item for item in scope["headers"] if item[0].lower() not in _DROPPED_HEADERS]
        call = LimitedCall(receive, send, headers, self._settings)
        await call.run(self._app, {**scope, "headers": kept})

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        name = _host_name(given[0]) if len(given) == 1 else None
        is_address = name is not None and _is_address(name)
        # Rebinding needs a name: an address is what it says.
        if name is None or not (
            name in self._hosts or (is_address and not self._settings.is_local)
        ):
            raise ApiError(
                400,
                f"This server is not called {', '.join(given)[:80]!r}. Use its own address, or "
                "start it with --allowed-host.",
                code="unknown_host",
            )


def _told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return ApiError(
        500,
        "Something went wrong that was not foreseen; see the server's log.",
        code="server_error",
    )


def _own_names(settings: ServerSettings) -> frozenset[str]:
    names = {*_LOOPBACK_NAMES, *(name.lower() for name in settings.allowed_hosts)}
    if not settings.is_local:
        names |= {settings.host.lower(), socket.gethostname().lower()}
    return frozenset(names)


def _host_name(header: str) -> str | None:
    """The name in a Host header without the port; None if it is none."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::[0-9]{1,5})?", header, re.ASCII)
    return (found[1] or found[2]).lower() if found else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_origin(scope: Scope, headers: Headers) -> None:
    """Refuse what another site's page has a browser send; programs send neither header."""
    if scope["method"] in _SAFE_METHODS:
        return
    origin = headers.get("origin")
    if origin is None:
        is_own = headers.get("sec-fetch-site", "none") in {"none", "same-origin"}
    else:
        parts = urlsplit(origin)
        is_web = parts.scheme in {"http", "https"}
        is_own = is_web and parts.netloc.lower() == headers.get("host", "").lower()
    if not is_own:
        raise ApiError(
            403, "Pages of other sites may not use this server.", code="cross_origin_refused"
        )


class _Token:
    """Lets in whoever has the token, in a header or as a cookie made from it."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        digest = hmac.new(self._token, b"pixeldance session", hashlib.sha256).hexdigest()
        # Cookies are shared by all ports of a host: servers must not overwrite each other's.
        self._cookie_name = f"pixeldance-{digest[:8]}"
        self._session = digest[8:].encode()

    def check(self, scope: Scope, headers: Headers) -> Response | None:
        """Check a call; the answer is the end of it if it is a login."""
        if scope["path"] == "/" and scope["method"] == "GET":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
            if given and _is_same(given[0], self._token):
                return self._login(scope)
        if not self._is_known(headers):
            accepts_page = "text/html" in headers.get("accept", "")
            return _login_hint() if accepts_page else error_response(_no_token())
        return None

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _is_same(given.strip(), self._token)
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie_name, "")
        return _is_same(cookie, self._session)

    def _login(self, scope: Scope) -> Response:
        answer = RedirectResponse("/", status_code=303, headers={"Cache-Control": "no-store"})
        answer.set_cookie(
            self._cookie_name,
            self._session.decode(),
            max_age=COOKIE_AGE_S,
            httponly=True,
            samesite="lax",  # strict cookies are not sent when the link is followed from elsewhere
            secure=scope["scheme"] == "https",
        )
        return answer


def _is_same(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected)


def _no_token() -> ApiError:
    return ApiError(
        401,
        "The token is missing or wrong. Send it as 'Authorization: Bearer TOKEN'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _login_hint() -> Response:
    text = "This page needs its token. Open the link that the server printed when it started."
    return PlainTextResponse(text, status_code=401, headers={"WWW-Authenticate": "Bearer"})


class _Answer:
    """Adds the headers that every answer carries."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._path: str = scope["path"]
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            message = {**message, "headers": list(message.get("headers", ()))}
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            is_page = headers.get("content-type", "").startswith("text/html")
            is_page = is_page and not self._path.startswith(_WITHOUT_PAGES)
            headers["Content-Security-Policy"] = PAGE_POLICY if is_page else OTHER_POLICY
        await self._send(message)
