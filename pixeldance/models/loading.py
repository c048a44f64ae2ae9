"""Where the weights of a model are, which models there are, and their fingerprint.

A model is a folder that ``PixelDancePipeline.save_pretrained`` has written. A name is looked up in
the folders of ``search_folders``, in this order; a path and a hub id (``owner/name``) work as well.
"""

import hashlib
import importlib.util
import os
import re
from difflib import get_close_matches
from pathlib import Path

from pixeldance.errors import CheckpointError, DataError

WEIGHTS_VARIABLE = "PIXELDANCE_WEIGHTS"
"""Environment variable: a folder with models in it, searched first."""

_INDEX_FILE = "model_index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FINGERPRINTED = (".json", ".safetensors")


def search_folders() -> list[Path]:
    """Folders in which models are looked up by name.

    Returns:
        ``$PIXELDANCE_WEIGHTS`` if set, ``weights/`` beside the package (a checkout) and inside it
        (an installed wheel); whether they exist or not.
    """
    package = Path(__file__).parents[1]
    given = os.environ.get(WEIGHTS_VARIABLE)
    chosen = [Path(given).expanduser()] if given else []
    return [*chosen, package.parent / "weights", package / "weights"]


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model.

    Args:
        folder: A path that may not exist.

    Returns:
        True if it has a pipeline's index file.
    """
    return (folder / _INDEX_FILE).is_file()


def available_models() -> dict[str, Path]:
    """Models that ``load`` finds by name.

    Returns:
        Folder by name, sorted by name; of two with one name the one that is found first.
    """
    found: dict[str, Path] = {}
    for folder in search_folders():
        if folder.is_dir():
            for model in folder.iterdir():
                if is_model(model):
                    found.setdefault(model.name, model)
    return dict(sorted(found.items()))


def find_weights(model: str | Path, *, download: bool = False) -> Path:
    """Find the folder of a model.

    Args:
        model: A folder, a name, or a hub id.
        download: Whether a hub id that is not here may be fetched, however large it is.

    Returns:
        The folder.

    Raises:
        CheckpointError: If there is none; for a hub id that is not here, with its size and licence.
    """
    folder = Path(model).expanduser()
    if is_model(folder):
        return folder
    if folder.is_dir():
        raise CheckpointError(
            f"The folder {str(model)!r} holds no model: {_INDEX_FILE} is missing. Give a folder "
            "that save_pretrained has written."
        )
    known = available_models()
    if str(model) in known:
        return known[str(model)]
    if _HUB_ID.fullmatch(str(model)):
        return _from_hub(str(model), download=download)
    close = get_close_matches(str(model), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    names = ", ".join(known) or "none"
    raise CheckpointError(
        f"There is no model {str(model)!r}.{hint} Known models: {names}. Give one of them, the "
        f"path of a folder, or set {WEIGHTS_VARIABLE} to the folder that holds your models."
    )


def _from_hub(hub_id: str, *, download: bool) -> Path:
    from pixeldance.models.hub import cached_checkpoint, fetch_checkpoint, plan_download

    cached = cached_checkpoint(hub_id)
    if cached is not None:
        return cached
    if download:
        return fetch_checkpoint(hub_id)
    raise CheckpointError(
        f"This model is not on this machine, and fetching it takes {plan_download(hub_id)}. "
        f"Run: pixeldance fetch {hub_id}"
    )


def weights_sha256(folder: str | Path) -> str:
    """Fingerprint of a model: of its weights and its configuration, wherever they lie.

    Args:
        folder: Folder of the model.

    Returns:
        SHA-256 over the names and contents of its ``.json`` and ``.safetensors`` files.

    Raises:
        CheckpointError: If the folder holds no model.
    """
    root = Path(folder)
    if not is_model(root):
        raise CheckpointError(f"The folder {str(folder)!r} holds no model: no {_INDEX_FILE}.")
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.suffix in _FINGERPRINTED and path.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        content = _cached_sha256(files[name])
        if content is None:
            with files[name].open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def _cached_sha256(path: Path) -> str | None:
    """The digest that the hub's cache has checked: large files lie there under it."""
    target = path.resolve()
    is_cached = path.is_symlink() and target.parent.name == "blobs"
    return target.name if is_cached and _SHA256.fullmatch(target.name) else None


def packaged_file(
    package: str, name: str, *, sha256: str, install: str = "`make eval-peers`"
) -> Path:
    """Find a file of an installed package without running the package.

    Args:
        package: Name to import.
        name: Path of the file in the package.
        sha256: What the file must hash to.
        install: The command that installs the package, for the error message.

    Returns:
        The file.

    Raises:
        DataError: If the package or the file is missing, or the file is another.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The package {package} is not installed. Run {install}.")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise DataError(f"The package {package} has no file {name}. Run {install}.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{name} of the package {package} has sha256 {found[:12]}, known is {sha256[:12]}. "
            f"Uninstall the package and run {install}."
        )
    return path
