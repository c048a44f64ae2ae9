"""The learned half of the codec's decoder: sharp frames from coarse ones and the given pictures.

A projection onto few components loses detail, but a first or last picture still has it. For every
coarse frame the refiner (1) finds, by global feature matching as in GMFlow, where in each reference
picture its parts come from, (2) corrects those displacements with a few convolutions, (3) warps
the sharp references accordingly and (4) lets a small U-Net choose, per pixel, between the warped
references and the coarse frame, and add what neither has.

The four frames of one latent frame are refined together and independently of all others, so
decoding a few latent frames at a time gives the same pictures as decoding all.

References:
    Xu et al. 2022, GMFlow, https://arxiv.org/abs/2111.13680 (section 3.2, global matching).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

GROUP = 4  # frames per latent frame
_UNSHUFFLE = 4  # the U-Net works at 1/4 of the resolution
_MATCH = 8  # matching and alignment work at 1/8 of the resolution
_TIME_UNIT = 24.0  # frames that count as 1 in the time channels


class Aligned(NamedTuple):
    """References brought into the place of coarse frames.

    Attributes:
        pictures: ``(n, r, 4, 3, height, width)``, the warped references.
        confidence: ``(n, r, 4, 1, height / 8, width / 8)``, the largest matching probability.
    """

    pictures: Tensor
    confidence: Tensor


class ResidualBlock(nn.Module):
    """Pre-activation residual block with two 3 x 3 convolutions; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape, ``(batch, channels, height, width)``."""
        hidden = self.conv_in(F.silu(self.norm(features)))
        return features + self.conv_out(F.silu(hidden))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _stage(channels: int, depth: int = 2) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(depth)])


class ReferenceRefiner(nn.Module):
    """Refines groups of four coarse frames with up to two reference pictures.

    Args:
        channels: Widths of the U-Net at 1/4, 1/8 and 1/16 of the resolution.
        match_channels: Width of the matching features.
        align_channels: Width of the network that corrects the displacements.
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (80, 112, 160),
        match_channels: int = 64,
        align_channels: int = 64,
    ) -> None:
        super().__init__()
        pixels = 3 * _UNSHUFFLE**2
        fine, middle, coarse = channels

        self.match = nn.Sequential(
            nn.PixelUnshuffle(_MATCH),
            nn.Conv2d(3 * _MATCH**2, match_channels, 1),
            ResidualBlock(match_channels),
            ResidualBlock(match_channels),
            nn.Conv2d(match_channels, match_channels, 1),
        )
        self.log_temperature = nn.Parameter(torch.tensor(2.3))
        self.nearness = nn.Parameter(torch.tensor(0.0))

        self.align_in = nn.Conv2d(2 * 3 * _MATCH**2 + 4, align_channels, 1)
        self.align = nn.Sequential(
            _stage(align_channels),
            nn.GroupNorm(8, align_channels),
            nn.SiLU(),
            _zeroed(nn.Conv2d(align_channels, 2, 3, padding=1)),
        )

        self.enter = nn.Conv2d(GROUP * (3 * pixels + 2) + 4, fine, 1)
        self.down_fine = _stage(fine)
        self.to_middle = nn.Conv2d(fine, middle, 2, stride=2)
        self.down_middle = _stage(middle)
        self.to_coarse = nn.Conv2d(middle, coarse, 2, stride=2)
        self.bottom = _stage(coarse)
        self.from_coarse = nn.ConvTranspose2d(coarse, middle, 2, stride=2)
        self.up_middle = _stage(middle)
        self.from_middle = nn.ConvTranspose2d(middle, fine, 2, stride=2)
        self.up_fine = _stage(fine)
        # per pixel and frame: 3 colours to add and 3 choices (coarse, first reference, second)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, fine),
            nn.SiLU(),
            _zeroed(nn.Conv2d(fine, 2 * GROUP * pixels, 1)),
        )

    def forward(
        self,
        coarse: Tensor,
        references: Tensor,
        coarse_references: Tensor,
        offsets: Tensor,
        present: Tensor,
    ) -> tuple[Tensor, Aligned]:
        """Refine.

        Args:
            coarse: ``(n, 4, 3, height, width)`` in about [-1, 1], sides multiples of 16.
            references: ``(n, 2, 3, height, width)``, the given pictures; anything where absent.
            coarse_references: Same shape, the references after projection.
            offsets: ``(n, 2)``, frames from the group's last frame to each reference.
            present: ``(n, 2)`` bool.

        Returns:
            Refined frames like ``coarse`` and the aligned references.
        """
        mask = present[:, :, None, None, None, None]
        aligned = self._aligned(coarse, references, coarse_references, mask)
        confidence = rearrange(aligned.confidence * mask, "n r q 1 h w -> n (r q) h w")
        time = (offsets.to(coarse.dtype) / _TIME_UNIT) * present
        where = torch.cat([time, present.to(coarse.dtype)], dim=1)

        small = F.pixel_unshuffle(coarse, _UNSHUFFLE)  # n 4 48 h w
        sources = F.pixel_unshuffle(aligned.pictures * mask, _UNSHUFFLE)
        height, width = small.shape[-2:]
        inputs = torch.cat(
            [
                rearrange(small, "n q c h w -> n (q c) h w"),
                rearrange(sources, "n r q c h w -> n (r q c) h w"),
                F.interpolate(confidence, (height, width), mode="bilinear", align_corners=False),
                where[:, :, None, None].expand(-1, -1, height, width),
            ],
            dim=1,
        )
        colours, choice = self._unet(inputs).chunk(2, dim=1)
        colours = _to_pixels(colours)
        logits = _to_pixels(choice).float()  # n 4 3 height width; the 3 are the sources
        absent = ~present[:, None, :, None, None]
        logits = torch.cat([logits[:, :, :1], logits[:, :, 1:].masked_fill(absent, -1.0e4)], dim=2)
        weights = logits.softmax(dim=2)
        candidates = torch.cat(
            [coarse[:, :, None], rearrange(aligned.pictures, "n r q c h w -> n q r c h w")], dim=2
        )
        blended = (weights[:, :, :, None] * candidates).sum(dim=2)
        return blended + colours.float(), aligned

    def _unet(self, inputs: Tensor) -> Tensor:
        fine = self.down_fine(self.enter(_as_input(inputs, self.enter)))
        height, width = fine.shape[-2:]
        # sides are multiples of 4 here, so two halvings are exact
        middle = self.down_middle(self.to_middle(fine))
        bottom = self.bottom(self.to_coarse(middle))
        middle = self.up_middle(middle + self.from_coarse(bottom))
        fine = self.up_fine(fine + self.from_middle(middle))
        assert fine.shape[-2:] == (height, width), "sides must be multiples of 16"
        return self.leave(fine)

    def _aligned(
        self, coarse: Tensor, references: Tensor, coarse_references: Tensor, mask: Tensor
    ) -> Aligned:
        count, _, _, height, width = coarse.shape
        flow, confidence = self._matched(coarse, coarse_references)
        sharp = repeat(references, "n r c h w -> (n r q) c h w", q=GROUP)
        warped = warp(sharp, _upsampled(flow, (height, width)))

        frames = repeat(coarse, "n q c h w -> (n r q) c h w", r=2)
        cells = (height // _MATCH, width // _MATCH)
        there = repeat(mask[..., 0, 0], "n r 1 1 -> (n r q) 1 h w", q=GROUP, h=1, w=1)
        inputs = torch.cat(
            [
                F.pixel_unshuffle(frames, _MATCH),
                F.pixel_unshuffle(warped, _MATCH),
                flow / 32,
                confidence,
                there.to(coarse.dtype).expand(-1, -1, *cells),
            ],
            dim=1,
        )
        hidden = self.align_in(_as_input(inputs, self.align_in))
        flow = flow + 4.0 * self.align(hidden).float()
        pictures = warp(sharp, _upsampled(flow, (height, width)))
        shape = {"n": count, "r": 2, "q": GROUP}
        return Aligned(
            rearrange(pictures, "(n r q) c h w -> n r q c h w", **shape),
            rearrange(confidence, "(n r q) c h w -> n r q c h w", **shape),
        )

    def _matched(self, coarse: Tensor, coarse_references: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement in pixels ``(n r 4, 2, height / 8, width / 8)`` and matching probability."""
        rows, columns = coarse.shape[-2] // _MATCH, coarse.shape[-1] // _MATCH
        queries = self.match(rearrange(coarse, "n q c h w -> (n q) c h w"))
        keys = self.match(rearrange(coarse_references, "n r c h w -> (n r) c h w"))
        queries = rearrange(
            F.normalize(queries.float(), dim=1), "(n q) c h w -> n q (h w) c", q=GROUP
        )
        keys = rearrange(F.normalize(keys.float(), dim=1), "(n r) c h w -> n r (h w) c", r=2)

        y, x = torch.meshgrid(
            torch.arange(rows, device=coarse.device),
            torch.arange(columns, device=coarse.device),
            indexing="ij",
        )
        cells = torch.stack([x, y], dim=-1).flatten(0, 1).float()
        distance = (cells[:, None] - cells[None]).square().sum(-1)
        logits = torch.einsum("nqac,nrbc->nrqab", queries, keys) * self.log_temperature.exp()
        weights = (logits - 0.01 * self.nearness.exp() * distance).softmax(dim=-1)
        flow = torch.einsum("nrqab,bd->nrqad", weights, cells) - cells
        flow = rearrange(flow, "n r q (h w) d -> (n r q) d h w", h=rows) * _MATCH
        confidence = rearrange(weights.amax(dim=-1), "n r q (h w) -> (n r q) 1 h w", h=rows)
        return flow, confidence


def _as_input(features: Tensor, layer: nn.Conv2d) -> Tensor:
    """Channels last, in the dtype of the layer's weights (displacements are always float32)."""
    return features.to(layer.weight.dtype, memory_format=torch.channels_last)


def _to_pixels(features: Tensor) -> Tensor:
    """``(n, 4 * 3 * 16, h, w)`` to ``(n, 4, 3, 4 h, 4 w)``."""
    return F.pixel_shuffle(
        rearrange(features, "n (q c) h w -> n q c h w", q=GROUP), upscale_factor=_UNSHUFFLE
    )


def _upsampled(flow: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(flow, size, mode="bilinear", align_corners=False)


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Fetch ``pictures[p + flow[p]]`` with bilinear interpolation, repeating the border.

    Args:
        pictures: ``(n, 3, height, width)``.
        flow: ``(n, 2, height, width)``, x then y, in pixels.

    Returns:
        Float32 like ``pictures``.
    """
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=torch.float32),
        torch.arange(width, device=flow.device, dtype=torch.float32),
        indexing="ij",
    )
    grid = torch.stack(
        [
            (x + flow[:, 0].float()) * (2 / max(width - 1, 1)) - 1,
            (y + flow[:, 1].float()) * (2 / max(height - 1, 1)) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=True)
