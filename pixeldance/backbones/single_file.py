"""Transformers in one safetensors file, with the names of diffusers or of Wan's own code."""

from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixeldance.errors import CheckpointError
from pixeldance.models.transformer import PixelDanceTransformer3DModel


def transformer_from_file(
    file: str | Path, config: str | Path, *, dtype: torch.dtype = torch.float32
) -> PixelDanceTransformer3DModel:
    """Load a transformer from one file.

    Args:
        file: A ``.safetensors`` file with the weights of one transformer.
        config: Folder with the ``config.json`` of a transformer of the same kind, such as the
            folder ``transformer`` of the checkpoint whose other parts are used.
        dtype: Number format of its weights.

    Returns:
        The transformer, on the CPU.

    Raises:
        CheckpointError: If the file cannot be read, or is of another kind.
    """
    path = Path(file)
    if path.suffix != ".safetensors" or not path.is_file():
        raise CheckpointError(f"{str(file)!r} is no .safetensors file. Other formats are not read.")
    try:
        weights = _diffusers_names(load_file(path))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read as a Wan transformer ({error}). Fetch it again."
        ) from error
    with torch.device("meta"):
        model = PixelDanceTransformer3DModel.from_config(
            PixelDanceTransformer3DModel.load_config(str(config))
        )
    expected = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    ignored = tuple(PixelDanceTransformer3DModel._keys_to_ignore_on_load_unexpected)
    given = {
        name: tuple(one.shape)
        for name, one in weights.items()
        if not any(part in name for part in ignored)
    }
    differing = [name for name in {**expected, **given} if expected.get(name) != given.get(name)]
    if differing:
        raise CheckpointError(
            f"{path.name} is of another kind than the transformer in {Path(config).name}: "
            f"{len(differing)} weights differ, {differing[0]} is {given.get(differing[0])}, needed "
            f"is {expected.get(differing[0])}. Give the folder of the matching checkpoint."
        )
    model.load_state_dict(
        {name: weights[name].to(_dtype_of(name, dtype)) for name in expected}, assign=True
    )
    return model.eval().requires_grad_(False)


def _diffusers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if any("scale_weight" in name or name.endswith("scaled_fp8") for name in weights):
        raise ValueError("scaled fp8 weights are not supported")
    if any(".self_attn." in name for name in weights):
        converted: dict[str, Tensor] = convert_wan_transformer_to_diffusers(weights)
        return converted
    return weights


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    kept = PixelDanceTransformer3DModel._keep_in_fp32_modules
    return torch.float32 if any(part in name.split(".") for part in kept) else dtype
