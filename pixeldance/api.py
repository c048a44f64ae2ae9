"""The short way in: load a model, generate a clip, save it.

model = load()
clip = model.generate(prompt="a red fox jumps", first_frame="fox.png")
clip.save("fox.mp4")
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from pixeldance._pipeline_inputs import PixelDanceOutput
from pixeldance.backbones.facts import is_released
from pixeldance.backbones.loading import load_small_text_encoder
from pixeldance.backbones.lora import fingerprint, load_loras, parse_lora
from pixeldance.backbones.memory import MemoryPlan, apply_plan, plan_for
from pixeldance.backbones.options import check_memory
from pixeldance.backbones.single_file import transformer_from_file
from pixeldance.backbones.step_cache import StepCache, recorded_threshold
from pixeldance.errors import CheckpointError, InputError
from pixeldance.geometry import Size, duration_of, fit_picture, resolve_frame_index
from pixeldance.models.devices import choose_device, choose_dtype
from pixeldance.models.loading import available_models, find_weights
from pixeldance.ops import active_tier
from pixeldance.parallel import start as start_parallel
from pixeldance.pictures import load_picture
from pixeldance.pipeline import PixelDancePipeline
from pixeldance.request import MAX_SIDE, GenerationRequest
from pixeldance.video import (
    build_recipe,
    decode_pictures,
    installed_versions,
    write_clip,
    write_contact_sheet,
)
from pixeldance.video.files import check_output_path

__all__ = ["FINISH_EARLY", "Clip", "Model", "StepEvent", "available_models", "load", "rerun"]

logger = logging.getLogger(__name__)

_MAX_SEED = 2**63 - 1


class StepEvent(NamedTuple):
    """Progress of a generation, after each step."""

    step: int
    """Steps done, from 1. Where several clips are made, their steps count on."""
    num_steps: int
    """Steps in all."""
    elapsed_s: float
    """Seconds since the start."""
    remaining_s: float
    """Seconds that the remaining steps will take at the pace so far; decoding comes on top."""
    denoised: torch.Tensor | None = None
    """Estimate of the clip's normalised latents, 1 channels frames height width, for previews."""


FINISH_EARLY = "finish early"
"""What a ``StepListener`` returns to have the current estimate decoded without further steps."""

