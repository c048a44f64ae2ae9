"""What the pipeline asks of a checkpoint, and what all checkpoints do alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from pixeldance.backbones.facts import Abilities
from pixeldance.diffusion import guided_velocity
from pixeldance.errors import InputError
from pixeldance.geometry import LatentGrid, Size, latent_grid
from pixeldance.models.transformer import PixelDanceTransformer3DModel, TextContext
from pixeldance.parallel import Parallelism

PicturesByFrame = Mapping[int, Image.Image]
"""The pictures of one clip by pixel frame, of the clip's size."""


class PicturesInForce(NamedTuple):
    """The pictures of one clip that are instructions at the first and at the last step."""

    first_step: PicturesByFrame
    """All of them."""

    last_step: PicturesByFrame
    """Those that stay to the end."""


class Moment(NamedTuple):
    """Where the solver is."""

    step: int
    """From 0."""

    sigma: Tensor
    """Noise level of the latents, a float32 scalar on the CPU."""

    timestep: Tensor
    """What the transformer is told: about 1000 * sigma, a scalar on the CPU."""


class Texts(NamedTuple):
    """Token states, ``prompts seq dim``, zeros after each prompt's real tokens."""

    cond: Tensor
    uncond: Tensor | None = None


class Guidance(NamedTuple):
    """Guidance scales; 1.0 is off, one forward pass a step."""

    scale: float
    scale_2: float | None = None
    """That of the second expert, where there is one; None means the first one's."""

    @property
    def is_on(self) -> bool:
        """Whether any step needs the negative prompt."""
        return max(self.scale, self.scale_2 or 1.0) > 1.0


VelocityFn = Callable[[Tensor, Moment], Tensor]
StepFn = Callable[[int, Tensor], Tensor | None]


