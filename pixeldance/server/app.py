"""The application: the page and the HTTP API over the same jobs, behind one guard."""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import Scope

from pixeldance import __version__
from pixeldance.errors import PixelDanceError
from pixeldance.jobs import JobService, WorkerProcess
from pixeldance.server.errors import ApiError, api_error_of, error_response
from pixeldance.server.rest import api_routes
from pixeldance.server.security import Guard
from pixeldance.server.settings import ServerSettings

__all__ = ["create_app"]

_PAGE_CALLS = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/pwa_icon(/\d+)?"
        r"|/(static|assets|svelte)/.+"
        r"|/gradio_api/(heartbeat/\w+|queue/data|startup-events/?|upload_progress|info/?|app_id/?"
        r"|theme\.css|file=.+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|run/\w+|upload|cancel|reset)/?"),
}
"""What Gradio's page needs. All else that Gradio would answer is closed: its proxy, streams, API
by name, run history, monitoring, deep links, recordings, code generation, ..."""


def create_app(
    service: JobService,
    settings: ServerSettings,
    *,
    worker: WorkerProcess | None = None,
    has_page: bool = True,
) -> FastAPI:
    """Make the application.

    Gradio keeps uploads in ``GRADIO_TEMP_DIR`` as it is now: set it before, see ``launch``.

    Args:
        service: The jobs; they are made by somebody else.
        settings: Who may use it and how much it takes.
        worker: Makes the clips, for ``/health`` to tell of; None if that is not to be told.
        has_page: Whether there is a page, or the API alone.

    Returns:
        The application.
    """
    app = FastAPI(
        title="pixeldance",
        version=__version__,
        summary="Two pictures and a sentence in, a clip out.",
        description="Videos are jobs in the style of OpenAI's /v1/videos. Every error has the "
        "form {error: {message, type, param, code}}.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(api_routes(service, settings, worker))
    _correct_description(app, settings)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(PixelDanceError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    if has_page:
        _mount_page(app, service, settings)
    app.add_middleware(Guard, settings=settings)
    return app


def _mount_page(app: FastAPI, service: JobService, settings: ServerSettings) -> None:
    import gradio as gr  # it takes seconds
    from gradio.utils import get_upload_folder

    from pixeldance.server.page import build_page, page_assets, page_routes

    page, assets = build_page(service, settings), page_assets()
    app.include_router(page_routes(service, settings))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        css=assets.css,
        head=assets.head,
        theme=assets.theme,
        allowed_paths=[],
        show_error=False,
        max_file_size=settings.max_upload_bytes,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    )
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount)
    app.router.routes.append(_PageMount(mounted, Path(get_upload_folder())))


class _PageMount(Mount):
    """Gradio's application, as far as the page needs it; all else is not found.

    Args:
        mounted: The application.
        uploads: The one folder whose files may be asked for.
    """

    def __init__(self, mounted: Mount, uploads: Path) -> None:
        super().__init__(mounted.path, app=mounted.app, name="page")
        self._uploads = uploads.resolve()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        method = "GET" if scope.get("method") == "HEAD" else scope.get("method", "")
        calls, path = _PAGE_CALLS.get(method), scope["path"]
        if calls is None or not calls.fullmatch(path) or not self._is_own_file(path):
            return Match.NONE, {}
        return super().matches(scope)

    def _is_own_file(self, path: str) -> bool:
        _, is_file, name = path.partition("/file=")
        try:
            return not is_file or Path(name).resolve().is_relative_to(self._uploads)
        except (OSError, ValueError):  # such as a null byte
            return False


def _correct_description(app: FastAPI, settings: ServerSettings) -> None:
    """Have the OpenAPI document say what FastAPI does not know: tokens, and no status 422."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = describe()
        for calls in document["paths"].values():
            for call in calls.values():
                call["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        if settings.token is not None:
            schemes = {"token": {"type": "http", "scheme": "bearer"}}
            document["components"]["securitySchemes"] = schemes
            document["security"] = [{"token": []}]
            document["paths"]["/health"]["get"]["security"] = []
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


def _on_own_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PixelDanceError)
    return error_response(api_error_of(error))


def _on_wrong_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = str(problem["loc"][-1])
    told = ApiError(400, f"{name}: {problem['msg']}.", code="invalid_value", param=name)
    return error_response(told)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{request.method} {request.url.path[:200]}: {error.detail or phrase}."
    return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))
