"""Files that were dropped on the page."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gradio.utils import get_upload_folder

from pixeldance.errors import DataError, InputError
from pixeldance.video import read_recipe

__all__ = ["Upload", "uploaded_file"]

_CLIPS = {".mp4", ".mov", ".m4v"}


class Upload(NamedTuple):
    """A file in Gradio's upload folder."""

    path: Path
    name: str
    """Its file name."""

    @property
    def kind(self) -> Literal["clip", "picture", "recipe"]:
        """What its name says it is; reading it tells whether that is true."""
        suffix = self.path.suffix.lower()
        if suffix == ".json":
            return "recipe"
        return "clip" if suffix in _CLIPS else "picture"

    def recipe(self) -> dict[str, Any] | None:
        """How it was made, if it is a clip with a recipe or a recipe file.

        Returns:
            The recipe; None for a clip or picture without one.

        Raises:
            InputError: If it is no readable clip, or a ``.json`` file without a recipe.
            DataError: If its recipe is damaged.
        """
        if self.kind == "picture":
            return None
        try:
            return read_recipe(self.path)
        except DataError:
            raise
        except InputError:
            if self.kind == "recipe":
                raise InputError(
                    f"{self.name!r} holds no pixeldance recipe. Drop a clip made here, or the "
                    ".json file beside one."
                ) from None
            return None


def uploaded_file(path: object, name: object = None) -> Upload:
    """Check that a file was uploaded to this page.

    Gradio checks the paths in its own components' values only, and only those that carry the mark
    of an upload; this one comes with an event.

    Args:
        path: Where the browser says that it is.
        name: Its name, as the browser says; by default that of the path.

    Returns:
        The file.

    Raises:
        InputError: If it lies anywhere else, or is not there.
    """
    root = Path(get_upload_folder()).resolve()
    found = None
    if isinstance(path, str):
        with suppress(OSError, ValueError):  # such as a null byte
            found = Path(path).resolve()
    if found is None or not found.is_relative_to(root) or not found.is_file():
        raise InputError("The file was not uploaded to this page. Choose it again.")
    return Upload(found, name if isinstance(name, str) and name else found.name)
