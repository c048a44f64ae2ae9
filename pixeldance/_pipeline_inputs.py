"""What the pipeline is given, checked and loaded before anything heavy, and what it gives back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from pixeldance.errors import InputError
from pixeldance.geometry import Size, check_num_frames, fit_picture, resolve_frame_index
from pixeldance.pictures import PictureInput, load_picture
from pixeldance.request import GenerationRequest

Pictures = PictureInput | Sequence[PictureInput | None] | None
"""One picture for all prompts, one for each prompt (None: that one has none), or none."""

Keyframes = Mapping[int, PictureInput] | Sequence[Mapping[int, PictureInput] | None] | None
"""Pictures by pixel frame: one mapping for all prompts, one for each, or none."""

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

DEFAULTS = GenerationRequest()
"""Where every default of the pipeline comes from."""


@dataclass
class PixelDanceOutput(BaseOutput):
    """Result of the pipeline."""

    frames: Any
    """``np``: float32 in [0, 1], batch frames height width 3. ``pt``: the same values, batch frames
    3 height width. ``pil``: a list of lists of pictures. ``latent``: normalised latents."""


class Instructions(NamedTuple):
    """The pictures of one clip, by pixel frame."""

    lasting: dict[int, Image.Image]
    """First frame and key frames: in force at every step."""

    last_frame: Image.Image | None
    """In force for the first steps, see ``last_frame_strength``."""

    def in_force(self, num_frames: int, with_last_frame: bool) -> dict[int, Image.Image]:
        """Pictures by pixel frame, with or without the last frame."""
        if self.last_frame is None or not with_last_frame:
            return self.lasting
        return {**self.lasting, num_frames - 1: self.last_frame}


def check_options(
    num_inference_steps: int,
    guidance: Mapping[str, float | None],
    num_videos_per_prompt: int,
    output_type: str,
) -> None:
    if num_inference_steps < 1:
        raise InputError(
            f"num_inference_steps must be at least 1, got {num_inference_steps}. "
            f"Use {DEFAULTS.num_inference_steps}."
        )
    for name, scale in guidance.items():
        if scale is not None and not (math.isfinite(scale) and scale >= 1.0):
            raise InputError(
                f"{name} must be at least 1.0 (1.0 = off), got {scale}. "
                f"Use {DEFAULTS.guidance_scale}."
            )
    if num_videos_per_prompt < 1:
        raise InputError(f"num_videos_per_prompt must be at least 1, got {num_videos_per_prompt}.")
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}."
        )


def check_callback_tensors(callback: Any, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of the tensors that the callback wants; diffusers' own callbacks declare them."""
    wanted = list(getattr(callback, "tensor_inputs", names))
    for name in wanted:
        if name not in known:
            raise InputError(
                f"callback_on_step_end_tensor_inputs can name {', '.join(known)}, got {name!r}."
            )
    return wanted


def check_size(height: int | None, width: int | None, multiple: int) -> Size | None:
    """The size given, or None if none is."""
    if (height is None) != (width is None):
        raise InputError(
            f"height and width go together, got height={height} and width={width}. "
            "Give both or neither."
        )
    if height is None or width is None:
        return None
    for name, side in (("height", height), ("width", width)):
        if side < multiple or side % multiple:
            lower = max(side // multiple, 1) * multiple
            raise InputError(
                f"{name} must be a multiple of {multiple} pixels, got {side}. "
                f"Use {lower} or {lower + multiple}."
            )
    return Size(height, width)


def draw_noise(
    latents: Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    shape: tuple[int, ...],
) -> Tensor:
    """Noise in float32, drawn clip by clip on the CPU so that no clip depends on the others."""
    num_clips = shape[0]
    if latents is not None:
        if tuple(latents.shape) != shape:
            raise InputError(
                f"latents must have the shape {shape} for these clips, got {tuple(latents.shape)}."
            )
        return latents.float()
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
    return torch.stack(drawn)


def prompt_list(prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None) -> list[str]:
    """One prompt for each clip asked for; placeholders where token states are given."""
    if prompt_embeds is not None:
        if prompt is not None:
            raise InputError("Give prompt or prompt_embeds, not both.")
        return [""] * len(prompt_embeds)
    prompts = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("prompt is an empty list. Give at least one prompt.")
    for one in prompts:
        if not isinstance(one, str):
            raise InputError(f"A prompt must be a text, got {type(one).__name__}.")
    return prompts


def per_prompt(name: str, value: Any, num_prompts: int) -> list[Any]:
    """One value for each prompt, from one for all or a list with one for each."""
    if not isinstance(value, (list, tuple)):
        return [value] * num_prompts
    if len(value) != num_prompts:
        raise InputError(
            f"{name} must be one for all prompts or a list of {num_prompts}, got {len(value)}."
        )
    return list(value)


def load_instructions(
    first_frame: Pictures,
    last_frame: Pictures,
    keyframes: Keyframes,
    *,
    num_frames: int,
    num_prompts: int,
) -> list[Instructions]:
    """Load the pictures of every prompt, each source once, and check their frames."""
    check_num_frames(num_frames)
    loaded: dict[int, Image.Image] = {}

    def load(source: Any) -> Image.Image:
        if id(source) not in loaded:
            loaded[id(source)] = load_picture(source)
        return loaded[id(source)]

    instructions = []
    for first, last, others in zip(
        per_prompt("first_frame", first_frame, num_prompts),
        per_prompt("last_frame", last_frame, num_prompts),
        per_prompt("keyframes", keyframes, num_prompts),
        strict=True,
    ):
        given = [] if first is None else [(0, first)]
        given += [
            (resolve_frame_index(frame, num_frames), one) for frame, one in (others or {}).items()
        ]
        frames = [frame for frame, _ in given] + ([] if last is None else [num_frames - 1])
        for frame in frames:
            if frames.count(frame) > 1:
                raise InputError(
                    f"Frame {frame} is given more than once (first_frame is 0, last_frame is "
                    f"{num_frames - 1}). Leave out all but one."
                )
        instructions.append(
            Instructions(
                lasting={frame: load(one) for frame, one in given},
                last_frame=None if last is None else load(last),
            )
        )
    return instructions


def fit_all(
    instructions: Sequence[Instructions], size: Size, *, fit: Any, focus: tuple[float, float]
) -> list[Instructions]:
    """Bring all pictures to the size of the clip; a picture used twice stays one object."""
    fitted: dict[int, Image.Image] = {}

    def fit_one(picture: Image.Image) -> Image.Image:
        if id(picture) not in fitted:
            fitted[id(picture)] = fit_picture(picture, size, fit=fit, focus=focus)
        return fitted[id(picture)]

    return [
        Instructions(
            lasting={frame: fit_one(picture) for frame, picture in item.lasting.items()},
            last_frame=None if item.last_frame is None else fit_one(item.last_frame),
        )
        for item in instructions
    ]


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture in [-1, 1], 1 3 height width."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return pixels.permute(2, 0, 1).unsqueeze(0) / 127.5 - 1.0


def to_output(clips: Sequence[Tensor], output_type: str) -> Any:
    """Clips (frames 3 height width in [0, 1]) in the form asked for."""
    if output_type == "pt":
        return torch.stack(list(clips))
    arrays = np.stack([clip.permute(0, 2, 3, 1).numpy() for clip in clips])
    if output_type == "np":
        return arrays
    return [
        [Image.fromarray(frame) for frame in (clip * 255.0).round().astype(np.uint8)]
        for clip in arrays
    ]
