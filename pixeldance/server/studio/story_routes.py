"""Routes of the storyboard. The story is the browser's, films are jobs: nothing is kept here."""

import io
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from PIL import Image

from pixeldance.errors import DataError, PixelDanceError
from pixeldance.jobs.pictures import THUMBNAIL_SIDE
from pixeldance.server.studio.context import StudioContext
from pixeldance.server.studio.form_events import FormEvents
from pixeldance.server.studio.media import HEADERS
from pixeldance.server.studio.story_file import draft_as_yaml, import_story
from pixeldance.server.studio.story_view import StoryView
from pixeldance.server.studio.uploads import Upload, uploaded_file

__all__ = ["story_router"]

_Draft = Annotated[dict[str, Any], Body()]
_Key = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")]


def story_router(context: StudioContext) -> APIRouter:
    """Routes that the storyboard of the page uses.

    Args:
        context: The service and what goes with it.

    Returns:
        Routes for the app that the page is mounted in, at the same place as the page.
    """
    router = APIRouter(prefix="/studio/story", include_in_schema=False)
    view, events = StoryView(context), FormEvents(context)

    def told(answer: Callable[[], Any]) -> JSONResponse:
        """An answer, or what is wrong in words without folders."""
        try:
            return JSONResponse(answer())
        except PixelDanceError as error:
            return JSONResponse({"error": {"message": context.plain(error)}}, status_code=400)

    @router.post("/look")
    def look(draft: _Draft) -> JSONResponse:
        return told(lambda: view.look(draft))

    @router.post("/films")
    def make(draft: _Draft) -> JSONResponse:
        return told(lambda: {"job": view.make(draft).id})

    @router.post("/stop")
    def stop(draft: _Draft) -> JSONResponse:
        return told(lambda: view.stop(draft))

    @router.post("/pictures")
    def add_picture(file: _Draft) -> JSONResponse:
        return told(lambda: events.add_picture(_upload(file)).to_json())

    @router.post("/export")
    def export(draft: _Draft) -> Response:
        text = draft_as_yaml(draft, context.drafts)
        return Response(text, media_type="application/yaml")

    @router.post("/import")
    def take(file: _Draft) -> JSONResponse:
        def imported() -> dict[str, Any]:
            upload = _upload(file)
            story = import_story(upload.path, upload.name, context.drafts, models=context.models)
            return story._asdict()

        return told(imported)

    @router.get("/posters/{key}.jpg")
    def poster(key: _Key) -> Response:
        try:
            picture = Image.fromarray(view.cache.frame(key, 0))
        except DataError:
            raise HTTPException(404, "There is no such clip.") from None
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=85)
        return Response(buffer.getvalue(), media_type="image/jpeg", headers=HEADERS)

    return router


def _upload(file: Mapping[str, Any]) -> Upload:
    return uploaded_file(file.get("path"), file.get("name"))
