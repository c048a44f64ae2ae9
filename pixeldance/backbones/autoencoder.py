"""The one place where a Wan autoencoder is called: pictures to latents, latents to video.

Computed by :class:`~pixeldance.models.wan_autoencoder.FastWanAutoencoder`, except where the memory
plan needs diffusers' own code: tiles, and hooks on the layers.
"""

from collections.abc import Mapping
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pixeldance.models import codec
from pixeldance.models.wan_autoencoder import FastWanAutoencoder
from pixeldance.parallel import Parallelism, share_rows


def encode_keyframes(
    vae: AutoencoderKLWan, pictures: Mapping[int, Tensor], num_frames: int, device: torch.device
) -> Tensor:
    """Latents of a clip that shows given pictures and is grey elsewhere.

    Args:
        vae: The autoencoder.
        pictures: ``1 3 height width`` in [-1, 1] by pixel frame, at least one.
        num_frames: Length of the clip, ``4k + 1``.
        device: Where the autoencoder computes.

    Returns:
        Normalised float32 latents, ``1 channels latent_frames latent_height latent_width``.
    """
    if _can_be_fast(vae):
        shown = torch.stack(list(pictures.values()), dim=2).to(device)
        fast = FastWanAutoencoder(vae)
        return codec.normalized(vae, fast.encode_keyframes(shown, list(pictures), num_frames))
    any_picture = next(iter(pictures.values()))
    video = any_picture.new_zeros(1, 3, num_frames, *any_picture.shape[2:])
    for frame, picture in pictures.items():
        video[:, :, frame] = picture
    return codec.encode_pictures(vae, video.to(device))


def decode(vae: AutoencoderKLWan, latents: Tensor, parallel: Parallelism | None = None) -> Tensor:
    """Video of normalised latents.

    Args:
        vae: The autoencoder.
        latents: Of the clip.
        parallel: The processes that share the rows, or None. Where the memory plan has them decoded
            in tiles, each decodes everything.

    Returns:
        ``1 3 frames height width`` in [-1, 1], float32.
    """
    if not _can_be_fast(vae):
        return codec.decode_latents(vae, latents)
    fast = FastWanAutoencoder(vae)
    if parallel is None:
        return codec.decode_latents(fast, latents)
    decode_band = partial(codec.decode_latents, fast)
    return share_rows(parallel, decode_band, latents, scale=fast.spatial_factor)


def _can_be_fast(vae: AutoencoderKLWan) -> bool:
    """Whether its layers may be read without being called, and it is not to work in tiles."""
    has_hooks = any(hasattr(layer, "_diffusers_hook") for layer in vae.modules())
    return not (has_hooks or vae.use_tiling)
