"""The pipeline: prompts and pictures in, clips out.

A classic diffusers pipeline around one sampler. Latents, guidance and the solver are in float32
whatever the model's dtype; noise is drawn for each clip on its own, on the CPU, so that a clip does
not depend on its neighbours in a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pixeldance._pipeline_inputs import (
    DEFAULTS,
    Instructions,
    Keyframes,
    Pictures,
    check_options,
    fit_all,
    load_instructions,
    per_prompt,
    prompt_list,
    to_output,
    to_tensor,
)
from pixeldance.diffusion import (
    denoised_from,
    guided_velocity,
    sample_euler,
    shifted_sigmas,
    timesteps_of,
)
from pixeldance.diffusion.schedule import SAMPLING_SHIFT
from pixeldance.errors import CheckpointError, GenerationCancelled, InputError
from pixeldance.geometry import (
    LatentGrid,
    Size,
    latent_grid,
    resolve_size,
)
from pixeldance.instructions import last_frame_steps, place_keyframes
from pixeldance.models.codec import (
    LinearVideoCodec,
    References,
    decode_latents,
    encode_pictures,
)
from pixeldance.models.text import encode_prompts, load_text_encoder
from pixeldance.models.transformer import PixelDanceTransformer3DModel, TextContext
from pixeldance.request import DEFAULT_PIXEL_BUDGET

if TYPE_CHECKING:
    from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]
"""``callback(pipeline, step, timestep, tensors) -> tensors`` as in every diffusers pipeline."""


class _FinishedEarly(Exception):  # noqa: N818 - leaves the solver, no failure
    """The callback asked for the current estimate."""


@dataclass
class PixelDanceOutput(BaseOutput):
    """Result of the pipeline."""

    frames: Any
    """``np``: float32 in [0, 1], batch frames height width 3. ``pt``: the same values, batch frames
    3 height width. ``pil``: a list of lists of pictures. ``latent``: normalised latents."""


class PixelDancePipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Makes clips that start at one picture, end at another and do what a sentence says.

    Every picture is optional. The pipeline never asks which codec it holds.

    Args:
        transformer: Predicts the velocity of the latents.
        vae: Codec between video and latents, with the interface of a diffusers autoencoder.
        text_encoder: Gives token states; not needed where ``prompt_embeds`` are given.
        tokenizer: Belongs to the text encoder.
        shift: Timestep shift of the noise levels, greater than 0.
        pixel_budget: Height times width to aim at where no size is given.
        default_fps: Frames per second that the model was trained at.
        max_sequence_length: Text tokens that the model sees.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 - read by diffusers
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - read by diffusers

    def __init__(
        self,
        transformer: PixelDanceTransformer3DModel,
        vae: LinearVideoCodec | AutoencoderKLWan,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        shift: float = SAMPLING_SHIFT,
        pixel_budget: int = DEFAULT_PIXEL_BUDGET,
        default_fps: int = DEFAULTS.fps,
        max_sequence_length: int = 64,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            shift=shift,
            pixel_budget=pixel_budget,
            default_fps=default_fps,
            max_sequence_length=max_sequence_length,
        )
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
        """Load the pipeline from a local folder.

        A folder without a text encoder gets the one that is installed, in float32.

        Args:
            folder: Folder with ``model_index.json``, ``transformer/`` and ``vae/``.
            dtype: Dtype of the transformer, or a dtype for each component; those left out are in
                float32.
            **components: ``transformer``, ``vae``, ``text_encoder`` or ``tokenizer`` to use in
                place of those of the folder. ``text_encoder=None`` loads none.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If the folder holds no pipeline, or part of it cannot be loaded.
            InputError: If a component is unknown.
        """
        known = ("transformer", "vae", "text_encoder", "tokenizer")
        for name in components:
            if name not in known:
                raise InputError(f"Unknown component {name!r}. Known are {', '.join(known)}.")
        if not (Path(folder) / "model_index.json").is_file():
            raise CheckpointError(
                f"No pipeline in {folder}: model_index.json is missing. Give a folder that "
                "save_pretrained has written."
            )
        try:
            dtypes = dtype if isinstance(dtype, dict) else {"transformer": dtype or torch.float32}
            pipeline = super().from_pretrained(
                str(folder), dtype={"default": torch.float32, **dtypes}, **components
            )
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CheckpointError(
                f"The pipeline in {folder} cannot be loaded: {reason} Fetch its files again."
            ) from error
        # The folder's own path would end up in files that are saved from here.
        for part in (pipeline, pipeline.transformer, pipeline.vae):
            part.register_to_config(_name_or_path=Path(folder).name)
        if pipeline.text_encoder is None and "text_encoder" not in components:
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
        for part in (self.transformer, self.vae):
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

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        patch: Sequence[int] = self.transformer.config.patch_size
        return int(self.vae.config.scale_factor_spatial) * max(patch[1], patch[2])

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
        return resolve_size(
            aspect_ratio,
            pixel_budget=self.config.pixel_budget,
            multiple=self.size_multiple,
            first_frame=None if earliest is None else Size(earliest.height, earliest.width),
        )

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
        check_options(num_inference_steps, guidance_scale, num_videos_per_prompt, output_type)
        tensor_names = self._callback_tensors(
            callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        last_steps = last_frame_steps(last_frame_strength, num_inference_steps)
        prompts = prompt_list(prompt, prompt_embeds)
        negatives = per_prompt("negative_prompt", negative_prompt or "", len(prompts))
        instructions = load_instructions(
            first_frame, last_frame, keyframes, num_frames=num_frames, num_prompts=len(prompts)
        )
        size = self._resolve_size(height, width, instructions[0], num_frames)
        instructions = fit_all(instructions, size, fit=fit, focus=focus)
        grid = latent_grid(
            num_frames,
            size,
            spatial_factor=self.vae.config.scale_factor_spatial,
            temporal_factor=self.vae.config.scale_factor_temporal,
        )
        num_clips = len(prompts) * num_videos_per_prompt
        noise = self._prepare_noise(latents, generator, num_clips, grid)
        owners = [clip // num_videos_per_prompt for clip in range(num_clips)]
        try:
            # 2. Pictures to condition latents: while the last frame is in force, and afterwards.
            is_last_used, is_last_kept = last_steps > 0, last_steps == num_inference_steps
            early, late = (
                self._conditions(instructions, owners, grid, num_frames, with_last_frame=is_used)
                for is_used in (is_last_used, is_last_kept)
            )

            # 3. Prompts to token states, and those to keys and values, once for all steps.
            contexts = {"cond": self._context("prompt", prompts, prompt_embeds, owners)}
            if guidance_scale > 1.0:
                contexts["uncond"] = self._context(
                    "negative_prompt", negatives, negative_prompt_embeds, owners
                )

            # 4. Noise to latents.
            self._guidance_scale, self._num_timesteps = guidance_scale, num_inference_steps
            self._interrupt = self._finish_early = False
            num_steps_done = num_inference_steps
            with self.progress_bar(total=num_inference_steps) as progress_bar:

                def velocity_at(latents: Tensor, sigma: Tensor, step: int) -> Tensor:
                    conditions = early if step < last_steps else late
                    velocity = self._velocity(latents, conditions, sigma, step, contexts)
                    self._denoised = denoised_from(latents, velocity, sigma)
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

                try:
                    latents = sample_euler(
                        velocity_at,
                        noise,
                        shifted_sigmas(num_inference_steps, shift=self.config.shift),
                        on_step=on_step,
                    )
                except _FinishedEarly:
                    assert self._denoised is not None, "a step has been done"
                    latents = self._denoised

            # 5. Latents to frames; the pictures in force at the last step lend their detail.
            frames: Any = latents
            if output_type != "latent":
                is_last_kept = last_steps >= num_steps_done
                pictures = [item.in_force(num_frames, is_last_kept) for item in instructions]
                clips = [
                    self._decode(latents[[clip]], pictures[owner])
                    for clip, owner in enumerate(owners)
                ]
                frames = to_output(clips, output_type)
        finally:
            # 6. Offload the models and forget what caches kept, also after a cancelled call.
            self._current_timestep = self._denoised = None
            self.maybe_free_model_hooks()
        return PixelDanceOutput(frames=frames) if return_dict else (frames,)

    def _callback_tensors(self, callback: Any, names: Sequence[str]) -> list[str]:
        """Names of the tensors that the callback wants; diffusers' own callbacks declare them."""
        wanted = list(getattr(callback, "tensor_inputs", names))
        for name in wanted:
            if name not in self._callback_tensor_inputs:
                raise InputError(
                    f"callback_on_step_end_tensor_inputs can name "
                    f"{', '.join(self._callback_tensor_inputs)}, got {name!r}."
                )
        return wanted

    def _resolve_size(
        self, height: int | None, width: int | None, instructions: Instructions, num_frames: int
    ) -> Size:
        """The size given, or the one that the earliest picture and the pixel budget ask for."""
        if (height is None) != (width is None):
            raise InputError(
                f"height and width go together, got height={height} and width={width}. "
                "Give both or neither."
            )
        multiple = self.size_multiple
        if height is None or width is None:
            return self.size_for("auto", instructions.in_force(num_frames, True))
        for name, side in (("height", height), ("width", width)):
            if side < multiple or side % multiple:
                lower = max(side // multiple, 1) * multiple
                raise InputError(
                    f"{name} must be a multiple of {multiple} pixels, got {side}. "
                    f"Use {lower} or {lower + multiple}."
                )
        return Size(height, width)

    def _prepare_noise(
        self,
        latents: Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        num_clips: int,
        grid: LatentGrid,
    ) -> Tensor:
        """Noise in float32, drawn clip by clip on the CPU so that no clip depends on the others."""
        shape = (num_clips, int(self.vae.config.z_dim), *grid)
        device = self._execution_device
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise InputError(
                    f"latents must have the shape {shape} for these clips, "
                    f"got {tuple(latents.shape)}."
                )
            return latents.to(device, torch.float32)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        if isinstance(generator, torch.Generator):
            generator = [generator] * num_clips
        generators = list(generator)
        if len(generators) != num_clips:
            raise InputError(
                f"generator must be one, or one for each of the {num_clips} clips, "
                f"got {len(generators)}."
            )
        for one in generators:
            if one.device.type != "cpu":
                raise InputError(
                    f"generator must be on the CPU, got one on {one.device}: noise is drawn there "
                    "so that a seed means the same everywhere. Use torch.Generator()."
                )
        drawn = [torch.randn(shape[1:], generator=one, dtype=torch.float32) for one in generators]
        return torch.stack(drawn).to(device)

    def _conditions(
        self,
        instructions: Sequence[Instructions],
        owners: Sequence[int],
        grid: LatentGrid,
        num_frames: int,
        *,
        with_last_frame: bool,
    ) -> Tensor:
        """Mask and condition latents of every clip, batch 4+channels frames height width."""
        device = self._execution_device
        known: dict[int, Tensor] = {}

        def encode(picture: Image.Image) -> Tensor:
            # One by one, and each picture once: the result must not depend on the batch.
            if id(picture) not in known:
                video = to_tensor(picture).unsqueeze(2).to(device)
                known[id(picture)] = encode_pictures(self.vae, video)[0, :, 0]
            return known[id(picture)]

        conditions = place_keyframes(
            [
                {frame: encode(picture) for frame, picture in pictures.items()}
                for pictures in (
                    item.in_force(num_frames, with_last_frame) for item in instructions
                )
            ],
            num_frames=num_frames,
            channels=int(self.vae.config.z_dim),
            latent_height=grid.latent_height,
            latent_width=grid.latent_width,
            temporal_factor=self.vae.config.scale_factor_temporal,
        )
        return conditions.stacked().to(device, torch.float32)[list(owners)]

    def _context(
        self, name: str, prompts: Sequence[str], embeds: Tensor | None, owners: Sequence[int]
    ) -> TextContext:
        """Keys and values of the prompts for every layer, one entry for each clip."""
        width = int(self.transformer.config.text_dim)
        if embeds is not None:
            if embeds.ndim != 3 or embeds.shape[0] != len(prompts) or embeds.shape[2] != width:
                raise InputError(
                    f"{name}_embeds must have the shape ({len(prompts)}, tokens, {width}), "
                    f"got {tuple(embeds.shape)}."
                )
        elif not any(prompt.strip() for prompt in prompts):
            embeds = torch.zeros(len(prompts), self.config.max_sequence_length, width)
        elif self.text_encoder is None or self.tokenizer is None:
            raise InputError(f"This pipeline has no text encoder. Give {name}_embeds instead.")
        else:
            embeds, _ = encode_prompts(
                self.tokenizer,
                self.text_encoder,
                list(prompts),
                max_sequence_length=self.config.max_sequence_length,
            )
        # Padding is zeros at the end; the transformer collapses it to one key.
        is_real = (embeds != 0).any(dim=-1)
        positions = torch.arange(1, embeds.shape[1] + 1, device=embeds.device)
        num_real_tokens = (is_real * positions).amax(dim=1).tolist()
        # An offloaded model is only brought to its device by its own forward.
        hook = getattr(self.transformer, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.transformer)
        context: TextContext = self.transformer.prepare_context(
            embeds.to(self._execution_device, self.transformer.dtype),
            num_real_tokens=num_real_tokens,
        )
        return context.select(owners)

    def _velocity(
        self,
        latents: Tensor,
        conditions: Tensor,
        sigma: Tensor,
        step: int,
        contexts: Mapping[str, TextContext],
    ) -> Tensor:
        """Velocity of all clips in float32, guided if there is an unconditional context."""
        transformer = self.transformer
        model_input = torch.cat([latents, conditions], dim=1).to(transformer.dtype)
        timestep = timesteps_of(sigma).to(latents.device)
        self._current_timestep = timestep
        velocities = {}
        for name, context in contexts.items():
            with transformer.cache_context(
                name,
                step_index=step,
                num_inference_steps=self._num_timesteps,
                timestep=timestep,
                sigma=float(sigma),
            ):
                velocities[name] = transformer(
                    hidden_states=model_input,
                    timestep=timestep.expand(len(latents)),
                    context=context,
                    return_dict=False,
                )[0].float()
        if "uncond" not in velocities:
            return velocities["cond"]
        return guided_velocity(velocities["cond"], velocities["uncond"], self._guidance_scale)

    def _after_step(self, callback: Any, step: int, tensors: dict[str, Tensor]) -> Tensor | None:
        """Run the callback; the latents that it returns replace the current ones."""
        returned = None
        if callback is not None:
            returned = callback(self, step, self._current_timestep, tensors)
        if self._interrupt:
            raise GenerationCancelled(
                f"Generation was stopped after step {step + 1} of {self._num_timesteps}."
            )
        return None if returned is None else returned.get("latents")

    def _decode(self, latents: Tensor, pictures: Mapping[int, Image.Image]) -> Tensor:
        """Video of one clip in [0, 1] on the CPU, frames 3 height width."""
        factor = int(self.vae.config.scale_factor_temporal)
        last_index = (latents.shape[2] - 1) * factor
        references = _references(pictures, last_index, latents.device)
        video = decode_latents(self.vae, latents, references)[0]
        return video.add(1.0).div(2.0).clamp(0.0, 1.0).transpose(0, 1).float().cpu()


def _references(
    pictures: Mapping[int, Image.Image], last_index: int, device: torch.device
) -> References | None:
    """The two pictures that the decoder may look at: of the first frame, then of the last.

    Where one of them is not given, the key frame nearest to it stands in.
    """
    if not pictures:
        return None
    earliest, latest = min(pictures), max(pictures)
    is_only_last = earliest == latest == last_index > 0
    present = [not is_only_last, is_only_last or latest > earliest]
    frames = [earliest if present[0] else 0, latest if present[1] else last_index]
    # An absent picture is never looked at; it only fills its place.
    shown = [to_tensor(pictures.get(frame, pictures[earliest])) for frame in frames]
    return References(
        pictures=torch.cat(shown).unsqueeze(0).to(device),
        frames=torch.tensor([frames], device=device),
        present=torch.tensor([present], device=device),
    )
