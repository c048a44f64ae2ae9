"""The pipeline: prompts and pictures in, clips out.

A classic diffusers pipeline around one sampler. Latents, guidance and the solver are in float32
whatever the model's dtype; noise is drawn for each clip on its own, on the CPU, so that a clip does
not depend on its neighbours in a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.loaders import WanLoraLoaderMixin
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from pixeldance._pipeline_inputs import (
    DEFAULTS,
    Keyframes,
    Pictures,
    PixelDanceOutput,
    check_callback_tensors,
    check_options,
    check_size,
    draw_noise,
    fit_all,
    load_instructions,
    per_prompt,
    prompt_list,
    to_output,
)
from pixeldance.backbones.base import Backbone, Guidance, Moment, PicturesInForce, Texts
from pixeldance.backbones.embedded import EmbeddedBackbone
from pixeldance.backbones.loading import (
    check_components,
    loading_options,
    named_loading_errors,
)
from pixeldance.backbones.released import ReleasedBackbone
from pixeldance.backbones.step_cache import StepCache, cached_steps, calibrate, forget_steps
from pixeldance.diffusion import denoised_from
from pixeldance.diffusion.schedule import SAMPLING_SHIFT, SAMPLING_START
from pixeldance.errors import GenerationCancelled
from pixeldance.geometry import Size, resolve_size
from pixeldance.instructions import last_frame_steps
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.text import load_text_encoder
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.parallel import Parallelism

if TYPE_CHECKING:
    from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
"""``callback(pipeline, step, timestep, tensors) -> tensors`` as in every diffusers pipeline."""


class _FinishedEarly(Exception):  # noqa: N818 - leaves the solver, no failure
    """The callback asked for the current estimate."""


class PixelDancePipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Makes clips that start at one picture, end at another and do what a sentence says.

    Every picture is optional. What depends on the checkpoint is behind ``backbone``.

    Args:
        transformer: Predicts the velocity of the latents.
        vae: Codec between video and latents, with the interface of a diffusers autoencoder.
        text_encoder: Gives token states; not needed where ``prompt_embeds`` are given.
        tokenizer: Belongs to the text encoder.
        scheduler: Solver of a Wan checkpoint; without one the model is an embedded one.
        image_encoder: CLIP encoder of a Wan checkpoint that takes CLIP tokens.
        image_processor: Belongs to the image encoder.
        transformer_2: Second expert of a Wan checkpoint, for low noise.
        shift: Timestep shift of an embedded model's noise levels, greater than 0.
        start_sigma: Noise level, in (0, 1], at which an embedded model starts from what its codec
            makes of the pictures alone; 1.0 starts from noise, as a codec without motion does.
        pixel_budget: Height times width to aim at where no size is given; None leaves it to the
            checkpoint.
        default_fps: Frames per second that the model was trained at.
        max_sequence_length: Text tokens that an embedded model sees.
        boundary_ratio: Share of the timesteps, from 0, that belongs to the second expert.
        expand_timesteps: Whether a Wan checkpoint takes a timestep for each token.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->transformer_2->vae"
    _optional_components = [  # noqa: RUF012 - read by diffusers
        "text_encoder",
        "tokenizer",
        "scheduler",
        "image_encoder",
        "image_processor",
        "transformer_2",
    ]
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - read by diffusers

    def __init__(
        self,
        transformer: PixelDanceTransformer3DModel,
        vae: LinearVideoCodec | AutoencoderKLWan,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scheduler: SchedulerMixin | None = None,
        image_encoder: PreTrainedModel | None = None,
        image_processor: BaseImageProcessor | None = None,
        transformer_2: PixelDanceTransformer3DModel | None = None,
        shift: float = SAMPLING_SHIFT,
        start_sigma: float = SAMPLING_START,
        pixel_budget: int | None = None,
        default_fps: int = DEFAULTS.fps,
        max_sequence_length: int = 64,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            image_encoder=image_encoder,
            image_processor=image_processor,
            transformer_2=transformer_2,
        )
        self.register_to_config(
            shift=shift,
            start_sigma=start_sigma,
            pixel_budget=pixel_budget,
            default_fps=default_fps,
            max_sequence_length=max_sequence_length,
            boundary_ratio=boundary_ratio,
            expand_timesteps=expand_timesteps,
        )
        self.parallel: Parallelism | None = None
        self.step_cache: StepCache | None = None
        self._has_shared_text_encoder = False
        self._interrupt = False
        self._finish_early = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._denoised: Tensor | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **components: Any,
    ) -> Self:
        """Load the pipeline from a local folder: one of ours, or a Wan checkpoint of diffusers.

        An embedded model without a text encoder gets the one that is installed, in float32.

        Args:
            folder: Folder with ``model_index.json``, ``transformer/``, ``vae/``, ...
            dtype: Dtype of the transformers and of a Wan checkpoint's text encoder, or a dtype for
                each component; those left out are in float32.
            **components: Components by name to use in place of those of the folder.
                ``text_encoder=None`` loads none.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If the folder holds no pipeline, or part of it cannot be loaded.
            InputError: If a component is unknown.
        """
        check_components(
            folder, components, known=("transformer", "vae", *cls._optional_components)
        )
        with named_loading_errors(folder):
            options = loading_options(folder, dtype, components)
            pipeline = super().from_pretrained(str(folder), **options)
        # The folder's own path would end up in files that are saved from here.
        for part in (pipeline, *pipeline._models()):
            part.register_to_config(_name_or_path=Path(folder).name)
        is_embedded = pipeline.scheduler is None
        if is_embedded and pipeline.text_encoder is None and "text_encoder" not in components:
            tokenizer, text_encoder = load_text_encoder()
            pipeline.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)
            pipeline._has_shared_text_encoder = True
        return pipeline

    def save_pretrained(
        self, folder: str | Path, *, include_text_encoder: bool | None = None
    ) -> None:
        """Save the pipeline so that ``from_pretrained`` gives it back.

        Args:
            folder: Folder to write to; it is made if missing.
            include_text_encoder: Whether to save the text encoder too. By default only one that
                was passed in or came with the folder, not one that was found on the machine.
        """
        if include_text_encoder is None:
            include_text_encoder = not self._has_shared_text_encoder
        # Where the parts came from is a path of this machine.
        for part in self._models():
            part.register_to_config(_name_or_path=Path(folder).name)
        tokenizer, text_encoder = self.tokenizer, self.text_encoder
        if not include_text_encoder:
            self.register_modules(tokenizer=None, text_encoder=None)
        try:
            super().save_pretrained(str(folder))
        finally:
            self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop by setting ``_interrupt``; the call then raises."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the running call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """Timestep (1000 * sigma) of the running step; None between calls."""
        return self._current_timestep

    @property
    def denoised(self) -> Tensor | None:
        """The running step's estimate of the clean latents, normalised; None between calls."""
        return self._denoised

    def _models(self) -> list[ModelMixin]:
        """The components of diffusers' kind."""
        models = (self.transformer, self.transformer_2, self.vae)
        return [model for model in models if model is not None]

    @property
    def backbone(self) -> Backbone:
        """What the components can do: a fresh view of them, good for one call."""
        return EmbeddedBackbone(self) if self.scheduler is None else ReleasedBackbone(self)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.backbone.size_multiple

    def size_for(self, aspect_ratio: str, pictures: Mapping[int, Image.Image]) -> Size:
        """The size of a clip for which none is given.

        Args:
            aspect_ratio: One of ``geometry.ASPECT_RATIOS``, or ``auto``: that of the earliest
                picture, 16:9 without one.
            pictures: The pictures of the clip by pixel frame.

        Returns:
            A size near the model's pixel budget.
        """
        earliest = pictures[min(pictures)] if pictures else None
        backbone = self.backbone
        return resolve_size(
            aspect_ratio,
            pixel_budget=backbone.pixel_budget,
            multiple=backbone.size_multiple,
            first_frame=None if earliest is None else Size(earliest.height, earliest.width),
        )

    def high_noise_share(self, num_inference_steps: int) -> float:
        """The ``last_frame_strength`` that leaves the last frame to the first of two experts."""
        return self.backbone.boundary_share(num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        first_frame: Pictures = None,
        last_frame: Pictures = None,
        keyframes: Keyframes = None,
        *,
        last_frame_strength: float = DEFAULTS.last_frame_strength,
        fit: str = DEFAULTS.fit,
        focus: tuple[float, float] = DEFAULTS.focus,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = DEFAULTS.resolved_num_frames,
        num_inference_steps: int = DEFAULTS.num_inference_steps,
        guidance_scale: float = DEFAULTS.guidance_scale,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: "StepCallback | PipelineCallback | MultiPipelineCallbacks | None" = (
            None
        ),
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> PixelDanceOutput | tuple[Any]:
        """Make clips.

        Clips come out prompt by prompt, ``num_videos_per_prompt`` of each.

        Args:
            prompt: What happens; a list makes a clip of each.
            negative_prompt: What to stay away from; only guidance uses it.
            first_frame: Picture that the clip starts at: one for all prompts or a list with one
                (or None) for each.
            last_frame: Picture that the clip ends at, likewise.
            keyframes: Pictures by pixel frame (-1 = last): a mapping for all, or one for each.
            last_frame_strength: Share of the steps, in [0, 1], at which the last frame is in force.
            fit: ``cover`` crops pictures of another shape around the focus, ``contain`` adds bars.
            focus: Point (x, y) in [0, 1] that cropping keeps.
            height: Pixels. Without height and width, the earliest picture of the first prompt
                gives the shape (16:9 without one) and the model's pixel budget the size.
            width: Pixels.
            num_frames: Length of the clips, 4k + 1.
            num_inference_steps: Steps of the solver.
            guidance_scale: How much more to follow the prompt; 1.0 = off, one forward pass a step.
            guidance_scale_2: That of the second expert, for models with two; None means the same.
            num_videos_per_prompt: Clips of each prompt.
            generator: Randomness, on the CPU: one for each clip, or one that all clips draw from in
                turn. A clip with its own generator does not depend on the others.
            latents: Noise to start from in place of drawn noise, batch channels frames height
                width on the latent grid.
            prompt_embeds: Token states in place of ``prompt``, batch seq dim, padded with zeros.
            negative_prompt_embeds: Token states in place of ``negative_prompt``.
            output_type: ``np``, ``pt``, ``pil`` or ``latent``, see ``PixelDanceOutput``.
            callback_on_step_end: Called after each step. Tensors that it returns replace the
                current ones; an exception that it raises stops the call; if it sets
                ``_finish_early``, the call goes on with ``denoised`` and without further steps.
            callback_on_step_end_tensor_inputs: Tensors that the callback gets: ``latents``.
            return_dict: Whether to return a ``PixelDanceOutput`` and not a tuple.

        Returns:
            The clips.

        Raises:
            InputError: If an option or a picture cannot be used.
            GenerationCancelled: If the callback set ``_interrupt``.
        """
        # 1. Check the options and load the pictures, before anything heavy.
        guidance = Guidance(guidance_scale, guidance_scale_2)
        scales = {"guidance_scale": guidance_scale, "guidance_scale_2": guidance_scale_2}
        check_options(num_inference_steps, scales, num_videos_per_prompt, output_type)
        tensor_names = check_callback_tensors(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        last_steps = last_frame_steps(last_frame_strength, num_inference_steps)
        prompts = prompt_list(prompt, prompt_embeds)
        negatives = per_prompt("negative_prompt", negative_prompt or "", len(prompts))
        instructions = load_instructions(
            first_frame, last_frame, keyframes, num_frames=num_frames, num_prompts=len(prompts)
        )
        backbone = self.backbone
        backbone.check([item.in_force(num_frames, True) for item in instructions], guidance)
        size = check_size(height, width, backbone.size_multiple)
        size = size or self.size_for("auto", instructions[0].in_force(num_frames, True))
        instructions = fit_all(instructions, size, fit=fit, focus=focus)
        grid = backbone.grid(num_frames, size)
        backbone.check_parallel(grid, guidance)
        num_clips = len(prompts) * num_videos_per_prompt
        noise = draw_noise(latents, generator, (num_clips, backbone.latent_channels, *grid))
        noise = backbone.place(noise)
        calibrate(self, num_inference_steps)
        owners = [clip // num_videos_per_prompt for clip in range(num_clips)]
        try:
            # 2. Prompts to token states.
            texts = Texts(backbone.text("prompt", prompts, prompt_embeds))
            if guidance.is_on:
                uncond = backbone.text("negative_prompt", negatives, negative_prompt_embeds)
                texts = texts._replace(uncond=uncond)

            # 3. Pictures to conditions: while the last frame is in force, and afterwards.
            def conditions(with_last_frame: bool) -> Any:
                clips = [item.in_force(num_frames, with_last_frame) for item in instructions]
                return backbone.prepare_pictures(clips, owners, noise, grid, num_frames)

            def in_force(is_last_kept: bool) -> list[PicturesInForce]:
                return [
                    PicturesInForce(
                        item.in_force(num_frames, last_steps > 0),
                        item.in_force(num_frames, is_last_kept),
                    )
                    for item in instructions
                ]

            is_dropped = 0 < last_steps < num_inference_steps
            is_dropped = is_dropped and any(item.last_frame for item in instructions)
            early = conditions(last_steps > 0)
            late = conditions(False) if is_dropped else early

            # 4. Noise to latents.
            self._guidance_scale, self._num_timesteps = guidance_scale, num_inference_steps
            self._interrupt = self._finish_early = False
            num_steps_done = num_inference_steps
            with self.progress_bar(total=num_inference_steps) as progress_bar:

                def velocity_at(latents: Tensor, moment: Moment) -> Tensor:
                    conditions = early if moment.step < last_steps else late
                    if is_dropped and moment.step == last_steps:
                        forget_steps(self)
                    self._current_timestep = moment.timestep
                    velocity = backbone.velocity(
                        latents, moment, conditions, texts, guidance, owners
                    )
                    self._denoised = denoised_from(latents, velocity, moment.sigma)
                    return velocity

                def on_step(step: int, latents: Tensor) -> Tensor | None:
                    progress_bar.update()
                    nonlocal num_steps_done
                    tensors = {"latents": latents} if tensor_names else {}
                    replaced = self._after_step(callback_on_step_end, step, tensors)
                    if self._finish_early and step + 1 < num_inference_steps:
                        num_steps_done = step + 1
                        raise _FinishedEarly
                    return replaced

                pictures = in_force(last_steps == num_inference_steps)
                latents = backbone.begin(noise, pictures, texts, owners, velocity_at)
                try:
                    with cached_steps(self, num_inference_steps):
                        latents = backbone.sample(
                            velocity_at, latents, num_inference_steps, on_step
                        )
                except _FinishedEarly:
                    assert self._denoised is not None, "a step has been done"
                    latents = self._denoised

            # 5. Latents to frames; the pictures in force at the last step lend their pixels.
            is_last_kept = last_steps >= num_steps_done
            latents = backbone.finish(latents, early if is_last_kept else late)
            frames: Any = latents
            if output_type != "latent":
                pictures = in_force(is_last_kept)
                clips = [
                    backbone.decode(latents[[clip]], pictures, texts, owner)
                    for clip, owner in enumerate(owners)
                ]
                frames = to_output(clips, output_type)
        finally:
            # 6. Offload the models and forget what caches kept, also after a cancelled call.
            self._current_timestep = self._denoised = None
            self.maybe_free_model_hooks()
        return PixelDanceOutput(frames=frames) if return_dict else (frames,)

    def _after_step(self, callback: Any, step: int, tensors: dict[str, Tensor]) -> Tensor | None:
        """Run the callback; the latents that it returns replace the current ones."""
        returned = None
        if callback is not None:
            returned = callback(self, step, self._current_timestep, tensors)
        if self.parallel is not None:  # all processes stop, or none
            flags = self._interrupt, self._finish_early
            self._interrupt, self._finish_early = self.parallel.any_of(*flags)
        if self._interrupt:
            raise GenerationCancelled(
                f"Generation was stopped after step {step + 1} of {self._num_timesteps}."
            )
        return None if returned is None else returned.get("latents")
