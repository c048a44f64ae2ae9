"""How given pictures enter a Wan checkpoint: by channels, by held latent frames, or not at all.

References:
    Wan, https://arxiv.org/abs/2503.20314, section 5.1 (condition latents and masks as channels);
    Wan 2.2, https://github.com/Wan-Video/Wan2.2 (TI2V-5B: clean latent frames at timestep 0).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pixeldance._pipeline_inputs import to_tensor
from pixeldance.backbones.base import Moment, PicturesByFrame
from pixeldance.geometry import LatentGrid, latent_slot
from pixeldance.instructions import place_keyframes

Encoder = Callable[[Mapping[int, Tensor], int], Tensor]
"""Pictures ``1 3 height width`` by pixel frame, and the length of the clip that shows them, to its
normalised latents ``1 channels frames height width``."""


@dataclass(frozen=True, kw_only=True)
class NoPictures:
    """A text checkpoint: the transformer sees the noisy latents alone."""

    image_tokens: Tensor | None = None
    """CLIP tokens of the pictures, rows by prompt, for checkpoints with a picture encoder."""

    def model_input(self, latents: Tensor) -> Tensor:
        """What the transformer sees."""
        return latents

    def timestep(self, moment: Moment, latents: Tensor) -> Tensor:
        """The timestep of each clip, ``batch``, or of each token, ``batch tokens``."""
        return moment.timestep.to(latents.device).expand(len(latents))

    def velocity(self, predicted: Tensor) -> Tensor:
        """The velocity to follow."""
        return predicted

    def finish(self, latents: Tensor) -> Tensor:
        """Clean latents as they are decoded."""
        return latents


@dataclass(frozen=True, kw_only=True)
class ConcatenatedPictures(NoPictures):
    """Mask and condition latents beside the noisy latents (Wan 2.1 I2V and FLF2V, A14B, Fun-InP).

    Attributes:
        channels: ``batch 4+channels frames height width``: which pixel frames are given, and the
            latents of a clip that holds them and is grey elsewhere.
    """

    channels: Tensor

    def model_input(self, latents: Tensor) -> Tensor:
        """Noisy latents, mask, condition latents."""
        return torch.cat([latents, self.channels], dim=1)


@dataclass(frozen=True, kw_only=True)
class HeldPictures(NoPictures):
    """Latent frames of pictures in place of noisy ones, at timestep 0 (TI2V-5B).

    The noise that the held frames started from is known, so their velocity is, too. Following it
    keeps them at the noise level of their neighbours: they can be let go at any step.

    Attributes:
        mask: 1 in held latent frames, else 0; ``batch 1 frames height width``.
        clean: Their latents, 0 elsewhere.
        noise: What sampling started from.
        patch: Rows and columns per token.
    """

    mask: Tensor
    clean: Tensor
    noise: Tensor
    patch: tuple[int, int]

    def model_input(self, latents: Tensor) -> Tensor:
        """Clean latents where a picture is held, noisy ones elsewhere."""
        return self.finish(latents)

    def timestep(self, moment: Moment, latents: Tensor) -> Tensor:
        """0 for tokens of held frames; ``batch tokens``."""
        rows, columns = self.patch
        free = 1.0 - self.mask[:, 0, :, ::rows, ::columns]
        return (free * moment.timestep.to(latents.device)).flatten(1)

    def velocity(self, predicted: Tensor) -> Tensor:
        """The predicted velocity, and the known one of held frames."""
        return torch.where(self.mask.bool(), self.noise - self.clean, predicted)

    def finish(self, latents: Tensor) -> Tensor:
        """Held frames exactly as given."""
        return (1.0 - self.mask) * latents + self.mask * self.clean


def concatenated(
    clips: Sequence[PicturesByFrame],
    encode: Encoder,
    *,
    num_frames: int,
    channels: int,
    grid: LatentGrid,
    factors: tuple[int, int],
) -> Tensor:
    """Mask and condition latents of every clip, ``clips 4+channels frames height width``.

    Args:
        clips: The pictures of each clip by pixel frame.
        encode: Encodes a clip.
        num_frames: Length of the clips.
        channels: Latent channels.
        grid: Latent grid.
        factors: Frames per latent frame, pixels per latent cell.

    Returns:
        Float32 channels.
    """
    temporal, spatial = factors
    blank = torch.zeros(channels, *grid[1:])
    grey = torch.zeros(1, 3, grid.latent_height * spatial, grid.latent_width * spatial)
    placed = place_keyframes(
        [dict.fromkeys(clip, blank) for clip in clips],
        num_frames=num_frames,
        channels=channels,
        latent_height=grid.latent_height,
        latent_width=grid.latent_width,
        temporal_factor=temporal,
    )
    known: dict[tuple[tuple[int, int], ...], Tensor] = {}
    latents = []
    for clip in clips:
        # Clips with the same pictures are encoded once.
        key = tuple((frame, id(picture)) for frame, picture in sorted(clip.items()))
        if key not in known:
            pictures = {frame: to_tensor(picture) for frame, picture in clip.items()}
            known[key] = encode(pictures or {0: grey}, num_frames)[0]
        latents.append(known[key])
    condition = torch.stack(latents)
    return torch.cat([placed.mask.to(condition), condition], dim=1)


def held(
    clips: Sequence[PicturesByFrame],
    encode: Encoder,
    *,
    num_frames: int,
    channels: int,
    grid: LatentGrid,
    temporal_factor: int,
) -> tuple[Tensor, Tensor]:
    """Which latent frames of every clip are held, and their latents.

    The first latent frame is one pixel frame. Later ones are a group of frames to the decoder, so a
    picture stands there as such a group: still, for as long as the latent frame lasts.

    Args:
        clips: The pictures of each clip by pixel frame.
        encode: Encodes a clip.
        num_frames: Length of the clips.
        channels: Latent channels.
        grid: Latent grid.
        temporal_factor: Frames per latent frame.

    Returns:
        Mask ``clips 1 frames height width`` and latents ``clips channels frames height width``.
    """
    known: dict[tuple[int, bool], Tensor] = {}

    def latent(picture: Image.Image, is_first: bool) -> Tensor:
        key = (id(picture), is_first)
        if key not in known:
            frames = 1 if is_first else 1 + temporal_factor
            still = dict.fromkeys(range(frames), to_tensor(picture))
            known[key] = encode(still, frames)[0, :, -1].cpu()
        return known[key]

    placed = place_keyframes(
        [
            {
                frame: latent(picture, latent_slot(frame, temporal_factor)[0] == 0)
                for frame, picture in clip.items()
            }
            for clip in clips
        ],
        num_frames=num_frames,
        channels=channels,
        latent_height=grid.latent_height,
        latent_width=grid.latent_width,
        temporal_factor=temporal_factor,
    )
    return placed.mask.amax(dim=1, keepdim=True), placed.latents
