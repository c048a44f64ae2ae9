"""Previews: small moving pictures made from latents by one matrix product, without decoding."""

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import get_module_execution_device
from einops import rearrange
from torch import Tensor

from pixeldance.models.alignment import GROUP
from pixeldance.models.codec import LinearVideoCodec, denormalized, encode_pictures

__all__ = ["LatentPreview"]

MAX_PIXELS = 600_000
"""Pixels of all frames of a preview together; beyond that it gets coarser."""

_SAMPLE_SIDE = 128
_NUM_SAMPLES = 4


class LatentPreview:
    """A linear map from the latents of a codec to small frames.

    For the package's own codec it is exact: the projection, undone and averaged over blocks of 8
    (or 16) pixels. For any other codec it is the least-squares fit of latent cells to the colours
    they stand for, over soft random pictures; one frame for each latent frame.

    Args:
        codec: A ``LinearVideoCodec``, or an autoencoder with the interface of
            ``AutoencoderKLWan``, which is asked to encode a few small pictures.
    """

    def __init__(self, codec: ModelMixin) -> None:
        self._codec = codec
        if isinstance(codec, LinearVideoCodec):
            self._maps = [_pooled(codec, *blocks) for blocks in ((GROUP, 2), (1, 2), (1, 1))]
        else:
            self._maps = [_fitted(codec)]

    @torch.no_grad()
    def frames(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Small frames of one clip.

        Args:
            latents: Normalised latents, ``1 channels frames height width``.

        Returns:
            ``frames height width 3``, uint8, evenly spread over the clip. Of the package's own
            codec all ``4k + 1`` frames of short clips, else one for each latent frame.
        """
        if isinstance(self._codec, LinearVideoCodec):
            latents = denormalized(self._codec, latents)
        cells = rearrange(latents[0].float(), "c t h w -> t h w c")
        num_cells = cells[..., 0].numel()
        blocks = next(
            (each for each in self._maps if num_cells * each.offset[..., 0].numel() <= MAX_PIXELS),
            self._maps[-1],
        )
        matrix, offset = (part.to(cells.device) for part in blocks)
        values = torch.einsum("t h w z, z q y x c -> t q h y w x c", cells, matrix)
        values += offset[:, None, :, None]
        video = rearrange(values, "t q h y w x c -> t q (h y) (w x) c")
        # The first frame fills its group.
        frames = torch.cat([video[:1].mean(1), rearrange(video[1:], "t q h w c -> (t q) h w c")])
        stride = -(-frames[..., 0].numel() // MAX_PIXELS)
        pixels = frames[::stride].add(1.0).mul(127.5).round().clamp(0.0, 255.0)
        return cast("npt.NDArray[np.uint8]", pixels.to(torch.uint8).cpu().numpy())


class _LinearMap(NamedTuple):
    """Pixels in [-1, 1] of one latent cell: ``latents @ matrix + offset``."""

    matrix: Tensor
    """``channels frames height width 3``."""
    offset: Tensor
    """``frames height width 3``."""


def _pooled(codec: LinearVideoCodec, frames: int, side: int) -> _LinearMap:
    """The decoding of a cell, averaged down to ``frames`` by ``side`` by ``side`` pixels."""
    patches = torch.cat([codec.components.float().mT, codec.patch_mean.float()[None]])
    pooled = rearrange(
        patches,
        "z (q g c y i x j) -> z q y x c (g i j)",
        c=3,
        q=frames,
        g=GROUP // frames,
        y=side,
        i=codec.spatial_factor // side,
        x=side,
        j=codec.spatial_factor // side,
    ).mean(-1)
    return _LinearMap(pooled[:-1], pooled[-1])


@torch.no_grad()
def _fitted(codec: ModelMixin) -> _LinearMap:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(_NUM_SAMPLES, 3, 8, 8, generator=generator) * 2.0 - 1.0
    pictures = torch.nn.functional.interpolate(
        coarse, size=(_SAMPLE_SIDE, _SAMPLE_SIDE), mode="bicubic"
    ).clamp(-1.0, 1.0)
    device = get_module_execution_device(codec)  # its own may be where it waits
    latents = encode_pictures(codec, pictures[:, :, None].to(device))[:, :, 0].cpu()
    colours = torch.nn.functional.adaptive_avg_pool2d(
        pictures, (latents.shape[2], latents.shape[3])
    )
    cells = rearrange(latents, "b c h w -> (b h w) c")
    inputs = torch.cat([cells, torch.ones(len(cells), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, rearrange(colours, "b c h w -> (b h w) c")).solution
    matrix = solution.to(device)
    return _LinearMap(
        rearrange(matrix[:-1], "z c -> z 1 1 1 c"), rearrange(matrix[-1], "c -> 1 1 1 c")
    )
