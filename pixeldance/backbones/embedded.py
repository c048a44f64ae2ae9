"""The model shipped with the package: MiniLM text, single pictures as conditions, Euler steps."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from pixeldance._pipeline_inputs import to_tensor
from pixeldance.backbones.base import (
    Backbone,
    Guidance,
    Moment,
    PicturesByFrame,
    PicturesInForce,
    StepFn,
    Texts,
    VelocityFn,
)
from pixeldance.diffusion import (
    add_noise,
    denoised_from,
    sample_euler,
    shifted_sigmas,
    timesteps_of,
)
from pixeldance.geometry import LatentGrid
from pixeldance.instructions import place_keyframes
from pixeldance.models.codec import (
    LinearVideoCodec,
    decode_latents,
    draft_latents,
    encode_pictures,
)
from pixeldance.models.references import References
from pixeldance.models.text import encode_prompts
from pixeldance.request import DEFAULT_PIXEL_BUDGET


class EmbeddedBackbone(Backbone):
    """Every picture is encoded alone and put into its latent frame, with a mask beside it."""

    @property
    def pixel_budget(self) -> int:
        """Height times width to aim at where no size is given."""
        return int(self.pipeline.config.pixel_budget or DEFAULT_PIXEL_BUDGET)

    def needs_text_encoder(self, prompts: Sequence[str]) -> bool:
        """Blank prompts are zeros."""
        return any(prompt.strip() for prompt in prompts)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Token states of prompts, ``prompts seq dim``, zeros after the real tokens."""
        length = self.pipeline.config.max_sequence_length
        if not self.needs_text_encoder(prompts):
            return torch.zeros(len(prompts), length, int(self.transformer.config.text_dim))
        embeds, _ = encode_prompts(
            self.pipeline.tokenizer,
            self.pipeline.text_encoder,
            list(prompts),
            max_sequence_length=length,
        )
        return embeds

    def prepare_pictures(
        self,
        clips: Sequence[PicturesByFrame],
        owners: Sequence[int],
        noise: Tensor,  # noqa: ARG002 - not everybody's
        grid: LatentGrid,
        num_frames: int,
    ) -> Tensor:
        """Mask and condition latents of every clip, ``batch 4+channels frames height width``."""
        known: dict[int, Tensor] = {}

        def encode(picture: Image.Image) -> Tensor:
            # One by one, and each picture once: the result must not depend on the batch.
            if id(picture) not in known:
                video = to_tensor(picture).unsqueeze(2).to(self.device)
                known[id(picture)] = encode_pictures(self.vae, video)[0, :, 0]
            return known[id(picture)]

        conditions = place_keyframes(
            [{frame: encode(picture) for frame, picture in clip.items()} for clip in clips],
            num_frames=num_frames,
            channels=self.latent_channels,
            latent_height=grid.latent_height,
            latent_width=grid.latent_width,
            temporal_factor=self.temporal_factor,
        )
        return conditions.stacked().to(self.device, torch.float32)[list(owners)]

    @property
    def start_sigma(self) -> float:
        """Noise level that sampling starts at: 1.0 is noise alone."""
        can_draft = isinstance(self.vae, LinearVideoCodec) and self.vae.refiner is not None
        return float(self.pipeline.config.start_sigma) if can_draft else 1.0

    def begin(
        self,
        noise: Tensor,
        clips: Sequence[PicturesInForce],
        texts: Texts,
        owners: Sequence[int],
        velocity_fn: VelocityFn,
    ) -> Tensor:
        """What the pictures make by themselves, with noise on top.

        A clip without pictures starts from the transformer's first estimate in its place.
        """
        if self.start_sigma == 1.0:
            return noise
        drafts = torch.empty_like(noise)
        if not all(clips[owner].last_step for owner in owners):
            sigma = torch.tensor(1.0)
            velocity = velocity_fn(noise, Moment(0, sigma, timesteps_of(sigma)))
            drafts = denoised_from(noise, velocity, sigma)
        for clip, owner in enumerate(owners):
            references = self._references(clips[owner], texts.cond[[owner]], noise[[clip]])
            if references is not None:
                drafts[[clip]] = draft_latents(self.vae, references, noise.shape[2])
        drafts = drafts if self.parallel is None else self.parallel.broadcast(drafts)
        return add_noise(drafts, noise, self.start_sigma)

    def sample(
        self, velocity_fn: VelocityFn, latents: Tensor, num_steps: int, on_step: StepFn
    ) -> Tensor:
        """Euler steps over the shifted schedule."""
        self.num_steps = num_steps

        def velocity_at(latents: Tensor, sigma: Tensor, step: int) -> Tensor:
            return velocity_fn(latents, Moment(step, sigma, timesteps_of(sigma)))

        sigmas = shifted_sigmas(num_steps, shift=self.pipeline.config.shift, start=self.start_sigma)
        return sample_euler(velocity_at, latents, sigmas, on_step=on_step)

    def velocity(
        self,
        latents: Tensor,
        moment: Moment,
        conditions: Tensor,
        texts: Texts,
        guidance: Guidance,
        owners: Sequence[int],
    ) -> Tensor:
        """Guided velocity of all clips, float32."""
        contexts = self.contexts(self.transformer, texts, owners, with_uncond=guidance.is_on)
        model_input = torch.cat([latents, conditions], dim=1)
        timestep = moment.timestep.to(latents.device).expand(len(latents))
        return self.guided(
            self.transformer, model_input, timestep, moment, contexts, guidance.scale
        )

    def decode_video(self, latents: Tensor, pictures: PicturesInForce, text: Tensor) -> Tensor:
        """Video of one clip in [-1, 1], ``1 3 frames height width``; pictures lend their detail."""
        references = self._references(pictures, text, latents)
        if self.parallel is None:
            return decode_latents(self.vae, latents, references)
        # Latent frames are decoded without their neighbours: each process takes some.
        bounds = self.parallel.bounds(latents.shape[2])
        start, stop = bounds[self.parallel.rank], bounds[self.parallel.rank + 1]
        before = [max((bound - 1) * self.temporal_factor + 1, 0) for bound in bounds]
        return self.parallel.concatenate(
            self._decode_part(latents, references, start, stop),
            [later - earlier for earlier, later in pairwise(before)],
            dim=2,
        )

    def _decode_part(
        self, latents: Tensor, references: References | None, start: int, stop: int
    ) -> Tensor:
        """Video of the latent frames ``[start, stop)``.

        The first latent frame that the codec is given becomes one frame, the others four: where it
        is not the clip's first, one more is decoded and left out.
        """
        if start == stop:
            sides = [side * self.spatial_factor for side in latents.shape[3:]]
            return latents.new_empty(len(latents), 3, 0, *sides)
        begin = max(start - 1, 0)
        if references is not None:
            frames = references.frames - begin * self.temporal_factor
            references = references._replace(frames=frames)
        video = decode_latents(self.vae, latents[:, :, begin:stop], references)
        return video if start == 0 else video[:, :, 1:]

    def _references(
        self, pictures: PicturesInForce, text: Tensor, latents: Tensor
    ) -> References | None:
        """What the decoder may look at: the pictures in order, and the ends without a picture.

        Those that do not stay to the end tell where things go, but not how they look.
        """
        every, kept = pictures
        if not kept:
            return None
        last_index = (latents.shape[2] - 1) * self.temporal_factor
        frames = sorted({0, last_index, *every})
        any_picture = next(iter(every.values()))  # fills the place of one that is absent
        shown = [to_tensor(every.get(frame, any_picture)) for frame in frames]
        device = latents.device
        return References(
            pictures=torch.cat(shown).unsqueeze(0).to(device),
            frames=torch.tensor([frames], device=device),
            present=torch.tensor([[frame in every for frame in frames]], device=device),
            text=text.to(device),
            is_lent=torch.tensor([[frame in kept for frame in frames]], device=device),
        )
