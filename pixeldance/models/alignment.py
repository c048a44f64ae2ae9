"""Where in the given pictures the parts of coarse frames come from.

Two hypotheses are made for every frame and corrected together:

1. **matched**: global matching of the coarse frame with each picture, as in GMFlow. It follows
   whatever the coarse frames show, but fails where they are blurred.
2. **carried**: the motion from one end of the clip to the other (``motion.py``), estimated from the
   given pictures and the text. It needs no coarse frame.

A network at 1/8 of the resolution that sees the pictures warped by both chooses per place between
them and corrects; the displacements are then refined once against the coarse frame at 1/8 and once
against each other at 1/4 of the resolution.

References:
    Xu et al. 2022, GMFlow, https://arxiv.org/abs/2111.13680 (section 3.2, global matching).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pixeldance.models.carrying import FINE, Motion, carried, still
from pixeldance.models.draft import shown_share
from pixeldance.models.layers import ResidualBlock, as_input, warp, zeroed
from pixeldance.models.motion import FLOW_UNIT, PictureMotion

GROUP = 4  # frames per latent frame
MATCH = 8  # coarse frames are matched at 1/8 of the resolution


class Aligned(NamedTuple):
    """References brought into the place of coarse frames.

    Attributes:
        pictures: ``(n, r, q, 3, height, width)``, the warped references.
        confidence: ``(n, r, q, 1, height / 8, width / 8)``, the largest matching probability.
        rough: Like ``pictures``, before the corrections; for the training loss.
        layers: ``(n, q, 3, height / 4, width / 4)``: how likely something in front is seen, and
            how well that agrees with what each reference shows there; zero without motion.
    """

    pictures: Tensor
    confidence: Tensor
    rough: Tensor
    layers: Tensor


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
        text_dim: Width of the text's token states.
    """

    def __init__(
        self,
        match_channels: int = 64,
        align_channels: int = 64,
        choose_channels: int = 96,
        text_dim: int = 384,
    ) -> None:
        super().__init__()
        pixels = 3 * MATCH**2
        self.match = nn.Sequential(
            nn.PixelUnshuffle(MATCH),
            nn.Conv2d(pixels, match_channels, 1),
            ResidualBlock(match_channels),
            ResidualBlock(match_channels),
            nn.Conv2d(match_channels, match_channels, 1),
        )
        self.log_temperature = nn.Parameter(torch.tensor(2.3))
        self.nearness = nn.Parameter(torch.tensor(0.0))
        self.motion = PictureMotion(text_dim=text_dim)

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
        self.sharpen_in = nn.Conv2d(3 * 3 * FINE**2 + 4 + 3, align_channels, 1)
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
        motion: Motion | None = None,
    ) -> Aligned:
        """Align the frames of some clips.

        Args:
            coarse: ``(n, q, 3, height, width)`` in about [-1, 1], sides multiples of 16.
            references: ``(n, 2, 3, height, width)``, the given pictures; anything where absent.
            coarse_references: Same shape, the references after projection.
            offsets: ``(n, q, 2)``, frames from each coarse frame to each reference; for an absent
                one, to the end of the clip where it would be.
            present: ``(n, 2)`` bool.
            motion: From one end to the other; None carries nothing.

        Returns:
            The warped references; those of absent ones are meaningless.
        """
        there = present.to(coarse.dtype)
        references = references * there[:, :, None, None, None]
        coarse_references = coarse_references * there[:, :, None, None, None]
        time, is_carried = _time_between(offsets, present)
        time = time.to(coarse.dtype)
        matched, confidence = self._matched(coarse, coarse_references)
        if motion is None:
            motion, is_carried = still(references), torch.zeros_like(is_carried)
        fine, front = carried(motion, time, present)
        is_carried = is_carried[:, None, None, None, None, None]
        halved = _halved(fine)
        hypotheses = (matched, torch.where(is_carried, halved, matched))
        flow, share = self._chosen(
            coarse,
            references,
            hypotheses,
            (confidence, _halved(_agreement(front, motion.front, fine))),
            time,
            there,
        )
        rough = _warped(references, flow)
        flow = flow + self._aligned(coarse, rough, flow, confidence, there)
        flow = _resized(flow, MATCH // FINE)
        # the edges of what was carried, which the coarser grid lost
        edges = torch.where(is_carried, fine - _resized(halved, MATCH // FINE), 0.0)
        flow = flow + _resized(share, MATCH // FINE) * edges
        flow = flow + self._sharpened(coarse, _warped(references, flow), flow, time, there)
        agreement = rearrange(_agreement(front, motion.front, flow), "n r q 1 h w -> n q r h w")
        agreement = agreement * there[:, None, :, None, None]
        layers = torch.cat([front, agreement], dim=2) * is_carried[:, :, :, 0]
        pictures = _warped(references, flow)
        is_alone = is_carried & ~present.all(1)[:, None, None, None, None, None]
        if motion.behind is not None and is_alone.any():
            behind = _warped(motion.behind, flow)
            elapsed = torch.stack([time, 1 - time], dim=1)[..., None, None, None]
            agreement = _resized(_agreement(front, motion.front, flow), FINE)
            share = shown_share(agreement, elapsed)
            pictures = torch.where(is_alone, torch.lerp(behind, pictures, share), pictures)
        return Aligned(pictures, confidence, rough, layers)

    def _matched(self, coarse: Tensor, coarse_references: Tensor) -> tuple[Tensor, Tensor]:
        """Flow from each frame into each reference ``(n, r, q, 2, h, w)``, its certainty."""
        every = torch.cat([coarse, coarse_references], dim=1)
        flat = self.match(as_input(rearrange(every, "n k c h w -> (n k) c h w"), self.match[1]))
        features = rearrange(
            F.normalize(flat.float(), dim=1), "(n k) c h w -> n k (h w) c", n=len(coarse)
        )
        queries, keys = features[:, :-2], features[:, -2:]
        similarity = torch.einsum("nqac,nrbc->nrqab", queries, keys)
        return _expected_flow(similarity, self.log_temperature, self.nearness, coarse.shape)

    def _chosen(
        self,
        coarse: Tensor,
        references: Tensor,
        hypotheses: tuple[Tensor, Tensor],
        certainties: tuple[Tensor, Tensor],
        time: Tensor,
        there: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One flow per frame and reference ``(n, r, q, 2, h, w)``, and the second one's share."""
        cells = hypotheses[0].shape[-2:]
        seen = [self.see_coarse(_unshuffled(rearrange(coarse, "n q c h w -> (n q) c h w")))]
        for flow in hypotheses:
            warped = _unshuffled(
                rearrange(_warped(references, flow), "n r q c h w -> (n q r) c h w")
            )
            features = self.see_warped(as_input(warped, self.see_warped))
            seen.append(rearrange(features, "(m r) c h w -> m (r c) h w", r=2))
        scalars = torch.cat([time[:, :, None], _per_frame(there, time)], dim=2)
        inputs = torch.cat(
            [
                *seen,
                *(
                    rearrange(flow, "n r q d h w -> (n q) (r d) h w") / FLOW_UNIT
                    for flow in hypotheses
                ),
                *(rearrange(part, "n r q 1 h w -> (n q) r h w") for part in certainties),
                rearrange(scalars, "n q s -> (n q) s 1 1").expand(-1, -1, *cells),
            ],
            dim=1,
        )
        made = self.choose(self.choose_in(as_input(inputs, self.choose_in))).float()
        made = rearrange(made, "(n q) s h w -> n q s h w", n=len(coarse))
        share = rearrange(made[:, :, :2].sigmoid(), "n q r h w -> n r q 1 h w")
        correction = rearrange(made[:, :, 2:], "n q (r d) h w -> n r q d h w", r=2)
        return torch.lerp(*hypotheses, share) + 4.0 * correction, share

    def _aligned(
        self, coarse: Tensor, warped: Tensor, flow: Tensor, confidence: Tensor, there: Tensor
    ) -> Tensor:
        """Correction of each flow by comparing its warped reference with the coarse frame."""
        frames = repeat(coarse, "n q c h w -> (n r q) c h w", r=2)
        present = repeat(there, "n r -> (n r q) 1 1 1", q=coarse.shape[1])
        present = present.expand(-1, -1, *flow.shape[-2:])
        inputs = torch.cat(
            [
                _unshuffled(frames),
                _unshuffled(rearrange(warped, "n r q c h w -> (n r q) c h w")),
                rearrange(flow, "n r q d h w -> (n r q) d h w") / FLOW_UNIT,
                rearrange(confidence, "n r q 1 h w -> (n r q) 1 h w"),
                present,
            ],
            dim=1,
        )
        made = self.align(self.align_in(as_input(inputs, self.align_in))).float()
        return 4.0 * rearrange(made, "(n r q) d h w -> n r q d h w", r=2, q=coarse.shape[1])

    def _sharpened(
        self, coarse: Tensor, warped: Tensor, flow: Tensor, time: Tensor, there: Tensor
    ) -> Tensor:
        """Correction of both flows by comparing the warped references with each other too."""
        scalars = torch.cat([time[:, :, None], _per_frame(there, time)], dim=2)
        inputs = torch.cat(
            [
                F.pixel_unshuffle(rearrange(coarse, "n q c h w -> (n q) c h w"), FINE),
                F.pixel_unshuffle(rearrange(warped, "n r q c h w -> (n q) (r c) h w"), FINE),
                rearrange(flow, "n r q d h w -> (n q) (r d) h w") / FLOW_UNIT,
                rearrange(scalars, "n q s -> (n q) s 1 1").expand(-1, -1, *flow.shape[-2:]),
            ],
            dim=1,
        )
        made = self.sharpen(self.sharpen_in(as_input(inputs, self.sharpen_in))).float()
        return rearrange(made, "(n q) (r d) h w -> n r q d h w", r=2, n=len(coarse))


def _time_between(offsets: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Time of each frame on the way from the first to the second reference, ``(n, q)`` in [0, 1].

    The first latent frame holds four copies of frame 0; the times of the first three fall before 0
    and are clamped to it. With it comes whether clips have such a way, ``(n,)``; else it is zero.
    """
    span = offsets[:, :, 1] - offsets[:, :, 0]
    has_way = present.any(1) & (span > 0).all(1)
    time = -offsets[:, :, 0] / span.clamp(min=1)
    return torch.where(has_way[:, None], time.clamp(0, 1), 0.0), has_way


def _agreement(front: Tensor, fronts: Tensor, flow: Tensor) -> Tensor:
    """Whether frame and reference both show what is in front, or both what is behind.

    Args:
        front: ``(n, q, 1, h, w)``, of the frames.
        fronts: ``(n, r, 1, h, w)``, of the references.
        flow: ``(n, r, q, 2, h, w)``, where the frames' places are in the references, in pixels.

    Returns:
        ``(n, r, q, 1, h, w)`` in [0, 1].
    """
    q = flow.shape[2]
    # a place beside what is in front shows some of it
    wide = F.max_pool2d(rearrange(fronts, "n r c h w -> (n r) c h w"), 3, stride=1, padding=1)
    found = warp(
        repeat(wide, "m c h w -> (m q) c h w", q=q),
        rearrange(flow, "n r q d h w -> (n r q) d h w") / FINE,
    )
    found = rearrange(found, "(n r q) c h w -> n r q c h w", r=2, q=q)
    return 1 - (front[:, None] - found).abs()


def _expected_flow(
    similarity: Tensor, log_temperature: Tensor, nearness: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Softmax over ``(n, r, q, cells, cells)``; displacement in pixels and largest probability."""
    rows, columns = shape[-2] // MATCH, shape[-1] // MATCH
    y, x = torch.meshgrid(
        torch.arange(rows, device=similarity.device),
        torch.arange(columns, device=similarity.device),
        indexing="ij",
    )
    cells = torch.stack([x, y], dim=-1).flatten(0, 1).float()
    distance = (cells[:, None] - cells[None]).square().sum(-1)
    logits = similarity * log_temperature.exp() - 0.01 * nearness.exp() * distance
    weights = logits.softmax(dim=-1)
    flow = (weights @ cells - cells) * MATCH
    return (
        rearrange(flow, "n r q (h w) d -> n r q d h w", h=rows),
        rearrange(weights.amax(dim=-1), "n r q (h w) -> n r q 1 h w", h=rows),
    )


def _per_frame(there: Tensor, time: Tensor) -> Tensor:
    return repeat(there, "n r -> n q r", q=time.shape[1])


def _halved(values: Tensor) -> Tensor:
    """Means of 2 x 2 places of ``(n, r, q, c, h, w)``."""
    flat = F.avg_pool2d(rearrange(values, "n r q c h w -> (n r q) c h w"), 2)
    return rearrange(flat, "(n r q) c h w -> n r q c h w", r=values.shape[1], q=values.shape[2])


def _unshuffled(pictures: Tensor) -> Tensor:
    return F.pixel_unshuffle(pictures, MATCH)


def _resized(flow: Tensor, factor: int) -> Tensor:
    """Flow ``(n, r, q, 2, h, w)`` on a finer grid; displacements stay in pixels."""
    flat = rearrange(flow, "n r q d h w -> (n r q) d h w")
    finer = F.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    return rearrange(finer, "(n r q) d h w -> n r q d h w", r=flow.shape[1], q=flow.shape[2])


def _warped(references: Tensor, flow: Tensor) -> Tensor:
    """Each reference ``(n, r, 3, height, width)`` warped for each frame, float32."""
    n, r, q = flow.shape[:3]
    factor = references.shape[-2] // flow.shape[-2]
    fine = rearrange(_resized(flow, factor), "n r q d h w -> (n r q) d h w")
    sharp = repeat(references, "n r c h w -> (n r q) c h w", q=q)
    return rearrange(warp(sharp, fine), "(n r q) c h w -> n r q c h w", n=n, r=r)
