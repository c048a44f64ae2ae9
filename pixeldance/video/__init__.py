"""Clip files: writing, reading, the recipe inside them, contact sheets."""

from pixeldance.video.export import EXPORT_FORMATS, export_clip
from pixeldance.video.read import (
    ClipFile,
    ClipFrame,
    read_clip,
    read_frame,
    read_recipe,
    sidecar_path,
)
from pixeldance.video.recipe import (
    build_recipe,
    decode_pictures,
    frames_sha256,
    installed_versions,
    summarize_recipe,
)
from pixeldance.video.sheet import contact_sheet, write_contact_sheet
from pixeldance.video.write import check_clip_path, write_clip

__all__ = [
    "EXPORT_FORMATS",
    "ClipFile",
    "ClipFrame",
    "build_recipe",
    "check_clip_path",
    "contact_sheet",
    "decode_pictures",
    "export_clip",
    "frames_sha256",
    "installed_versions",
    "read_clip",
    "read_frame",
    "read_recipe",
    "sidecar_path",
    "summarize_recipe",
    "write_clip",
    "write_contact_sheet",
]
