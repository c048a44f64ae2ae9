"""Export of averaged weights in diffusers' layout, without gathering them on one process."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from pixeldance.training.distributed import Processes
from pixeldance.training.part import Part

__all__ = ["export_weights"]

_MAX_FILE_BYTES = 10 * 10**9  # as diffusers splits its files


def export_weights(
    part: Part, weights: dict[str, Tensor], folder: Path, processes: Processes
) -> None:
    """Write a folder that ``from_pretrained`` loads; an older one stays until this is whole.

    Args:
        part: What is exported.
        weights: By name; whole on every process, or shards.
        folder: Where to.
        processes: Those of the run, all of which call this.
    """
    scratch = folder.with_name(f"{folder.name}.tmp")
    if processes.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    processes.wait()
    if any(isinstance(value, DTensor) for value in weights.values()):
        _write_shards(part, weights, scratch, processes)
    elif processes.is_main:
        part.export(weights, scratch)
    processes.wait()
    if processes.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    processes.wait()


def _write_shards(
    part: Part, weights: dict[str, Tensor], folder: Path, processes: Processes
) -> None:
    """Every process writes its shards; the main one joins them on the disk, file by file."""
    halved = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    file_of = _files(halved)
    save(
        halved,
        storage_writer=HuggingFaceStorageWriter(
            str(folder), file_of, save_distributed=True, enable_consolidation=True
        ),
        process_group=processes.group,
    )
    if processes.is_main:
        shutil.rmtree(folder / "sharded")
        _rename_for_diffusers(folder, halved, file_of)
        cast("Any", part.model).save_config(folder)


def _files(weights: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file, from 1, in which each weight goes."""
    file_of: dict[str, int] = {}
    number, filled = 1, 0
    for name, value in weights.items():
        size = value.numel() * value.element_size()
        if filled and filled + size > _MAX_FILE_BYTES:
            number, filled = number + 1, 0
        filled += size
        file_of[name] = number
    return file_of


def _rename_for_diffusers(
    folder: Path, weights: dict[str, Tensor], file_of: dict[str, int]
) -> None:
    """``model-00001-of-00002`` to the names and the index that diffusers knows."""
    count = max(file_of.values())
    for made_by_torch in folder.glob("*.json"):
        made_by_torch.unlink()
    stem = SAFETENSORS_WEIGHTS_NAME.removesuffix(".safetensors")
    names = {n: f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
    if count == 1:
        names[1] = SAFETENSORS_WEIGHTS_NAME
    for number, name in names.items():
        (folder / f"model-{number:05d}-of-{count:05d}.safetensors").rename(folder / name)
    if count > 1:
        total = sum(value.numel() * value.element_size() for value in weights.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: names[number] for name, number in file_of.items()},
        }
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")
