"""Reads Wan checkpoints in diffusers' layout into our transformer."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 - diffusers looks for it beside a component's class
from transformers import PreTrainedModel, UMT5EncoderModel

from pixeldance.backbones.facts import is_released
from pixeldance.backbones.int8 import quantize_linears
from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

TRANSFORMERS = ("transformer", "transformer_2")


def _index(folder: str | Path) -> dict[str, Any]:
    index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("model_index.json is damaged.")
    return index


def check_components(
    folder: str | Path, components: Collection[str], *, known: Sequence[str]
) -> None:
    """Refuse a folder without a pipeline, and components that no pipeline has.

    Args:
        folder: Folder to load from.
        components: Names of components given in place of the folder's.
        known: Names of all components.

    Raises:
        CheckpointError: If ``model_index.json`` is missing.
        InputError: If a component is unknown.
    """
    for name in components:
        if name not in known:
            raise InputError(f"Unknown component {name!r}. Known are {', '.join(known)}.")
    if not (Path(folder) / "model_index.json").is_file():
        raise CheckpointError(
            f"No pipeline in {folder}: model_index.json is missing. Give a folder that "
            "save_pretrained has written."
        )


@contextmanager
def named_loading_errors(folder: str | Path) -> Iterator[None]:
    """Turn what libraries raise about damaged files into one line that names the folder.

    Args:
        folder: Folder that is loaded from.

    Yields:
        Nothing.

    Raises:
        CheckpointError: In place of their errors.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"The pipeline in {folder} cannot be loaded: {reason} Fetch its files again."
        ) from error


def load_small_text_encoder(folder: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load the text encoder of a Wan checkpoint with its linear layers in 8 bits.

    Args:
        folder: Folder with ``model_index.json``.
        dtype: Number format of its other parts, and of its states.

    Returns:
        The text encoder, on the CPU.

    Raises:
        CheckpointError: If it cannot be loaded.
    """
    with named_loading_errors(folder):
        text_encoder = UMT5EncoderModel.from_pretrained(
            str(folder), subfolder="text_encoder", dtype=dtype
        )
    quantize_linears(text_encoder)
    return text_encoder.eval()


def loading_options(
    folder: str | Path,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None,
    components: Mapping[str, Any],
) -> dict[str, Any]:
    """What diffusers' ``from_pretrained`` is to be told, with Wan's transformers loaded as ours.

    Args:
        folder: Folder with ``model_index.json``.
        dtype: One dtype for the large parts, or what each component gets.
        components: Components given in place of the folder's.

    Returns:
        Keyword arguments. Parts that no dtype is given for are in float32: among them autoencoder
        and image encoder, as released.
    """
    if isinstance(dtype, Mapping):
        chosen = dict(dtype)
    else:
        large = (*TRANSFORMERS, "text_encoder") if is_released(folder) else ("transformer",)
        chosen = dict.fromkeys(large, dtype or torch.float32)
    dtypes = {"default": torch.float32, **chosen}
    index = _index(folder)
    transformers = {
        name: PixelDanceTransformer3DModel.from_pretrained(
            str(folder), subfolder=name, dtype=dtypes.get(name, dtypes["default"])
        )
        for name in TRANSFORMERS
        if name not in components and index.get(name) == ["diffusers", "WanTransformer3DModel"]
    }
    return {"dtype": dtypes, **transformers, **components}
