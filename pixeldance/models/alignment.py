"""Where in the given pictures the parts of a coarse frame come from.

Two hypotheses are made for every frame between two given pictures and corrected together:

1. **matched**: global matching of the coarse frame with each picture, as in GMFlow. It follows
   whatever the coarse frames show, but fails where they are blurred.
2. **interpolated**: global matching of the two pictures with each other, and motion that is uniform
   in between. It needs no coarse frame, but knows only the two ends.

A network at 1/8 of the resolution that sees the pictures warped by both chooses per place between
them and corrects; the displacements are then refined once against the coarse frame at 1/8 and once
against each other at 1/4 of the resolution.

References:
    Xu et al. 2022, GMFlow, https://arxiv.org/abs/2111.13680 (section 3.2, global matching).
    Jiang et al. 2018, Super SloMo, https://arxiv.org/abs/1712.00080 (equation 4, uniform motion).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

GROUP = 4  # frames per latent frame
_MATCH = 8  # matching works at 1/8 of the resolution
_SHARPEN = 4  # the last correction at 1/4
_FLOW_UNIT = 32.0  # pixels that count as 1 in the flow channels


class Aligned(NamedTuple):
    """References brought into the place of coarse frames.

    Attributes:
        pictures: ``(n, r, 4, 3, height, width)``, the warped references.
        confidence: ``(n, r, 4, 1, height / 8, width / 8)``, the largest matching probability.
        rough: Like ``pictures``, before the corrections; for the training loss.
    """

    pictures: Tensor
    confidence: Tensor
    rough: Tensor


class ResidualBlock(nn.Module):
    """Pre-activation residual block with two 3 x 3 convolutions; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape, ``(batch, channels, height, width)``."""
        hidden = self.conv_in(F.silu(self.norm(features)))
        return features + self.conv_out(F.silu(hidden))


class GlobalContext(nn.Module):
    """Adds the mean over the picture, transformed, everywhere: a camera moves all of it alike."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.leave = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape, ``(batch, channels, height, width)``."""
        mean = features.mean((2, 3), keepdim=True)
        return features + self.leave(F.silu(self.enter(mean)))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all weights zero, so that what it corrects starts uncorrected."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _corrector(channels: int, *blocks: nn.Module, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *blocks,
        nn.GroupNorm(8, channels),
        nn.SiLU(),
        zeroed(nn.Conv2d(channels, outputs, 3, padding=1)),
    )


