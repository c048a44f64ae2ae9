"""The embedded model's video codec: a closed-form projection and a learned refiner.

Frames are grouped as 1 + 4 + 4 + ...; the first frame stands alone (repeated four times). Every
group is cut into patches of 16 x 16 pixels x 4 frames, and each patch is projected on the principal
components of such patches. Decoding is the transpose, then a
:class:`~pixeldance.models.refiner.ReferenceRefiner`, which takes lost detail from the given
pictures. The projection alone defines the latent space, so the refiner can be trained again at any
time without touching a transformer trained on the latents.

The class has the interface of a diffusers autoencoder. :func:`encode_pictures` and
:func:`decode_latents` are all a pipeline needs, and work with ``AutoencoderKLWan`` as well.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from torch import Tensor, nn

from pixeldance.errors import InputError
from pixeldance.models.alignment import GROUP
from pixeldance.models.draft import carried_pictures, stand_ins
from pixeldance.models.references import PreparedReferences, References, Shot, gaps, shots
from pixeldance.models.refiner import ReferenceRefiner


class ExactLatents:
    """A distribution with one possible outcome, so that diffusers' code can ask for its mode."""

    def __init__(self, latents: Tensor) -> None:
        self._latents = latents

    def mode(self) -> Tensor:
        """The latents."""
        return self._latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """The latents; nothing is random here."""
        return self._latents


