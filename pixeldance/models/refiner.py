"""The learned half of the codec's decoder: sharp frames from coarse ones and the given pictures.

A projection onto few components loses detail, but a first or last picture still has it. For every
coarse frame the refiner brings the sharp references into its place (``alignment.py``), and a small
U-Net chooses, per pixel, between the warped references, what they make together without the coarse
frame (``draft.py``) and the coarse frame, and adds what none of them has.

The four frames of one latent frame are refined together and independently of all others, so
decoding a few latent frames at a time gives the same pictures as decoding all. What is found out
about the references alone is found out once for all frames that are refined together.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pixeldance.models.alignment import GROUP, Aligned, ReferenceAligner
from pixeldance.models.carrying import Motion
from pixeldance.models.layers import ResidualBlock, as_input, zeroed
from pixeldance.models.reading import Said
from pixeldance.models.subjects import follow_subjects

_UNSHUFFLE = 4  # the U-Net works at 1/4 of the resolution
_TIME_UNIT = 24.0  # frames that count as 1 in the time channels
_NUM_SOURCES = 4  # coarse frame, first reference, second reference, draft


def _stage(channels: int, depth: int = 2) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(depth)])


class ReferenceRefiner(nn.Module):
    """Refines groups of four coarse frames with up to two reference pictures.

    Args:
        channels: Widths of the U-Net at 1/4, 1/8 and 1/16 of the resolution.
        match_channels: Width of the matching features.
        align_channels: Width of the network that corrects the displacements.
        text_dim: Width of the text's token states.
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (80, 112, 160),
        match_channels: int = 64,
        align_channels: int = 64,
        text_dim: int = 384,
    ) -> None:
        super().__init__()
        pixels = 3 * _UNSHUFFLE**2
        fine, middle, coarse = channels

        self.aligner = ReferenceAligner(match_channels, align_channels, text_dim=text_dim)
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
        self.enter_layers = zeroed(nn.Conv2d(GROUP * 3, fine, 1))
        self.enter_draft = zeroed(nn.Conv2d(GROUP * pixels, fine, 1))
        # per pixel and frame: 3 colours to add and a choice between the sources
        outputs = GROUP * (3 + _NUM_SOURCES) * _UNSHUFFLE**2
        self.leave = nn.Sequential(
            nn.GroupNorm(8, fine), nn.SiLU(), zeroed(nn.Conv2d(fine, outputs, 1))
        )

    def forward(
        self,
        coarse: Tensor,
        references: Tensor,
        coarse_references: Tensor,
        offsets: Tensor,
        present: Tensor,
        motion: Motion | None = None,
        draft: Tensor | None = None,
    ) -> tuple[Tensor, Aligned]:
        """Refine latent frames of some clips.

        Args:
            coarse: ``(n, t, 4, 3, height, width)`` in about [-1, 1], sides multiples of 16.
            references: ``(n, 2, 3, height, width)``, the given pictures; anything where absent.
            coarse_references: Same shape, the references after projection.
            offsets: ``(n, t, 2)``, frames from each group's last frame to each reference; for an
                absent one, to the end of the clip where it would be.
            present: ``(n, 2)`` bool.
            motion: From one end of the clip to the other; None carries nothing.
            draft: Like ``coarse``, what the references make by themselves, or None; anything for
                clips without a reference.

        Returns:
            Refined frames like ``coarse`` and the aligned references, frames in one row.
        """
        clips, count = coarse.shape[:2]
        behind = torch.arange(GROUP - 1, -1, -1, device=offsets.device)  # frames to the last one
        aligned = self.aligner(
            rearrange(coarse, "n t q c h w -> n (t q) c h w"),
            references,
            coarse_references,
            rearrange(offsets[:, :, None] + behind[:, None], "n t q r -> n (t q) r"),
            present,
            motion,
        )
        pictures, confidence = (
            rearrange(part, "n r (t q) c h w -> (n t) r q c h w", q=GROUP)
            for part in (aligned.pictures, aligned.confidence)
        )
        layers = rearrange(aligned.layers, "n (t q) c h w -> (n t) (q c) h w", q=GROUP)
        is_drafted = present.any(1) & (draft is not None)
        if draft is None:
            draft = coarse
        draft = torch.where(is_drafted[:, None, None, None, None, None], draft, coarse)
        refined = self._refined(
            rearrange(coarse, "n t q c h w -> (n t) q c h w"),
            rearrange(draft, "n t q c h w -> (n t) q c h w").to(coarse.dtype),
            pictures,
            confidence,
            layers,
            rearrange(offsets, "n t r -> (n t) r"),
            repeat(torch.cat([present, is_drafted[:, None]], dim=1), "n s -> (n t) s", t=count),
        )
        return rearrange(refined, "(n t) q c h w -> n t q c h w", n=clips), aligned

    def motion_between(self, pictures: Tensor, present: Tensor, text: Tensor) -> Motion:
        """What goes where from one end of the clip to the other.

        Found out once for all latent frames of a clip; ``forward`` takes it.

        Args:
            pictures: ``(n, 2, 3, height, width)``, the references.
            present: ``(n, 2)`` bool.
            text: Token states of the prompt, as :class:`PictureMotion` takes them.

        Returns:
            The motion.
        """
        motion, told = self.aligner.motion(pictures, present, text)
        return follow_subjects(motion, told.said, pictures, present)

    def cuts_asked_for(self, text: Tensor) -> Tensor:
        """Which token asks for a cut, ``(n,)`` int64, or -1; token states as for the motion."""
        said: Said = self.aligner.motion.reader(text)
        return torch.where(said.cut > 0, said.cut_at, -1)

    def _refined(
        self,
        coarse: Tensor,
        draft: Tensor,
        pictures: Tensor,
        confidence: Tensor,
        layers: Tensor,
        offsets: Tensor,
        given: Tensor,
    ) -> Tensor:
        """Groups ``(n, 4, 3, height, width)`` from coarse ones, drafts and aligned references.

        ``given`` tells which of both references and of the drafts there are, ``(n, 3)``.
        """
        present = given[:, :2]
        mask = present[:, :, None, None, None, None]
        confidence = rearrange(confidence * mask, "n r q 1 h w -> n (r q) h w")
        time = (offsets.to(coarse.dtype) / _TIME_UNIT) * present
        where = torch.cat([time, present.to(coarse.dtype)], dim=1)

        small = F.pixel_unshuffle(coarse, _UNSHUFFLE)  # n 4 48 h w
        sources = F.pixel_unshuffle(pictures * mask, _UNSHUFFLE)
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
        drafted = rearrange(F.pixel_unshuffle(draft, _UNSHUFFLE), "n q c h w -> n (q c) h w")
        per_value = GROUP * _UNSHUFFLE**2
        made = self._unet(inputs, layers, drafted)
        colours, choice = made.split([3 * per_value, _NUM_SOURCES * per_value], dim=1)
        logits = _to_pixels(choice).float()  # n 4 sources height width
        is_absent = F.pad(~given, (1, 0))[:, None, :, None, None]  # coarse frames are always there
        weights = logits.masked_fill(is_absent, -1.0e4).softmax(dim=2)
        references = rearrange(pictures, "n r q c h w -> n q r c h w")
        sources = torch.cat([coarse[:, :, None], references, draft[:, :, None]], dim=2)
        blended = (weights[:, :, :, None] * sources).sum(dim=2)
        return blended + _to_pixels(colours).float()

    def _unet(self, inputs: Tensor, layers: Tensor, drafted: Tensor) -> Tensor:
        entered = self.enter(as_input(inputs, self.enter))
        entered = entered + self.enter_draft(as_input(drafted, self.enter_draft))
        fine = self.down_fine(entered + self.enter_layers(as_input(layers, self.enter_layers)))
        height, width = fine.shape[-2:]
        # sides are multiples of 4 here, so two halvings are exact
        middle = self.down_middle(self.to_middle(fine))
        bottom = self.bottom(self.to_coarse(middle))
        middle = self.up_middle(middle + self.from_coarse(bottom))
        fine = self.up_fine(fine + self.from_middle(middle))
        assert fine.shape[-2:] == (height, width), "sides must be multiples of 16"
        return self.leave(fine)


def _to_pixels(features: Tensor) -> Tensor:
    """``(n, 4 * k * 16, h, w)`` to ``(n, 4, k, 4 h, 4 w)``."""
    return F.pixel_shuffle(
        rearrange(features, "n (q c) h w -> n q c h w", q=GROUP), upscale_factor=_UNSHUFFLE
    )
