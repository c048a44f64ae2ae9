"""Checkpoints of the hub: what is already here, and what fetching would take.

Nothing is downloaded unless it was asked for by name and size.
"""

import json
from pathlib import Path
from typing import NamedTuple

from pixeldance.errors import CheckpointError

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
"""Weights, configurations and the card, which names the licence; never pickles."""

_INDEX_FILE = "model_index.json"


class Download(NamedTuple):
    """What fetching a checkpoint would take."""

    hub_id: str
    num_files: int
    num_bytes: int
    licence: str

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.hub_id}: {self.num_bytes / 1e9:.1f} GB in {self.num_files} files, licence "
            f"{self.licence}"
        )


def is_complete(folder: Path) -> bool:
    """Whether every part that a checkpoint's index names is there.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        False after a download that was cut off.
    """
    if not (folder / _INDEX_FILE).is_file():
        return False
    index = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
    parts = [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and None not in value
    ]
    if not all(any((folder / name).glob("*.json")) for name in parts):
        return False
    for shards in folder.glob("*/*.safetensors.index.json"):
        files = json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values()
        if not all((shards.parent / name).is_file() for name in files):
            return False
    return True


def cached_checkpoint(hub_id: str) -> Path | None:
    """The folder of a checkpoint that was fetched before, without asking the network.

    Args:
        hub_id: ``owner/name``.

    Returns:
        None if it is not here, or not all of it.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub_id, allow_patterns=PATTERNS, local_files_only=True)
    except OSError:
        return None
    return Path(found) if is_complete(Path(found)) else None


def plan_download(hub_id: str) -> Download:
    """Ask the hub what a checkpoint is made of.

    Args:
        hub_id: ``owner/name``.

    Returns:
        Files that are not here yet, their size, and the licence on the checkpoint's card.

    Raises:
        CheckpointError: If the hub cannot be asked.
    """
    from huggingface_hub import model_info, snapshot_download

    try:
        files = snapshot_download(hub_id, allow_patterns=PATTERNS, dry_run=True)
        info = model_info(hub_id)
    except Exception as error:
        raise CheckpointError(_unreachable(hub_id, error)) from error
    missing = [file for file in files if file.will_download]
    licences = [tag for tag in info.tags or [] if tag.startswith("license:")]
    return Download(
        hub_id,
        len(missing),
        sum(file.file_size or 0 for file in missing),
        licences[0].removeprefix("license:") if licences else "not stated: read its page first",
    )


def fetch_checkpoint(hub_id: str) -> Path:
    """Download a checkpoint; what is already here is not fetched again.

    Args:
        hub_id: ``owner/name``.

    Returns:
        Its folder.

    Raises:
        CheckpointError: If that fails.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS))
    except Exception as error:
        raise CheckpointError(_unreachable(hub_id, error)) from error


def _unreachable(hub_id: str, error: Exception) -> str:
    return (
        f"{hub_id!r} is no folder here and cannot be downloaded from the hub "
        f"({type(error).__name__}). Check the name and the network, or give a local folder."
    )
