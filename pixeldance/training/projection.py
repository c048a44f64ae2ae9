"""The codec's projection, computed in closed form from the sticker world.

``python -m pixeldance.training.projection OUTPUT`` writes a codec without refiner and prints how
well the bare projection reconstructs held-out clips.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pixeldance.models.codec import (
    LinearVideoCodec,
    decode_latents,
    encode_pictures,
    grouped,
    patches_of,
    principal_components,
)
from pixeldance.worlds.stickers import StickerWorld

_SIZES = ((144, 144), (112, 192), (192, 112))
_FIRST_SEED = 10_000_000  # far from the seeds of training steps
_PATCHES_PER_CLIP = 160
_SIDE = 16


def sample_patches(world: StickerWorld, num_clips: int) -> Tensor:
    """Patches ``(n, 3072)`` of 4 frames x 3 colours x 16 x 16 pixels from clips of 17 frames."""
    generator = torch.Generator().manual_seed(0)
    patches = []
    for index in range(num_clips):
        height, width = _SIZES[index % len(_SIZES)]
        video = _render(world, _FIRST_SEED + index, height, width)
        cut = patches_of(grouped(video), _SIDE).flatten(0, 3)
        patches.append(cut[torch.randperm(len(cut), generator=generator)[:_PATCHES_PER_CLIP]])
    return torch.cat(patches)


def fit_codec(world: StickerWorld, *, num_clips: int = 360, z_dim: int = 64) -> LinearVideoCodec:
    """A codec without refiner whose components are those of the world's patches.

    Args:
        world: Training split.
        num_clips: Clips to take patches from.
        z_dim: Components kept.

    Returns:
        The codec.
    """
    mean, components, std = principal_components(sample_patches(world, num_clips), z_dim)
    codec = LinearVideoCodec(z_dim=z_dim, latents_std=std, refiner_channels=None)
    codec.patch_mean.data.copy_(mean)
    codec.components.data.copy_(components)
    return codec


def heldout_psnr(codec: LinearVideoCodec, world: StickerWorld, *, num_clips: int = 16) -> float:
    """Mean PSNR in dB of the codec on clips of 17 frames at 128 x 128."""
    values = []
    for seed in range(num_clips):
        video = _render(world, seed, 128, 128)
        decoded = decode_latents(codec, encode_pictures(codec, video))
        values.append(-10 * ((decoded - video) / 2).square().mean().log10())
    return float(torch.stack(values).mean())


def _render(world: StickerWorld, seed: int, height: int, width: int) -> Tensor:
    scene = world.sample_scene(seed, aspect=width / height)
    frames = world.render(scene, height=height, width=width, num_frames=17)
    return frames.transpose(0, 1)[None] * 2 - 1


def main() -> None:
    """Compute the projection from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=360)
    parser.add_argument("--z-dim", type=int, default=64)
    arguments = parser.parse_args()
    codec = fit_codec(StickerWorld("train"), num_clips=arguments.clips, z_dim=arguments.z_dim)
    codec.save_pretrained(arguments.output)
    psnr = heldout_psnr(codec, StickerWorld("heldout"))
    print(f"{arguments.output}: {arguments.z_dim} components, {psnr:.2f} dB on held-out clips")  # noqa: T201


if __name__ == "__main__":
    main()
