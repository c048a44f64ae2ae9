"""The model shipped with the package: MiniLM text, single pictures as conditions, Euler steps."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import DiffusionPipeline
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
from pixeldance.models.references import References, Shot
from pixeldance.models.text import encode_prompts
from pixeldance.request import DEFAULT_PIXEL_BUDGET


class EmbeddedBackbone(Backbone):
    """Every picture is encoded alone and put into its latent frame, with a mask beside it."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self._known: dict[tuple[int, frozenset[int]], Sequence[Shot]] = {}

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
        return float(self.pipeline.config.start_sigma) if self._takes_references else 1.0

    @property
    def _takes_references(self) -> bool:
        """Whether the codec makes something of given pictures."""
        return isinstance(self.vae, LinearVideoCodec) and self.vae.refiner is not None

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
            shots = self._shots(clips, texts, owner, noise[[clip]])
            if shots is not None:
                drafts[[clip]] = draft_latents(self.vae, shots)
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

    def decode_video(
        self, latents: Tensor, clips: Sequence[PicturesInForce], texts: Texts, owner: int
    ) -> Tensor:
        """Video of one clip in [-1, 1], ``1 3 frames height width``; pictures lend their detail."""
        shots = self._shots(clips, texts, owner, latents)
        if self.parallel is None or not isinstance(self.vae, LinearVideoCodec):
            return decode_latents(self.vae, latents, shots)
        # Latent frames are decoded without their neighbours: each process takes some.
        bounds = self.parallel.bounds(latents.shape[2])
        parts = [range(start, stop) for start, stop in pairwise(bounds)]
        frames = [max((bound - 1) * self.temporal_factor + 1, 0) for bound in bounds]
        return self.parallel.concatenate(
            decode_latents(self.vae, latents, shots, parts[self.parallel.rank]),
            [later - earlier for earlier, later in pairwise(frames)],
            dim=2,
        )

    def _shots(
        self, clips: Sequence[PicturesInForce], texts: Texts, owner: int, latents: Tensor
    ) -> Sequence[Shot] | None:
        """What the codec finds out about the pictures of a prompt, once for all of its clips."""
        key = owner, frozenset(clips[owner].last_step)
        if key not in self._known:
            references = self._references(clips[owner], texts.cond[[owner]], latents)
            if references is None or not self._takes_references:
                return None
            self._known[key] = self.vae.prepare(references, latents.shape[2])
        return self._known[key]

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
