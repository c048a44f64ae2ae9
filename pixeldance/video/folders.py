"""Folders of frames, written so that a reader never meets half of one."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixeldance.errors import InputError, PixelDanceError

__all__ = ["check_folder_path", "new_folder"]

_FRAME_NAME = re.compile(r"frame-[0-9]{4,}\.png")


def check_folder_path(path: str | os.PathLike[str], *, recipe_name: str, overwrite: bool) -> Path:
    """Check that a folder of frames may be written at a path.

    Args:
        path: Where it shall go.
        recipe_name: The one file beside the frames.
        overwrite: Whether an older folder of frames may be replaced. A folder that holds anything
            else never is.

    Returns:
        The path as a ``Path``.

    Raises:
        InputError: If it may not.
    """
    path = Path(path)
    parent = path.parent
    if not path.name or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"A folder cannot be made at '{path}': '{parent}' does not exist or is not writable. "
            "Write somewhere else."
        )
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return path
    if not overwrite:
        raise InputError(
            f"'{path}' already exists. Choose another output name, or replace it with --overwrite "
            "(overwrite=True in Python)."
        )
    if path.is_symlink() or not path.is_dir():
        raise InputError(f"'{path}' is no folder. Choose another output name.")
    for entry in path.iterdir():
        if not (_FRAME_NAME.fullmatch(entry.name) or entry.name == recipe_name):
            raise InputError(
                f"The folder '{path}' holds '{entry.name}', which is no frame of a clip, so it is "
                "not replaced. Choose another output name."
            )
    return path


@contextmanager
def new_folder(path: Path, *, recipe_name: str, overwrite: bool) -> Iterator[Path]:
    """Write a folder of frames, all of it or nothing.

    Args:
        path: Its final name.
        recipe_name: The one file beside the frames.
        overwrite: Whether an older folder of frames may be replaced; looked at again at the end.

    Yields:
        Path: A temporary folder beside it, to be filled.

    Raises:
        InputError: If a folder has appeared meanwhile and must not be replaced.
        PixelDanceError: If the operating system refuses to write.
    """
    token = secrets.token_hex(8)
    temporary = path.with_name(f".pixeldance-{token}.partial")
    old = path.with_name(f".pixeldance-{token}.old")
    try:
        temporary.mkdir()
        yield temporary
        check_folder_path(path, recipe_name=recipe_name, overwrite=overwrite)
        if path.is_dir():
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if old.is_dir():
                old.rename(path)
            raise
    except OSError as error:
        raise PixelDanceError(
            f"Could not write '{path}': {error.strerror or error}. Nothing was left behind; check "
            "the free space and the permissions of the folder."
        ) from error
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