class ReferenceAligner(nn.Module):
    """Brings up to two reference pictures into the place of each of four coarse frames.

    Args:
        match_channels: Width of the matching features.
        align_channels: Width of the correction against the coarse frame, and of the last one.
        choose_channels: Width of the network that chooses between the hypotheses.
    """

    def __init__(
        self, match_channels: int = 64, align_channels: int = 64, choose_channels: int = 96
    ) -> None:
        super().__init__()
        pixels = 3 * _MATCH**2
        self.match = nn.Sequential(
            nn.PixelUnshuffle(_MATCH),
            nn.Conv2d(pixels, match_channels, 1),
            ResidualBlock(match_channels),
            ResidualBlock(match_channels),
            nn.Conv2d(match_channels, match_channels, 1),
        )
        self.log_temperature = nn.Parameter(torch.tensor(2.3))
        self.nearness = nn.Parameter(torch.tensor(0.0))
        self.log_temperature_between = nn.Parameter(torch.tensor(2.3))
        self.nearness_between = nn.Parameter(torch.tensor(0.0))

        seen = choose_channels // 2
        self.see_coarse = nn.Conv2d(pixels, seen, 1)
        self.see_warped = nn.Conv2d(pixels, seen, 1)
        self.choose_in = nn.Conv2d(5 * seen + 8 + 4 + 3, choose_channels, 1)
        self.choose = _corrector(
            choose_channels,
            ResidualBlock(choose_channels),
            GlobalContext(choose_channels),
            ResidualBlock(choose_channels),
            GlobalContext(choose_channels),
            ResidualBlock(choose_channels),
            outputs=6,  # which hypothesis (2 pictures), corrections (2 pictures x 2)
        )

        self.align_in = nn.Conv2d(2 * pixels + 4, align_channels, 1)
        self.align = _corrector(
            align_channels, ResidualBlock(align_channels), ResidualBlock(align_channels), outputs=2
        )
        self.sharpen_in = nn.Conv2d(3 * 3 * _SHARPEN**2 + 4 + 3, align_channels, 1)
        self.sharpen = _corrector(
            align_channels, ResidualBlock(align_channels), ResidualBlock(align_channels), outputs=4
        )

    def forward(
        self,
        coarse: Tensor,
        references: Tensor,
        coarse_references: Tensor,
        offsets: Tensor,
        present: Tensor,
    ) -> Aligned:
        """Align.

        Args:
            coarse: ``(n, 4, 3, height, width)`` in about [-1, 1], sides multiples of 16.
            references: ``(n, 2, 3, height, width)``, the given pictures; anything where absent.
            coarse_references: Same shape, the references after projection.
            offsets: ``(n, 2)``, frames from the group's last frame to each reference.
            present: ``(n, 2)`` bool.

        Returns:
            The warped references; those of absent ones are meaningless.
        """
        there = present.to(coarse.dtype)
        references = references * there[:, :, None, None, None]
        coarse_references = coarse_references * there[:, :, None, None, None]
        time = _time_between(offsets, present).to(coarse.dtype)
        queries, keys = self._features(coarse, coarse_references)
        matched, confidence = self._matched(queries, keys, coarse.shape)
        interpolated, agreement = self._interpolated(keys, time, coarse.shape)
        both = present.all(1)[:, None, None, None, None, None]
        interpolated = torch.where(both, interpolated, matched)

        flow = self._chosen(
            coarse, references, (matched, interpolated), (confidence, agreement), time, there
        )
        rough = _warped(references, flow)
        flow = flow + self._aligned(coarse, rough, flow, confidence, there)
        flow = _resized(flow, _MATCH // _SHARPEN)
        flow = flow + self._sharpened(coarse, _warped(references, flow), flow, time, there)
        return Aligned(_warped(references, flow), confidence, rough)

    def _features(self, coarse: Tensor, coarse_references: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-length features ``(n, 4 or 2, cells, channels)`` of frames and references."""
        every = torch.cat([coarse, coarse_references], dim=1)
        flat = self.match(as_input(rearrange(every, "n k c h w -> (n k) c h w"), self.match[1]))
        features = rearrange(
            F.normalize(flat.float(), dim=1), "(n k) c h w -> n k (h w) c", k=GROUP + 2
        )
        return features[:, :GROUP], features[:, GROUP:]

    def _matched(self, queries: Tensor, keys: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Flow from each frame into each reference ``(n, r, q, 2, h, w)``, its certainty."""
        similarity = torch.einsum("nqac,nrbc->nrqab", queries, keys)
        return _expected_flow(similarity, self.log_temperature, self.nearness, shape)

    def _interpolated(self, keys: Tensor, time: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Flow from each frame into each reference if motion is uniform between the two."""
        similarity = torch.einsum("nac,nbc->nab", keys[:, 0], keys[:, 1])
        both = torch.stack([similarity, similarity.mT], dim=1)[:, :, None]
        flows, confidence = _expected_flow(
            both, self.log_temperature_between, self.nearness_between, shape
        )
        there, back = flows[:, :1, 0], flows[:, 1:, 0]  # n 1 2 h w: first to second, and back
        t = time[:, :, None, None, None]
        to_first = t * t * back - (1 - t) * t * there
        to_second = (1 - t) ** 2 * there - t * (1 - t) * back
        agreement = confidence.expand(-1, -1, GROUP, -1, -1, -1)
        return torch.stack([to_first, to_second], dim=1), agreement

    def _chosen(
        self,
        coarse: Tensor,
        references: Tensor,
        hypotheses: tuple[Tensor, Tensor],
        certainties: tuple[Tensor, Tensor],
        time: Tensor,
        there: Tensor,
    ) -> Tensor:
        """One flow per frame and reference, ``(n, r, q, 2, h, w)``."""
        cells = hypotheses[0].shape[-2:]
        seen = [self.see_coarse(_unshuffled(rearrange(coarse, "n q c h w -> (n q) c h w")))]
        for flow in hypotheses:
            warped = _unshuffled(
                rearrange(_warped(references, flow), "n r q c h w -> (n q r) c h w")
            )
            features = self.see_warped(as_input(warped, self.see_warped))
            seen.append(rearrange(features, "(m r) c h w -> m (r c) h w", r=2))
        scalars = torch.cat([time[:, :, None], _per_frame(there)], dim=2)
        inputs = torch.cat(
            [
                *seen,
                *(
                    rearrange(flow, "n r q d h w -> (n q) (r d) h w") / _FLOW_UNIT
                    for flow in hypotheses
                ),
                *(rearrange(part, "n r q 1 h w -> (n q) r h w") for part in certainties),
                rearrange(scalars, "n q s -> (n q) s 1 1").expand(-1, -1, *cells),
            ],
            dim=1,
        )
        made = self.choose(self.choose_in(as_input(inputs, self.choose_in))).float()
        made = rearrange(made, "(n q) s h w -> n q s h w", q=GROUP)
        share = rearrange(made[:, :, :2].sigmoid(), "n q r h w -> n r q 1 h w")
        correction = rearrange(made[:, :, 2:], "n q (r d) h w -> n r q d h w", r=2)
        matched, interpolated = hypotheses
        return torch.lerp(matched, interpolated, share) + 4.0 * correction

    def _aligned(
        self, coarse: Tensor, warped: Tensor, flow: Tensor, confidence: Tensor, there: Tensor
    ) -> Tensor:
        """Correction of each flow by comparing its warped reference with the coarse frame."""
        frames = repeat(coarse, "n q c h w -> (n r q) c h w", r=2)
        present = repeat(there, "n r -> (n r q) 1 1 1", q=GROUP).expand(-1, -1, *flow.shape[-2:])
        inputs = torch.cat(
            [
                _unshuffled(frames),
                _unshuffled(rearrange(warped, "n r q c h w -> (n r q) c h w")),
                rearrange(flow, "n r q d h w -> (n r q) d h w") / _FLOW_UNIT,
                rearrange(confidence, "n r q 1 h w -> (n r q) 1 h w"),
                present,
            ],
            dim=1,
        )
        made = self.align(self.align_in(as_input(inputs, self.align_in))).float()
        return 4.0 * rearrange(made, "(n r q) d h w -> n r q d h w", r=2, q=GROUP)

    def _sharpened(
        self, coarse: Tensor, warped: Tensor, flow: Tensor, time: Tensor, there: Tensor
    ) -> Tensor:
        """Correction of both flows by comparing the warped references with each other too."""
        scalars = torch.cat([time[:, :, None], _per_frame(there)], dim=2)
        inputs = torch.cat(
            [
                F.pixel_unshuffle(rearrange(coarse, "n q c h w -> (n q) c h w"), _SHARPEN),
                F.pixel_unshuffle(rearrange(warped, "n r q c h w -> (n q) (r c) h w"), _SHARPEN),
                rearrange(flow, "n r q d h w -> (n q) (r d) h w") / _FLOW_UNIT,
                rearrange(scalars, "n q s -> (n q) s 1 1").expand(-1, -1, *flow.shape[-2:]),
            ],
            dim=1,
        )
        made = self.sharpen(self.sharpen_in(as_input(inputs, self.sharpen_in))).float()
        return rearrange(made, "(n q) (r d) h w -> n r q d h w", r=2, q=GROUP)


def _time_between(offsets: Tensor, present: Tensor) -> Tensor:
    """Time of each frame on the way from the first to the second reference, ``(n, 4)`` in [0, 1].

    Zero where one of the two is absent. The first latent frame holds four copies of frame 0; the
    times of the first three fall before 0 and are clamped to it.
    """
    behind = torch.arange(GROUP - 1, -1, -1, device=offsets.device)  # frames to the group's last
    span = (offsets[:, 1] - offsets[:, 0])[:, None]
    both = (present.all(1) & (offsets[:, 1] != offsets[:, 0]))[:, None]
    elapsed = -offsets[:, :1] - behind
    return torch.where(both, elapsed / torch.where(both, span, 1), 0.0).clamp(0, 1)


def _expected_flow(
    similarity: Tensor, log_temperature: Tensor, nearness: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Softmax over ``(n, r, q, cells, cells)``; displacement in pixels and largest probability."""
    rows, columns = shape[-2] // _MATCH, shape[-1] // _MATCH
    y, x = torch.meshgrid(
        torch.arange(rows, device=similarity.device),
        torch.arange(columns, device=similarity.device),
        indexing="ij",
    )
    cells = torch.stack([x, y], dim=-1).flatten(0, 1).float()
    distance = (cells[:, None] - cells[None]).square().sum(-1)
    logits = similarity * log_temperature.exp() - 0.01 * nearness.exp() * distance
    weights = logits.softmax(dim=-1)
    flow = (weights @ cells - cells) * _MATCH
    return (
        rearrange(flow, "n r q (h w) d -> n r q d h w", h=rows),
        rearrange(weights.amax(dim=-1), "n r q (h w) -> n r q 1 h w", h=rows),
    )


def _per_frame(there: Tensor) -> Tensor:
    return repeat(there, "n r -> n q r", q=GROUP)


def _unshuffled(pictures: Tensor) -> Tensor:
    return F.pixel_unshuffle(pictures, _MATCH)


def as_input(features: Tensor, layer: nn.Module) -> Tensor:
    """Channels last, in the dtype of the layer's weights (displacements are always float32)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return features.to(weight.dtype, memory_format=torch.channels_last)


def _resized(flow: Tensor, factor: int) -> Tensor:
    """Flow ``(n, r, q, 2, h, w)`` on a finer grid; displacements stay in pixels."""
    flat = rearrange(flow, "n r q d h w -> (n r q) d h w")
    finer = F.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    return rearrange(finer, "(n r q) d h w -> n r q d h w", r=flow.shape[1], q=flow.shape[2])


def _warped(references: Tensor, flow: Tensor) -> Tensor:
    """Each reference ``(n, r, 3, height, width)`` warped for each frame, float32."""
    height = references.shape[-2]
    fine = rearrange(_resized(flow, height // flow.shape[-2]), "n r q d h w -> (n r q) d h w")
    sharp = repeat(references, "n r c h w -> (n r q) c h w", q=GROUP)
    return rearrange(
        warp(sharp, fine), "(n r q) c h w -> n r q c h w", r=references.shape[1], q=GROUP
    )


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