StepListener = Callable[[StepEvent], object]
"""Called after each step; raise ``GenerationCancelled`` in it to stop, return ``FINISH_EARLY`` to
finish with what there is (and without further clips). Other results are ignored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A finished clip.

    Attributes:
        frames: ``frames height width 3``, uint8, sRGB.
        fps: Frames per second.
        seed: The seed that was used, also where the request left it open.
        recipe: All that is needed to make the clip again, JSON values only; ``rerun`` takes it.
    """

    frames: npt.NDArray[np.uint8]
    fps: int
    seed: int
    recipe: dict[str, Any]

    @property
    def first_frame(self) -> Image.Image:
        """The first frame, as a picture."""
        return Image.fromarray(self.frames[0])

    @property
    def last_frame(self) -> Image.Image:
        """The last frame, as a picture: the first frame of a clip that goes on from here."""
        return Image.fromarray(self.frames[-1])

    @property
    def duration(self) -> float:
        """Seconds that the clip plays."""
        return duration_of(len(self.frames), self.fps)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sidecar: bool = True,
        contact_sheet: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the clip as MP4 with its recipe in it; complete or not at all.

        Args:
            path: Where it goes, ending in ``.mp4``.
            overwrite: Whether files that are already there may be replaced.
            sidecar: Whether the recipe is also written beside the clip, as ``.json``.
            contact_sheet: Where to write a picture of some of the frames, ending in ``.png``.

        Returns:
            The path of the clip.

        Raises:
            InputError: If a file cannot be written there.
        """
        if contact_sheet is not None:
            check_output_path(contact_sheet, suffix=".png", overwrite=overwrite)
        written = write_clip(
            path,
            self.frames,
            fps=self.fps,
            recipe=self.recipe,
            overwrite=overwrite,
            sidecar=sidecar,
        )
        if contact_sheet is not None:
            write_contact_sheet(contact_sheet, self.frames, overwrite=overwrite)
        return written


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded model.

    Attributes:
        name: Name of its folder.
        pipeline: The diffusers pipeline inside.
        sha256: Fingerprint of the weights.
        load_s: Seconds that loading took.
        memory_plan: How a Wan checkpoint shares the device's memory; None for the embedded model.
        loras: LoRAs that were added, as recipes name them: ``[high:|low:]file:scale``.
    """

    name: str
    pipeline: PixelDancePipeline
    sha256: str
    load_s: float = 0.0
    memory_plan: MemoryPlan | None = None
    loras: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return torch.device(self.pipeline._execution_device)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that saves and reports, where several make one clip."""
        return self.pipeline.parallel is None or self.pipeline.parallel.is_main

    @property
    def dtype(self) -> str:
        """Number format of the transformer, such as ``bfloat16``."""
        return str(self.pipeline.transformer.dtype).removeprefix("torch.")

    def generate(
        self,
        request: GenerationRequest | None = None,
        *,
        on_step: StepListener | None = None,
        **fields: Any,
    ) -> Clip:
        """Make one clip.

        Args:
            request: What to make; or give its fields as keywords.
            on_step: Called after each step.
            **fields: Fields of ``GenerationRequest``; unknown ones are errors.

        Returns:
            The clip. Equal requests with a seed give equal frames on one machine.

        Raises:
            InputError: If the request is wrong or asks for several clips; before anything heavy.
        """
        request = self._request(request, fields)
        if request.num_videos != 1:
            raise InputError(
                f"generate makes one clip, num_videos is {request.num_videos}. "
                "Use generate_many, or leave num_videos out."
            )
        return self._clips(request, on_step)[0]

    def generate_many(
        self,
        request: GenerationRequest | None = None,
        *,
        on_step: StepListener | None = None,
        **fields: Any,
    ) -> list[Clip]:
        """Make ``num_videos`` clips that differ in their seeds: the request's, and the next ones.

        They are made one after the other, so that each is exactly what its own seed gives alone.

        Args:
            request: What to make; or give its fields as keywords.
            on_step: Called after each step of each clip.
            **fields: Fields of ``GenerationRequest``; unknown ones are errors.

        Returns:
            The clips.
        """
        return self._clips(self._request(request, fields), on_step)

    def _request(
        self, request: GenerationRequest | None, fields: Mapping[str, Any]
    ) -> GenerationRequest:
        if request is not None and fields:
            raise InputError(
                f"Give a request or its fields, not both; got both, with {', '.join(fields)}."
            )
        checked = GenerationRequest.parse(fields) if request is None else request
        if "model" in checked.model_fields_set and Path(checked.model).name != self.name:
            raise InputError(
                f"The request asks for the model {checked.model!r}, this one is {self.name!r}. "
                f"Use load({checked.model!r}), or leave model out."
            )
        return checked.model_copy(update={"model": self.name})

    def _clips(
        self, request: GenerationRequest, on_step: StepListener | None, size: Size | None = None
    ) -> list[Clip]:
        """The clips of a checked request; the size of a rerun is known."""
        pictures = {role: load_picture(source) for role, source in request.pictures.items()}
        size = size or self._size(request, pictures)
        # As the model sees them: these go into the recipe, so that it needs no other file.
        pictures = {
            role: fit_picture(picture, size, fit=request.fit, focus=request.focus)
            for role, picture in pictures.items()
        }
        first_seed = secrets.randbits(32) if request.seed is None else request.seed
        if self.pipeline.parallel is not None:
            first_seed = self.pipeline.parallel.agree_on(first_seed)
        start = time.monotonic()
        clips = []
        for number in range(request.num_videos):
            progress = None
            if on_step is not None:
                done = number * request.num_inference_steps
                progress = partial(_report, on_step, request, start, done)
            seed = (first_seed + number) % (_MAX_SEED + 1)
            clips.append(self._clip(request, seed, size, pictures, progress))
            if "num_steps_done" in clips[-1].recipe:
                break
        return clips

    @property
    def facts(self) -> dict[str, str]:
        """What recipes say of the model and of how it computes."""
        facts = {"name": self.name, "sha256": self.sha256, "dtype": self.dtype}
        facts["device"] = self.device.type
        facts["operations"] = active_tier(self.device.type).name
        if self.memory_plan is not None:
            facts["memory"] = self.memory_plan.summary
        if self.loras:
            facts["loras"] = ", ".join(self.loras)
        if self.pipeline.parallel is not None:
            facts["parallel"] = str(self.pipeline.parallel)
        if self.pipeline.step_cache is not None:
            facts["step_cache"] = str(self.pipeline.step_cache.threshold)
        return facts

    def _size(self, request: GenerationRequest, pictures: Mapping[str, Image.Image]) -> Size:
        if request.height is not None and request.width is not None:
            return Size(request.height, request.width)
        by_frame = {
            resolve_frame_index(frame, request.resolved_num_frames): pictures[f"keyframe:{frame}"]
            for frame in request.keyframes
        }
        for role, frame in (("first_frame", 0), ("last_frame", request.resolved_num_frames - 1)):
            if role in pictures:
                by_frame[frame] = pictures[role]
        return self.pipeline.size_for(request.aspect_ratio, by_frame)

    def _clip(
        self,
        request: GenerationRequest,
        seed: int,
        size: Size,
        pictures: Mapping[str, Image.Image],
        progress: Callable[[int, torch.Tensor | None], object] | None,
    ) -> Clip:
        start = time.monotonic()
        sampled = start
        num_steps_done = 0

        def after_step(
            pipeline: PixelDancePipeline,
            step: int,
            timestep: torch.Tensor,  # noqa: ARG001 - diffusers' convention
            tensors: dict[str, torch.Tensor],  # noqa: ARG001
        ) -> None:
            nonlocal sampled, num_steps_done
            sampled, num_steps_done = time.monotonic(), step + 1
            if progress is not None and progress(step, pipeline.denoised) is FINISH_EARLY:
                pipeline._finish_early = True

        # No bar where progress is reported, and none in files.
        self.pipeline.set_progress_bar_config(disable=True if progress is not None else None)
        output = self.pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            first_frame=pictures.get("first_frame"),
            last_frame=pictures.get("last_frame"),
            keyframes={frame: pictures[f"keyframe:{frame}"] for frame in request.keyframes},
            last_frame_strength=request.last_frame_strength,
            height=size.height,
            width=size.width,
            num_frames=request.resolved_num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            guidance_scale_2=request.guidance_scale_2,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
        )
        assert isinstance(output, PixelDanceOutput), "return_dict is left at True"
        frames = (output.frames[0] * 255.0).round().astype(np.uint8)
        end = time.monotonic()
        recipe = build_recipe(
            request.to_recipe(pictures),
            seed=seed,
            frames=frames,
            fps=request.fps,
            model=self.facts,
            versions=installed_versions(),
            timings={"load": self.load_s, "sample": sampled - start, "decode": end - sampled},
            pictures=pictures,
        )
        if num_steps_done < request.num_inference_steps:
            recipe["num_steps_done"] = num_steps_done
        return Clip(frames=frames, fps=request.fps, seed=seed, recipe=recipe)


def load(
    model: str | os.PathLike[str] = "pixeldance-mini",
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    loras: Sequence[str] = (),
    transformer: str | os.PathLike[str] | None = None,
    transformer_2: str | os.PathLike[str] | None = None,
    download: bool = False,
    parallel: str | None = None,
    step_cache: float | None = None,
) -> Model:
    """Load a model: the embedded one, or a Wan checkpoint in diffusers' layout.

    Args:
        model: Name of a model (see ``available_models``), path of a folder, or hub id.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` takes a CUDA device if there is one.
        dtype: Number format of the transformer: ``float32``, ``bfloat16``, ``float16`` (not on the
            CPU). ``auto`` takes bfloat16 where the device computes in it, else float32.
        memory: How much of the device's memory a Wan checkpoint may take: ``auto`` (what there
            is), ``24gb``, ``12gb`` or ``8gb``. What is done to fit is logged, and in
            ``Model.memory_plan``.
        loras: LoRAs to add, each ``path``, ``path:scale``, or for one of two experts
            ``high:path:scale`` or ``low:path:scale``.
        transformer: ``.safetensors`` file to take a Wan checkpoint's transformer from.
        transformer_2: The same for the second of two experts.
        download: Whether a hub id that is not on this machine may be fetched. Without it the error
            says how large it is and what its licence is.
        parallel: How the processes that ``torchrun`` or ``accelerate launch`` started make one
            clip together: ``context`` (they share the tokens), ``tensor`` (they share the heads,
            and with them the transformer's weights), ``guidance`` (one half of them does the
            negative prompt, the tokens are shared within each) or ``guidance+tensor``. Each one
            then makes the same calls and gets the same clip.
        step_cache: Threshold of the step cache, in (0, 1]; None computes every step. See
            :class:`~pixeldance.backbones.step_cache.StepCache`.

    Returns:
        The model.

    Raises:
        CheckpointError: If weights or the text encoder are missing or damaged, or do not fit.
        InputError: If an option cannot be used with this model.
    """
    start = time.monotonic()
    cache = None if step_cache is None else StepCache(step_cache)
    parallelism = None if parallel is None else start_parallel(parallel, device)
    chosen_device = choose_device(device) if parallelism is None else parallelism.device
    chosen_dtype = choose_dtype(dtype, chosen_device)
    parsed = [parse_lora(lora) for lora in loras]
    files = {"transformer": transformer, "transformer_2": transformer_2}
    given = {name: Path(file) for name, file in files.items() if file is not None}
    folder = find_weights(os.fspath(model), download=download)
    plan = None
    if is_released(folder):
        plan = plan_for(
            folder,
            memory,
            chosen_device,
            bytes_per_weight=chosen_dtype.itemsize,
            transformer_parts=1 if parallelism is None else parallelism.weight_parts,
        )
        logger.log(logging.INFO if plan.fits else logging.WARNING, "%s: %s", folder.name, plan)
    else:
        check_memory(memory, folder.name, is_released=False)
        if given:
            raise InputError(
                f"{next(iter(given))} is for Wan checkpoints and has no effect on {folder.name}. "
                "Leave it out."
            )
    # The codec stays in float32: bfloat16 is too coarse for the embedded model's projection.
    with _without_loading_bars():
        components: dict[str, Any] = {
            name: transformer_from_file(file, folder / name, dtype=chosen_dtype)
            for name, file in given.items()
        }
        if plan is not None and plan.has_int8_text:  # before the rest, which needs the room
            components["text_encoder"] = load_small_text_encoder(folder, dtype=chosen_dtype)
        pipeline = PixelDancePipeline.from_pretrained(folder, dtype=chosen_dtype, **components)
        load_loras(pipeline, parsed)
    if parallelism is not None and parallelism.shares_weights:  # the whole may not fit
        parallelism.apply(pipeline)
    if plan is None:
        pipeline.to(chosen_device)
    else:
        apply_plan(pipeline, plan, chosen_device)
    pipeline.step_cache = cache
    if parallelism is not None and not parallelism.shares_weights:
        parallelism.apply(pipeline)
    named = Path(model).expanduser()
    return Model(
        # A hub id is unpacked into a folder named after its revision.
        name=folder.resolve().name if named.is_dir() else named.name,
        pipeline=pipeline,
        sha256=fingerprint(folder, given, parsed),
        load_s=time.monotonic() - start,
        memory_plan=plan,
        loras=tuple(lora.label for lora in parsed),
    )


def rerun(
    recipe: Mapping[str, Any],
    *,
    model: Model | None = None,
    device: str = "auto",
    on_step: StepListener | None = None,
) -> Clip:
    """Make a clip again from its recipe.

    On the same kind of machine with the same versions the frames are equal, so are
    ``recipe["frames"]["sha256"]`` of both.

    Args:
        recipe: Recipe of a clip, see ``Clip.recipe`` and ``video.read_recipe``.
        model: The model that made it; by default the one named in the recipe is loaded, in the
            dtype recorded there.
        device: Where to load it.
        on_step: Called after each step.

    Returns:
        The clip.

    Raises:
        CheckpointError: If the model is missing or its weights are not those of the recipe.
        InputError: If the recipe cannot be followed.
    """
    pictures = decode_pictures(recipe)
    request = GenerationRequest.from_recipe(recipe["request"], pictures)
    recorded = recipe["model"]
    if model is None:
        model = load(
            recorded["name"],
            device=device,
            dtype=recorded.get("dtype", "auto"),
            step_cache=recorded_threshold(recorded),
        )
    if model.sha256 != recorded["sha256"]:
        added = f" with the LoRAs {recorded['loras']}" if "loras" in recorded else ""
        raise CheckpointError(
            f"The clip was made with weights {recorded['sha256'][:12]} of {recorded['name']!r}"
            f"{added}, here are {model.sha256[:12]}: its frames would differ. Install those "
            "weights, or use generate."
        )
    cache = model.pipeline.step_cache
    if recorded_threshold(recorded) != (cache and cache.threshold):
        raise InputError(
            f"The clip was made with step_cache {recorded.get('step_cache')}, the model given was "
            f"loaded with {cache and cache.threshold}. Load it with the recipe's."
        )
    size = Size(recipe["frames"]["height"], recipe["frames"]["width"])
    if max(size) > MAX_SIDE:
        raise InputError(
            f"The recipe asks for {size.width}x{size.height} pixels; sides are at most {MAX_SIDE}. "
            "Make the clip again with generate and another size."
        )
    request = request.model_copy(update={"seed": recipe["seed"], "num_videos": 1})
    num_steps_done = recipe.get("num_steps_done", request.num_inference_steps)
    if num_steps_done not in range(1, request.num_inference_steps + 1):
        raise InputError(
            f"The recipe is damaged: num_steps_done is {num_steps_done!r}, not 1 to "
            f"{request.num_inference_steps}. Make a new request instead."
        )

    def until_done(event: StepEvent) -> object:
        result = None if on_step is None else on_step(event)
        return FINISH_EARLY if event.step == num_steps_done else result

    is_whole = num_steps_done == request.num_inference_steps
    return model._clips(request, on_step if is_whole else until_done, size)[0]


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """Loading takes a second; the libraries' bars about it would garble a program's output."""
    libraries = [
        library
        for library in (diffusers_logging, transformers_logging)
        if library.is_progress_bar_enabled()
    ]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def _report(
    on_step: StepListener,
    request: GenerationRequest,
    start: float,
    done: int,
    step: int,
    denoised: torch.Tensor | None,
) -> object:
    """Tell the listener that a step (from 0) of the clip that began at ``done`` is finished."""
    steps = done + step + 1
    num_steps = request.num_videos * request.num_inference_steps
    elapsed = time.monotonic() - start
    remaining = elapsed / steps * (num_steps - steps)
    return on_step(StepEvent(steps, num_steps, elapsed, remaining, denoised))
