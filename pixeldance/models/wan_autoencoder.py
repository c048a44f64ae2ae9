"""Wan's autoencoder, computed fast: the same weights and results as diffusers, less work.

:class:`FastWanAutoencoder` wraps a loaded ``AutoencoderKLWan`` (of Wan 2.1, or the residual one of
Wan 2.2). What it does differently:

* Frames are channels-last all the way, where normalisation and convolutions run several times
  faster than channels-first, and nothing is copied to float32.
* A clip is decoded as many latent frames at once as one likes, with the same result.
* A clip of which only pictures at some frames are given, the others being zero, is encoded by
  computing each distinct frame once (:meth:`FastWanAutoencoder.encode_keyframes`).

References:
    Wan, https://arxiv.org/abs/2503.20314, section 4.1 (the autoencoder);
    diffusers, models/autoencoders/autoencoder_kl_wan.py (the reference implementation).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from pixeldance.errors import ConfigError, InputError
from pixeldance.geometry import check_num_frames
from pixeldance.models.codec import ExactLatents
from pixeldance.models.wan_decoder import decode_chunk, join_patches
from pixeldance.models.wan_encoder import encode_chunk, split_patches
from pixeldance.models.wan_timeline import Timeline

__all__ = ["FastWanAutoencoder"]


class FastWanAutoencoder:
    """Encodes and decodes with the weights of an ``AutoencoderKLWan``; inference only.

    The weights stay the vae's own, which can be used as before; only their order in memory is
    changed to channels-last, as long as they are on the same device and in the same dtype.

    Args:
        vae: The loaded autoencoder.
        latent_frames_at_once: Latent frames that are decoded (or, of a whole video, encoded)
            together: more can be faster, and takes more memory. The result is the same.

    Raises:
        ConfigError: If ``vae`` is another kind of model or has hooks on its layers, or if
            ``latent_frames_at_once`` is below 1.
    """

    def __init__(self, vae: Any, *, latent_frames_at_once: int = 1) -> None:
        if not isinstance(vae, AutoencoderKLWan):
            raise ConfigError(
                f"FastWanAutoencoder wraps an AutoencoderKLWan, got {type(vae).__name__}. "
                "Use other autoencoders as they are."
            )
        if latent_frames_at_once < 1:
            raise ConfigError(
                f"latent_frames_at_once must be at least 1, got {latent_frames_at_once}. Use 1."
            )
        if any(hasattr(layer, "_diffusers_hook") for layer in vae.modules()):
            raise ConfigError(
                "FastWanAutoencoder reads the weights without calling the layers, so group offload "
                "and layerwise casting cannot serve it. Disable them for the vae, or use the vae."
            )
        self.vae = vae
        self.latent_frames_at_once = latent_frames_at_once
        for layer in vae.modules():
            if isinstance(layer, nn.Conv3d):
                layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            elif isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> Any:
        """Configuration of the vae."""
        return self.vae.config

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights, in which everything is computed."""
        return self.vae.dtype

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame (the first excepted)."""
        return int(2 ** sum(self.config.temperal_downsample))

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along each side."""
        return int(2 ** (len(self.config.dim_mult) - 1)) * self._patch

    @property
    def _patch(self) -> int:
        return self.config.patch_size or 1

    @property
    def _pixel_channels(self) -> int:
        return int(self.config.in_channels // self._patch**2)

    @torch.no_grad()
    def encode(
        self, video: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[ExactLatents]:
        """Encode a video.

        Args:
            video: ``batch 3 frames height width`` in [-1, 1]; ``4k + 1`` frames (for a vae that
                compresses time by 4), sides multiples of :attr:`spatial_factor`.
            return_dict: Whether to wrap the result as diffusers does.

        Returns:
            The mean of the latents, not normalised, as a one-point distribution:
            ``.latent_dist.mode()`` is ``batch channels latent_frames latent_height latent_width``.

        Raises:
            InputError: For another shape.
        """
        self._check_pixels(video)
        num_frames = check_num_frames(video.shape[2], self.temporal_factor)
        timeline, latents = Timeline(video.shape[4] // self.spatial_factor), []
        step = self.latent_frames_at_once * self.temporal_factor
        starts = [0, *range(1 + step - self.temporal_factor, num_frames, step)]
        for start, end in zip(starts, [*starts[1:], num_frames], strict=True):
            timeline.start_chunk(range(end - start), is_last=end == num_frames)
            latents.append(self._encode(video[:, :, start:end], timeline))
        distribution = ExactLatents(torch.cat(latents, dim=2))
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    @torch.no_grad()
    def encode_keyframes(self, pictures: Tensor, frames: Sequence[int], num_frames: int) -> Tensor:
        """Encode the video that shows given pictures at given frames and zeros everywhere else.

        That is what Wan's image-to-video models are conditioned on. It takes the time of encoding
        the pictures and, behind each, the few frames in which a causal layer settles.

        Args:
            pictures: ``batch 3 pictures height width`` in [-1, 1], at least one.
            frames: Where each stands, from 0; -1 is the last frame. For all batch elements.
            num_frames: Frames of the clip, ``4k + 1``.

        Returns:
            Mean of the latents, not normalised:
            ``batch channels latent_frames latent_height latent_width``.

        Raises:
            InputError: If the shape, a frame or the number of frames is not possible.
        """
        self._check_pixels(pictures)
        check_num_frames(num_frames, self.temporal_factor)
        places = [frame + num_frames if frame < 0 else frame for frame in frames]
        if len(places) != pictures.shape[2] or len(set(places)) != len(places):
            raise InputError(
                f"{pictures.shape[2]} pictures need as many different frames, got {list(frames)}."
            )
        if not all(0 <= place < num_frames for place in places):
            raise InputError(
                f"Frames must be from 0 to {num_frames - 1} (or -1, the last), got {list(frames)}."
            )
        slots = [len(places)] * num_frames  # the pictures, then a frame of zeros
        for slot, place in enumerate(places):
            slots[place] = slot
        if num_frames > len(places):
            pictures = torch.cat([pictures, torch.zeros_like(pictures[:, :, :1])], dim=2)
        timeline = Timeline(pictures.shape[4] // self.spatial_factor)
        timeline.start_chunk(slots, is_last=True)
        return self._encode(pictures, timeline)

    @torch.no_grad()
    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode a whole clip.

        Args:
            latents: ``batch channels latent_frames latent_height latent_width``, not normalised.
            return_dict: Whether to wrap the result as diffusers does.

        Returns:
            ``.sample``, ``batch 3 frames height width`` in [-1, 1].

        Raises:
            InputError: For another shape.
        """
        video = torch.cat(list(self.decode_chunks(latents)), dim=2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode a clip piece by piece, in memory that does not grow with its length.

        Args:
            latents: ``batch channels latent_frames latent_height latent_width``, not normalised.

        Returns:
            The frames in order, ``batch 3 frames height width`` in [-1, 1] each time.

        Raises:
            InputError: For another shape.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or 0 in latents.shape:
            raise InputError(
                f"Latents must be batch x {self.config.z_dim} channels x frames x height x width, "
                f"got {tuple(latents.shape)}."
            )
        return self._decode_chunks(latents)

    def _decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        timeline = Timeline(latents.shape[4])
        chunks = latents.split(self.latent_frames_at_once, dim=2)
        for number, chunk in enumerate(chunks, start=1):
            timeline.start_chunk(range(chunk.shape[2]), is_last=number == len(chunks))
            with torch.no_grad():
                frames = decode_chunk(self.vae, self._channels_last(chunk), timeline)
                yield join_patches(frames, self._patch).clamp_(-1, 1).permute(0, 4, 1, 2, 3)

    def _encode(self, video: Tensor, timeline: Timeline) -> Tensor:
        frames = split_patches(self._channels_last(video), self._patch)
        return encode_chunk(self.vae, frames, timeline).permute(0, 4, 1, 2, 3).contiguous()

    def _channels_last(self, video: Tensor) -> Tensor:
        hook = getattr(self.vae, "_hf_hook", None)  # model offload moves the weights in here
        if hook is not None:
            hook.pre_forward(self.vae)
        return video.to(self.vae.device, self.dtype).permute(0, 2, 3, 4, 1).contiguous()

    def _check_pixels(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != self._pixel_channels or 0 in video.shape:
            raise InputError(
                f"Pixels must be batch x {self._pixel_channels} channels x frames x height x "
                f"width, got {tuple(video.shape)}."
            )
        if any(side % self.spatial_factor for side in video.shape[3:]):
            raise InputError(
                f"Height and width must be multiples of {self.spatial_factor}, "
                f"got {video.shape[3]} x {video.shape[4]}. Choose another size."
            )