class Backbone(ABC):
    """One call's view of a pipeline's components; it forgets everything when the call is over.

    Args:
        pipeline: The pipeline whose components are used.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.vae = pipeline.vae
        self.parallel: Parallelism | None = pipeline.parallel
        self.num_steps = 0
        self._contexts: dict[tuple[int, int], dict[str, TextContext]] = {}

    # ---- facts

    @cached_property
    def device(self) -> torch.device:
        """Where tensors for the models go."""
        device: torch.device = self.pipeline._execution_device
        return device

    @property
    def transformer(self) -> PixelDanceTransformer3DModel:
        """The transformer of the first step."""
        return self.pipeline.transformer

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along each side."""
        return int(self.vae.config.scale_factor_spatial)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return int(self.vae.config.scale_factor_temporal)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.z_dim)

    def grid(self, num_frames: int, size: Size) -> LatentGrid:
        """Shape of a clip in latent space."""
        return latent_grid(
            num_frames,
            size,
            spatial_factor=self.spatial_factor,
            temporal_factor=self.temporal_factor,
        )

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        patch: Sequence[int] = self.transformer.config.patch_size
        return self.spatial_factor * max(patch[1], patch[2])

    def token_grid(self, grid: LatentGrid) -> list[int]:
        """Tokens of a clip along time, height and width."""
        patch: Sequence[int] = self.transformer.config.patch_size
        return [cells // side for cells, side in zip(grid, patch, strict=True)]

    @property
    @abstractmethod
    def pixel_budget(self) -> int:
        """Height times width to aim at where no size is given."""

    @property
    def abilities(self) -> Abilities:
        """What of a request these weights can follow."""
        return Abilities()

    def check(self, clips: Sequence[PicturesByFrame], guidance: Guidance) -> None:
        """Refuse, before anything heavy, what these weights cannot do.

        Args:
            clips: All pictures of every prompt.
            guidance: The scales asked for.

        Raises:
            InputError: If a picture or an option would have no effect.
        """
        self.abilities.check(has_pictures=any(clips), guidance_scale_2=guidance.scale_2)

    def boundary_share(self, num_steps: int) -> float:  # noqa: ARG002
        """Share of the steps that the first of two experts does, in [0, 1]; 1.0 with one."""
        return 1.0

    # ---- several processes

    def check_parallel(self, grid: LatentGrid, guidance: Guidance) -> None:
        """Refuse, before anything heavy, a clip that the processes cannot share.

        Args:
            grid: Latent grid of the clips.
            guidance: The scales asked for.

        Raises:
            InputError: If they cannot.
        """
        if self.parallel is not None:
            self.parallel.check_call(self.token_grid(grid), is_guided=guidance.is_on)

    def place(self, noise: Tensor) -> Tensor:
        """Noise on the device; what the first process drew, where there are several."""
        noise = noise if self.parallel is None else self.parallel.broadcast(noise)
        return noise.to(self.device)

    # ---- preparing

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Token states of prompts, ``prompts seq dim``, zeros after the real tokens."""

    @abstractmethod
    def prepare_pictures(
        self,
        clips: Sequence[PicturesByFrame],
        owners: Sequence[int],
        noise: Tensor,
        grid: LatentGrid,
        num_frames: int,
    ) -> Any:
        """What the pictures that are in force tell the transformer.

        Args:
            clips: The pictures of every prompt.
            owners: For each clip of the batch, its prompt.
            noise: The noise that sampling starts from, ``batch channels frames height width``.
            grid: Latent grid of the clips.
            num_frames: Length of the clips.

        Returns:
            What :meth:`velocity` and :meth:`finish` take as ``conditions``.
        """

    def text(self, name: str, prompts: Sequence[str], embeds: Tensor | None) -> Tensor:
        """Token states given or made of prompts.

        Args:
            name: Name of the option, for messages.
            prompts: Texts, not looked at where states are given.
            embeds: Token states in their place, or None.

        Returns:
            ``prompts seq dim``.

        Raises:
            InputError: If the states have another shape, or there is no text encoder.
        """
        width = int(self.transformer.config.text_dim)
        if embeds is None:
            if self.needs_text_encoder(prompts) and self.pipeline.text_encoder is None:
                raise InputError(f"This pipeline has no text encoder. Give {name}_embeds instead.")
            return self.encode_prompts(prompts)
        if embeds.ndim != 3 or embeds.shape[0] != len(prompts) or embeds.shape[2] != width:
            raise InputError(
                f"{name}_embeds must have the shape ({len(prompts)}, tokens, {width}), "
                f"got {tuple(embeds.shape)}."
            )
        return embeds

    def needs_text_encoder(self, prompts: Sequence[str]) -> bool:
        """Whether these prompts cannot be encoded without the text encoder."""
        return bool(prompts)

    # ---- sampling

    def begin(
        self,
        noise: Tensor,
        clips: Sequence[PicturesInForce],  # noqa: ARG002 - not everybody's
        texts: Texts,  # noqa: ARG002
        owners: Sequence[int],  # noqa: ARG002
        velocity_fn: VelocityFn,  # noqa: ARG002
    ) -> Tensor:
        """Latents that sampling starts from.

        Args:
            noise: Of all clips.
            clips: The pictures of every prompt.
            texts: Token states of every prompt.
            owners: For each clip of the batch, its prompt.
            velocity_fn: Gives the velocity at (latents, moment).

        Returns:
            The noise, or noisy latents of what is known of the clips.
        """
        return noise

    @abstractmethod
    def sample(
        self, velocity_fn: VelocityFn, latents: Tensor, num_steps: int, on_step: StepFn
    ) -> Tensor:
        """Solve from where sampling starts to clean latents.

        Args:
            velocity_fn: Gives the velocity at (latents, moment).
            latents: What :meth:`begin` made.
            num_steps: Steps of the solver.
            on_step: Called after each step; latents that it returns replace the current ones.

        Returns:
            Float32 latents.
        """

    @abstractmethod
    def velocity(
        self,
        latents: Tensor,
        moment: Moment,
        conditions: Any,
        texts: Texts,
        guidance: Guidance,
        owners: Sequence[int],
    ) -> Tensor:
        """Guided velocity of all clips, float32.

        Args:
            latents: Noisy latents.
            moment: Where the solver is.
            conditions: From :meth:`prepare_pictures`.
            texts: Token states of every prompt.
            guidance: Scales.
            owners: For each clip of the batch, its prompt.

        Returns:
            Velocity like ``latents``.
        """

    def finish(self, latents: Tensor, conditions: Any) -> Tensor:  # noqa: ARG002
        """Clean latents as they are decoded."""
        return latents

    def decode(
        self, latents: Tensor, clips: Sequence[PicturesInForce], texts: Texts, owner: int
    ) -> Tensor:
        """Video of one clip in [0, 1] on the CPU, ``frames 3 height width``."""
        video = self.decode_video(latents, clips, texts, owner)[0]
        return video.add(1.0).div(2.0).clamp(0.0, 1.0).transpose(0, 1).float().cpu()

    @abstractmethod
    def decode_video(
        self, latents: Tensor, clips: Sequence[PicturesInForce], texts: Texts, owner: int
    ) -> Tensor:
        """Video of one clip in [-1, 1], ``1 3 frames height width``.

        Args:
            latents: Clean latents of the clip.
            clips: The pictures of every prompt.
            texts: Token states of every prompt.
            owner: The clip's prompt.

        Returns:
            Float32 video.
        """

    # ---- shared by the families

    def contexts(
        self,
        transformer: PixelDanceTransformer3DModel,
        texts: Texts,
        owners: Sequence[int],
        *,
        with_uncond: bool,
        image_tokens: Tensor | None = None,
    ) -> dict[str, TextContext]:
        """Keys and values of texts and pictures for every layer, computed once for all steps.

        Only the last transformer's are kept: an earlier expert does not come back.
        """
        key = (id(transformer), id(image_tokens))
        if key not in self._contexts:
            named = {"cond": texts.cond, "uncond": texts.uncond if with_uncond else None}
            self._contexts = {
                key: {
                    name: self._context(transformer, states, owners, image_tokens)
                    for name, states in named.items()
                    if states is not None
                }
            }
        return self._contexts[key]

    def _context(
        self,
        transformer: PixelDanceTransformer3DModel,
        states: Tensor,
        owners: Sequence[int],
        image_tokens: Tensor | None,
    ) -> TextContext:
        # Padding is zeros at the end; the transformer collapses it to one key.
        is_real = (states != 0).any(dim=-1)
        positions = torch.arange(1, states.shape[1] + 1, device=states.device)
        num_real_tokens = (is_real * positions).amax(dim=1).tolist()
        # An offloaded model is only brought to its device by its own forward.
        hook = getattr(transformer, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(transformer)
        context: TextContext = transformer.prepare_context(
            states.to(self.device, transformer.dtype),
            None if image_tokens is None else image_tokens.to(self.device, transformer.dtype),
            num_real_tokens=num_real_tokens,
        )
        return context.select(owners)

    def guided(
        self,
        transformer: PixelDanceTransformer3DModel,
        model_input: Tensor,
        timestep: Tensor,
        moment: Moment,
        contexts: Mapping[str, TextContext],
        scale: float,
    ) -> Tensor:
        """One forward pass for each context, combined in float32."""
        model_input = model_input.to(transformer.dtype)

        def predict(name: str) -> Tensor:
            with transformer.cache_context(
                name,
                step_index=moment.step,
                num_inference_steps=self.num_steps,
                timestep=timestep,
                sigma=float(moment.sigma),
            ):
                velocity: Tensor = transformer(
                    hidden_states=model_input,
                    timestep=timestep,
                    context=contexts[name],
                    return_dict=False,
                )[0]
                return velocity.float()

        if "uncond" not in contexts:
            return predict("cond")
        if self.parallel is not None and self.parallel.num_branches == 2:
            own = predict(("cond", "uncond")[self.parallel.branch])
            cond, uncond = self.parallel.exchange_branches(own)
        else:
            cond, uncond = predict("cond"), predict("uncond")
        return guided_velocity(cond, uncond, scale)