class LinearVideoCodec(ModelMixin, ConfigMixin):
    """Projection codec for video, 16 x 16 x 4 pixels to ``z_dim`` numbers.

    Args:
        z_dim: Components kept.
        latents_mean: Per component, subtracted by :func:`encode_pictures`; zeros if absent.
        latents_std: Per component, divided by; ones if absent.
        refiner_channels: Widths of the refiner's U-Net; None for the bare projection.
        text_dim: Width of the token states that the refiner reads.
        scale_factor_spatial: Patch side in pixels.
        scale_factor_temporal: Frames per latent frame; only 4 is supported.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        z_dim: int = 64,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        refiner_channels: tuple[int, int, int] | None = (80, 112, 160),
        text_dim: int = 384,
        scale_factor_spatial: int = 16,
        scale_factor_temporal: int = GROUP,
    ) -> None:
        super().__init__()
        if scale_factor_temporal != GROUP:
            raise InputError(f"scale_factor_temporal must be {GROUP}, got {scale_factor_temporal}.")
        values = GROUP * 3 * scale_factor_spatial**2
        self.patch_mean = nn.Parameter(torch.zeros(values), requires_grad=False)
        self.components = nn.Parameter(torch.zeros(values, z_dim), requires_grad=False)
        self.register_to_config(
            latents_mean=list(latents_mean) if latents_mean is not None else [0.0] * z_dim,
            latents_std=list(latents_std) if latents_std is not None else [1.0] * z_dim,
        )
        if refiner_channels is None:
            self.refiner = None
        else:  # a list, when the config was read from a file
            fine, middle, coarse = refiner_channels
            self.refiner = ReferenceRefiner((fine, middle, coarse), text_dim=text_dim)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along each side."""
        return cast("int", self.config.scale_factor_spatial)

    def encode(
        self, video: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[ExactLatents]:
        """Project a video.

        Args:
            video: ``(batch, 3, frames, height, width)`` in [-1, 1]; ``4k + 1`` frames, sides
                multiples of 16.
            return_dict: Whether to wrap the result as diffusers does.

        Returns:
            Latents ``(batch, z_dim, k + 1, height / 16, width / 16)`` as a one-point distribution.

        Raises:
            InputError: For another shape.
        """
        frames, height, width = video.shape[2:]
        side = self.spatial_factor
        if video.shape[1] != 3 or (frames - 1) % GROUP or height % side or width % side:
            raise InputError(
                "video must be (batch, 3, 4k + 1, height, width) with sides in multiples of "
                f"{side}, got {tuple(video.shape)}. Resize it or drop frames."
            )
        posterior = ExactLatents(self._project(grouped(video)).to(video.dtype))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self,
        latents: Tensor,
        references: References | Sequence[Shot] | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[Tensor]:
        """Frames from latents.

        Args:
            latents: ``(batch, z_dim, k + 1, height / 16, width / 16)``.
            references: Pictures to take detail from, or what :meth:`prepare` made of them, or None.
            return_dict: Whether to wrap the result as diffusers does.

        Returns:
            Video ``(batch, 3, 4k + 1, height, width)`` in about [-1, 1].
        """
        video = torch.cat(list(self.decode_stream(latents, references)), dim=2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def decode_stream(
        self,
        latents: Tensor,
        references: References | Sequence[Shot] | None = None,
        *,
        groups: range | None = None,
        chunk: int = 2,
    ) -> Iterator[Tensor]:
        """Decode a few latent frames at a time; together the chunks are :meth:`decode`'s result.

        Args:
            latents: As for :meth:`decode`, always of the whole clip.
            references: As for :meth:`decode`.
            groups: Which latent frames to decode, one after the other; None is all.
            chunk: Latent frames per chunk, at least 1.

        Yields:
            Video ``(batch, 3, frames, height, width)``: one frame of the first latent frame, four
            of each other.

        Raises:
            InputError: If ``chunk < 1``, and as :meth:`prepare`.
        """
        if chunk < 1:
            raise InputError(f"chunk must be at least 1, got {chunk}.")
        wanted = range(latents.shape[2]) if groups is None else groups
        if self.refiner is None:
            known: Sequence[Shot | None] = [None]
        elif references is None or isinstance(references, References):
            known = self.prepare(references or self._no_references(latents), latents.shape[2])
        else:
            known = references
        for shot in known:
            among = wanted if shot is None else _common(wanted, shot.groups)
            for start in range(among.start, among.stop, chunk):
                part = range(start, min(start + chunk, among.stop))
                frames = self.unproject(latents[:, :, part.start : part.stop])
                if shot is not None:
                    frames = self._refined(frames, shot, part)
                video = rearrange(frames, "b t q c h w -> b c (t q) h w")
                if start == 0:  # the first frame was repeated
                    first = frames[:, 0].mean(1)[:, :, None]
                    video = torch.cat([first, video[:, :, GROUP:]], dim=2)
                yield video.to(latents.dtype)

    @torch.no_grad()
    def prepare(self, references: References, num_groups: int) -> list[Shot]:
        """Find out once what the given pictures tell about all latent frames of a clip.

        Args:
            references: Of the whole clip.
            num_groups: Latent frames of the clip.

        Returns:
            All latent frames in order, each shot with its references and their draft.

        Raises:
            InputError: If there are more than two references and they are not at the same,
                increasing frames in all clips, or for text of another width.
        """
        text, width = references.text, self.config.text_dim
        if text is not None and text.shape[-1] != width:
            raise InputError(
                f"text must be (batch, tokens, {width}) for this codec, got {tuple(text.shape)}. "
                "Use the text encoder that it was trained with."
            )
        known = []
        for groups, around in self._shots(references, num_groups):
            prepared = self.prepare_references(around)
            slots = torch.tensor(groups, device=around.frames.device)
            known.append(Shot(groups, prepared, self.draft_groups(prepared, slots)))
        return known

    @torch.no_grad()
    def draft(self, shots: Sequence[Shot]) -> Tensor:
        """Latents of the clip that the given pictures make by themselves.

        Args:
            shots: From :meth:`prepare`, with a picture that lends its pixels in each.

        Returns:
            Latents ``(batch, z_dim, num_groups, height / 16, width / 16)``.

        Raises:
            InputError: If a shot has no such picture.
        """
        parts = []
        for shot in shots:
            lent = shot.references.given.present
            if shot.drafted is None or not lent.any(1).all():
                raise InputError(
                    "a draft needs a picture that lends its pixels in each clip, got "
                    f"{lent.tolist()}. Draft the clips that have one."
                )
            parts.append(shot.drafted)
        return self._project(torch.cat(parts, dim=1))

    @torch.no_grad()
    def draft_shot(self, references: PreparedReferences, frames: Tensor) -> Tensor:
        """Frames between two references that nothing but the references make.

        Args:
            references: Two references, prepared, at least one of them present in each clip.
            frames: ``(q,)`` or ``(batch, q)`` int64, which frames.

        Returns:
            Video ``(batch, 3, q, height, width)``, float32; anything where no reference is present.
        """
        given, _, motion = references
        assert motion is not None, "there is motion where a picture is present"
        start, end = given.frames.unbind(1)
        since, way = frames.to(start.device) - start[:, None], (end - start)[:, None]
        time = torch.where(way > 0, (since / way.clamp(min=1)).clamp(0, 1), 0.0)
        return carried_pictures(given.pictures, given.present, motion, time)

    def _shots(self, references: References, num_groups: int) -> list[tuple[range, References]]:
        """Latent frames and what helps them; of two pictures with a cut between them, only one."""
        text = references.text
        if self.refiner is None or text is None or references.frames.shape[1] != 2:
            return gaps(references, num_groups)
        with torch.no_grad():
            return shots(references, num_groups, self.refiner.cuts_asked_for(text))

    def _no_references(self, latents: Tensor) -> References:
        batch, device = len(latents), latents.device
        height, width = (self.spatial_factor * cells for cells in latents.shape[-2:])
        return References(
            torch.zeros(batch, 0, 3, height, width, device=device),
            torch.zeros(batch, 0, dtype=torch.int64, device=device),
            torch.zeros(batch, 0, dtype=torch.bool, device=device),
        )

    def _refined(self, frames: Tensor, shot: Shot, groups: range) -> Tensor:
        """Refine coarse frames ``(batch, t, 4, 3, height, width)`` of some latent frames."""
        assert self.refiner is not None, "only a refiner refines"
        given, coarse_references, motion = shot.references
        slots = torch.tensor(groups, device=frames.device)
        start = groups.start - shot.groups.start
        draft = shot.drafted
        weight_type = self.refiner.enter.weight.dtype
        refined, _ = self.refiner(
            frames.to(weight_type),
            given.pictures.to(weight_type),
            coarse_references.to(weight_type),
            given.frames[:, None] - GROUP * slots[None, :, None],
            given.present,
            motion,
            None if draft is None else draft[:, start : start + len(groups)],
        )
        return refined

    def draft_groups(self, references: PreparedReferences, slots: Tensor) -> Tensor | None:
        """What the references alone make of some latent frames.

        Args:
            references: As for :meth:`draft_shot`.
            slots: ``(t,)`` or ``(batch, t)`` int64, which latent frames.

        Returns:
            ``(batch, t, 4, 3, height, width)``, float32; None if there is no reference at all.
        """
        if references.motion is None:
            return None
        behind = torch.arange(GROUP - 1, -1, -1, device=slots.device)
        frames = (GROUP * slots[..., None] - behind).clamp(min=0).flatten(-2)
        video = self.draft_shot(references, frames)
        return rearrange(video, "b c (t q) h w -> b t q c h w", q=GROUP)

    def project_picture(self, picture: Tensor) -> Tensor:
        """What the projection keeps of pictures ``(batch, 3, height, width)``; same shape."""
        return self.unproject(self._project(grouped(picture[:, :, None])))[:, 0].mean(1)

    @torch.no_grad()
    def prepare_references(self, references: References) -> PreparedReferences:
        """Fill up to two references, and find out what all frames need to know about them.

        Args:
            references: At most two.

        Returns:
            The references with their projections and the motion between them.

        Raises:
            InputError: If there are more than two.
        """
        assert self.refiner is not None, "only a refiner needs references"
        pictures, frames, present, text, _ = references
        given = pictures.shape[1]
        if given > 2:
            raise InputError(
                f"at most two references can be used, got {given}. Leave out the others."
            )
        batch, missing = len(pictures), 2 - given

        def padded_with_zeros(values: Tensor) -> Tensor:
            return torch.cat([values, values.new_zeros(batch, missing, *values.shape[2:])], 1)

        pictures, frames, present, lent = (
            padded_with_zeros(values) for values in (pictures, frames, present, references.lent)
        )
        flat = rearrange(pictures, "b r c h w -> (b r) c h w")
        coarse = rearrange(self.project_picture(flat), "(b r) c h w -> b r c h w", r=2)
        motion = None
        if present.any():
            if text is None:
                text = pictures.new_zeros(batch, 0, self.config.text_dim)
            motion = self.refiner.motion_between(pictures, present, text)
            motion = motion._replace(behind=stand_ins(pictures, motion.front))
        return PreparedReferences(References(pictures, frames, lent, text), coarse, motion)

    def _project(self, groups: Tensor) -> Tensor:
        patches = patches_of(groups.float(), self.spatial_factor)
        latents = (patches - self.patch_mean.float()) @ self.components.float()
        return rearrange(latents, "b t h w c -> b c t h w")

    def unproject(self, latents: Tensor) -> Tensor:
        """Coarse frames ``(b, t, 4, 3, height, width)``, float32."""
        side = self.spatial_factor
        values = rearrange(latents.float(), "b c t h w -> b t h w c") @ self.components.float().mT
        return rearrange(
            values + self.patch_mean.float(),
            "b t h w (q c y x) -> b t q c (h y) (w x)",
            q=GROUP,
            c=3,
            y=side,
            x=side,
        )


def grouped(video: Tensor) -> Tensor:
    """Frames by latent frame: ``(b, c, 4k + 1, h, w)`` to ``(b, k + 1, 4, c, h, w)``.

    The first frame stands alone: it is repeated to fill its group.
    """
    whole = torch.cat([video[:, :, :1].expand(-1, -1, GROUP - 1, -1, -1), video], dim=2)
    return rearrange(whole, "b c (t q) h w -> b t q c h w", q=GROUP)


def patches_of(groups: Tensor, side: int) -> Tensor:
    """What is projected: ``(b, t, 4, 3, h, w)`` to ``(b, t, h / side, w / side, values)``."""
    return rearrange(groups, "b t q c (h y) (w x) -> b t h w (q c y x)", y=side, x=side)


def _common(one: range, other: range) -> range:
    """Numbers that two ranges of step 1 share."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def denormalized(codec: ModelMixin, latents: Tensor) -> Tensor:
    """The codec's own float32 latents from normalised ones."""
    mean, std = _statistics(codec, latents)
    return latents.float() * std + mean


def normalized(codec: ModelMixin, latents: Tensor) -> Tensor:
    """Float32 latents of about unit variance from the codec's own, as ``denormalized`` undoes."""
    mean, std = _statistics(codec, latents)
    return (latents.float() - mean) / std


def _statistics(codec: ModelMixin, latents: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
        for values in (codec.config.latents_mean, codec.config.latents_std)
    )
    return mean, std


@torch.no_grad()
def encode_pictures(codec: ModelMixin, video: Tensor) -> Tensor:
    """Normalised latents of a video or of single pictures.

    Args:
        codec: A :class:`LinearVideoCodec` or an ``AutoencoderKLWan``.
        video: ``(batch, 3, frames, height, width)`` in [-1, 1].

    Returns:
        Float32 ``(batch, channels, latent_frames, latent_height, latent_width)`` of about unit
        variance.
    """
    return normalized(codec, codec.encode(video.to(codec.dtype)).latent_dist.mode())


@torch.no_grad()
def decode_latents(
    codec: ModelMixin,
    latents: Tensor,
    references: References | Sequence[Shot] | None = None,
    groups: range | None = None,
) -> Tensor:
    """Video from normalised latents, the inverse of :func:`encode_pictures`.

    Args:
        codec: A :class:`LinearVideoCodec` or an ``AutoencoderKLWan`` (which has no use for
            references).
        latents: Normalised latents.
        references: Pictures the clip is known to contain, or what the codec prepared of them.
        groups: Which latent frames to decode; None is all. A Wan codec needs all.

    Returns:
        Float32 ``(batch, 3, frames, height, width)``, clamped to [-1, 1].
    """
    raw = denormalized(codec, latents)
    if isinstance(codec, LinearVideoCodec):
        parts = list(codec.decode_stream(raw, references, groups=groups))
        sides = [side * codec.spatial_factor for side in raw.shape[3:]]
        video = torch.cat([raw.new_empty(len(raw), 3, 0, *sides), *parts], dim=2)
    else:
        assert groups is None, "a frame of a Wan codec depends on those before it"
        video = codec.decode(raw.to(codec.dtype)).sample
    return video.float().clamp(-1, 1)


def draft_latents(codec: LinearVideoCodec, shots: Sequence[Shot]) -> Tensor:
    """Normalised latents of :meth:`LinearVideoCodec.draft`.

    Args:
        codec: A codec with a refiner.
        shots: What it prepared, with at least one picture in each clip.

    Returns:
        Float32 ``(batch, z_dim, num_groups, height / 16, width / 16)``.
    """
    return normalized(codec, codec.draft(shots))


def principal_components(
    patches: Tensor, z_dim: int, *, whitening: float = 0.25
) -> tuple[Tensor, Tensor, list[float]]:
    """Projection that keeps most of the variance of patches.

    Args:
        patches: ``(n, values)``, float32.
        z_dim: Components to keep.
        whitening: Component i is divided by variance^whitening, then all by one factor that makes
            the mean variance 1: 0 keeps their natural sizes, 0.5 makes all equal.

    Returns:
        Mean ``(values,)``, components ``(values, z_dim)`` and the ``latents_std`` of the codec's
        config.
    """
    mean = patches.mean(0)
    centred = (patches - mean).double()
    covariance = centred.T @ centred / len(centred)
    variances, vectors = torch.linalg.eigh(covariance)
    variances = variances.flip(0)[:z_dim].clamp(min=1.0e-12)
    scale = variances**whitening
    scale = scale * (variances / scale**2).mean().sqrt()
    return mean, vectors.flip(1)[:, :z_dim].float().contiguous(), scale.tolist()
