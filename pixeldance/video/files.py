"""Writing files so that a reader never meets half of one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixeldance.errors import InputError, PixelDanceError

__all__ = ["check_output_path", "new_files"]


def check_output_path(
    path: str | os.PathLike[str], *, suffix: str, overwrite: bool, companion: str | None = None
) -> Path:
    """Check that a file may be written at a path, before any work is done for it.

    Args:
        path: Where the file shall go.
        suffix: The only file name ending allowed, with its dot.
        overwrite: Whether a file that is already there may be replaced.
        companion: Ending of a second file of the same name that must not be there either.

    Returns:
        The path as a ``Path``.

    Raises:
        InputError: If the ending is another, the folder is missing or read-only, a folder has that
            name, or a file would be overwritten.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise InputError(
            f"The output must end in '{suffix}', got '{path}'. "
            f"Write to '{path.with_suffix(suffix) if path.name else 'clip' + suffix}'."
        )
    folder = path.parent
    if not folder.is_dir():
        raise InputError(
            f"The output folder '{folder}' does not exist. Make it (mkdir -p '{folder}') "
            "or write somewhere else."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"The output folder '{folder}' is not writable. Choose another folder or change its "
            "permissions."
        )
    targets = [path] if companion is None else [path, path.with_suffix(companion)]
    for target in targets:
        if target.is_dir():
            raise InputError(f"'{target}' is a folder. Choose another output name.")
        if not overwrite and os.path.lexists(target):
            raise InputError(
                f"'{target}' already exists. Choose another output name, or replace it with "
                "--overwrite (overwrite=True in Python)."
            )
    return path


@contextmanager
def new_files(*targets: Path, overwrite: bool) -> Iterator[list[Path]]:
    """Write several files of one folder, all of them or none.

    The block writes to the temporary names it is given. Leaving it brings them to the disk and
    renames them in the order of the targets; an exception, Ctrl-C included, removes them. If a
    rename fails, the targets renamed before it get back what they held.

    Args:
        *targets: Final names. The largest file goes last: it is never read back.
        overwrite: Whether targets that exist may be replaced; looked at again before the rename,
            since the block may take long.

    Yields:
        list[Path]: One temporary name in the same folder per target.

    Raises:
        InputError: If a target has appeared meanwhile and must not be overwritten.
        PixelDanceError: If the operating system refuses to write.
    """
    # Short names of our own: a legal but long target name plus an ending may be too long.
    temporaries = [
        target.with_name(f".pixeldance-{secrets.token_hex(8)}.partial") for target in targets
    ]
    try:
        yield temporaries
        for temporary in temporaries:
            _flush(temporary)
        if not overwrite:
            for target in targets:
                check_output_path(target, suffix=target.suffix.lower(), overwrite=False)
        _rename_all(list(zip(temporaries, targets, strict=True)))
        _flush_folder(targets[-1].parent)
    except OSError as error:
        raise PixelDanceError(
            f"Could not write '{targets[-1]}': {error.strerror or error}. Nothing was left behind; "
            "check the free space and the permissions of the folder."
        ) from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _rename_all(pairs: list[tuple[Path, Path]]) -> None:
    """Rename in order; after a failure give the earlier targets their old content back."""
    renamed: list[tuple[Path, bytes | None]] = []
    try:
        for i, (temporary, target) in enumerate(pairs):
            is_last = i == len(pairs) - 1
            before = target.read_bytes() if not is_last and target.is_file() else None
            os.replace(temporary, target)  # noqa: PTH105 - the call that atomicity rests on
            renamed.append((target, before))
    except BaseException:
        if len(renamed) < len(pairs):
            for target, before in renamed:
                if before is None:
                    target.unlink(missing_ok=True)
                else:
                    target.write_bytes(before)
        raise


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Bring the new names to the disk, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
