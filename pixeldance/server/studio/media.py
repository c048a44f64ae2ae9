"""Pictures and clips for the page, by job and fingerprint: no path comes from a browser."""

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from pixeldance.errors import InputError
from pixeldance.jobs import ClipFiles, JobService
from pixeldance.pictures import load_picture
from pixeldance.server.studio.drafts import DraftPictures
from pixeldance.server.studio.history import ClipFile, ClipKey
from pixeldance.video import export_clip, read_clip

__all__ = ["MediaUrls", "media_router"]

PREFIX = "studio/media"
"""Where the routes are, relative to the page."""

HEADERS = {"Cache-Control": "private, max-age=86400"}
"""Nothing that is served here ever changes."""

_EXPORTS: dict[ClipFile, str] = {
    "clip.webm": "video/webm",
    "clip.gif": "image/gif",
    "frames.zip": "application/zip",
}
_JobId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{1,64}$")]
_Sha256 = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")]


class MediaUrls:
    """Addresses of what ``media_router`` serves, relative to the page."""

    def picture(self, sha256: str) -> str:
        """The small copy of a picture."""
        return f"{PREFIX}/pictures/{sha256}.jpg"

    def clip(self, key: ClipKey, name: ClipFile) -> str:
        """A file of a finished clip."""
        return f"{PREFIX}/clips/{key[0]}/{key[1]}/{name}"


def media_router(service: JobService, drafts: DraftPictures) -> APIRouter:
    """Routes that the page takes its pictures and clips from.

    Args:
        service: The service.
        drafts: Pictures that belong to no job yet.

    Returns:
        Routes for the app that the page is mounted in, at the same place as the page.
    """
    router = APIRouter(prefix=f"/{PREFIX}", include_in_schema=False)
    exporting = threading.Semaphore(1)  # encoding takes the processor from the worker

    @router.get("/pictures/{sha256}.jpg")
    def picture(sha256: _Sha256) -> FileResponse:
        for path in (service.store.folder.picture_thumbnail(sha256), drafts.thumbnail(sha256)):
            if path.is_file():
                return FileResponse(path, headers=HEADERS, media_type="image/jpeg")
        raise HTTPException(404, "There is no such picture.")

    @router.get("/clips/{job_id}/{number}/{name}")
    def clip(
        job_id: _JobId,
        number: Annotated[int, PathParameter(ge=1, le=16)],
        name: ClipFile,
        download: bool = False,
    ) -> FileResponse:
        try:
            files = service.clip_files(job_id, number)
        except InputError as error:
            raise HTTPException(404, str(error)) from None
        stem = f"pixeldance-{job_id}-{number}"
        title = f"{stem}-last.png" if name == "last.png" else f"{stem}{Path(name).suffix}"
        filename = title if download else None
        if name not in _EXPORTS:
            path = _files_by_name(files)[name]
            if not path.is_file():
                raise HTTPException(404, "The clip is not there any more.")
            return FileResponse(path, headers=HEADERS, filename=filename)
        with exporting:
            path = _export(files, name)
        return FileResponse(
            path,
            headers=HEADERS,
            media_type=_EXPORTS[name],
            filename=filename,
            background=BackgroundTask(shutil.rmtree, path.parent, ignore_errors=True),
        )

    return router


def _files_by_name(files: ClipFiles) -> dict[ClipFile, Path]:
    return {
        "clip.mp4": files.clip,
        "clip.json": files.recipe,
        "last.png": files.last_frame,
        "thumbnail.jpg": files.thumbnail,
    }


def _export(files: ClipFiles, name: ClipFile) -> Path:
    """Write a clip in another form, to a new folder that holds nothing else."""
    clip = read_clip(files.clip)
    frames = clip.frames.copy()
    frames[-1] = np.asarray(load_picture(files.last_frame))  # what is known without loss
    folder = Path(tempfile.mkdtemp(prefix="pixeldance-export-"))
    try:
        return export_clip(folder / name, frames, fps=clip.fps, recipe=clip.recipe)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
