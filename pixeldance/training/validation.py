"""Held-out clips at fixed seeds: what a run can do so far, comparable from step to step.

Scenes, noise and noise levels never change, so a curve of these numbers shows the model and not
the luck of the draw. Every process computes the same (a sharded model needs all of them); the main
one writes ``validation/step-XXXXXXX.png``, the truth above what the model made, and the numbers
beside it in a JSON file of the same name.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pixeldance.diffusion import (
    add_noise,
    sample_euler,
    shifted_sigmas,
    timesteps_of,
    velocity_target,
)
from pixeldance.diffusion.schedule import SAMPLING_SHIFT, SAMPLING_START
from pixeldance.instructions import place_keyframes
from pixeldance.models.codec import (
    LinearVideoCodec,
    decode_latents,
    draft_latents,
    encode_pictures,
)
from pixeldance.models.references import References
from pixeldance.models.text import encode_prompts, load_text_encoder
from pixeldance.training.config import TrainConfig
from pixeldance.training.data import render_clips, sample_generator
from pixeldance.training.log import bucket_name
from pixeldance.video.files import new_files
from pixeldance.video.sheet import contact_sheet, sheet_frames
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import StickerWorld

__all__ = ["FOLDER", "SIGMAS", "Validation"]

FOLDER = "validation"
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels of the validation loss; for the refiner, of the noise on the latents."""

_SAMPLING_STEPS = 8
_SHOWN_FRAMES = 8
_SHOWN_LEVEL = 0.3  # of the refiner's noise
_MAX_PSNR = 100.0  # of equal pictures, so that means stay finite


@dataclass(frozen=True)
class _Clips:
    """Held-out clips and everything fixed about them, on the device.

    Attributes:
        captions: What they show.
        videos: ``(clips, 3, frames, height, width)`` in [-1, 1].
        clean: Their latents.
        noise: Like the latents.
        conditions: First and last picture on the latent grid.
        prompt_embeds: Token states.
    """

    captions: list[str]
    videos: Tensor
    clean: Tensor
    noise: Tensor
    conditions: Tensor
    prompt_embeds: Tensor


class _Outcome(NamedTuple):
    """Videos like the truth's, and the loss by noise level."""

    videos: Tensor
    losses: dict[float, float]


class Validation:
    """Makes the held-out clips of a run.

    Args:
        config: The run; the clips have the shape of its most frequent bucket.
        codec: The codec; the refiner's run uses its projection only.
        accelerator: The processes and their devices.
    """

    def __init__(
        self, config: TrainConfig, codec: LinearVideoCodec, accelerator: Accelerator
    ) -> None:
        self.config, self._accelerator = config, accelerator
        self.bucket = max(config.buckets, key=lambda bucket: bucket.weight)
        self._codec = deepcopy(codec).to(accelerator.device).eval()
        self._clips: _Clips | None = None

    def due(self, step: int) -> bool:
        """Whether the clips are to be made after a step: every so often, and after the last.

        Args:
            step: Steps done.

        Returns:
            Whether to call :meth:`run`.
        """
        every = self.config.validation_steps
        return every is not None and (step % every == 0 or step == self.config.max_steps)

    @torch.no_grad()
    def run(self, model: nn.Module, step: int) -> Path:
        """Make the clips and write the sheet; every process must call it.

        Neither the model's mode nor any random state is changed.

        Args:
            model: What is trained, as the training step calls it.
            step: Steps done.

        Returns:
            The sheet.
        """
        clips = self._opened()
        make = self._refined if self.config.part == "refiner" else self._generated
        with _evaluating(model):
            outcome = make(model, clips)
        path = Path(self.config.output_dir) / FOLDER / f"step-{step:07d}.png"
        if self._accelerator.is_main_process:
            self._write(path, step, clips, outcome)
        self._accelerator.wait_for_everyone()
        return path

    def _opened(self) -> _Clips:
        if self._clips is None:
            # the text encoder draws random weights before it reads its own
            with torch.random.fork_rng(devices=[]):
                self._clips = self._draw_clips()
        return self._clips

    def _draw_clips(self) -> _Clips:
        bucket, device = self.bucket, self._accelerator.device
        world = StickerWorld("heldout")
        seeds = range(self.config.validation_clips)
        scenes = [world.sample_scene(seed, aspect=bucket.width / bucket.height) for seed in seeds]
        captions = [describe(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
        videos = render_clips(world, scenes, bucket, self.config.fps).to(device)
        videos = videos * 2 - 1
        clean = encode_pictures(self._codec, videos)
        noise = [
            torch.randn(clean.shape[1:], generator=sample_generator(seed, "validation"))
            for seed in seeds
        ]
        return _Clips(
            captions,
            videos,
            clean,
            torch.stack(noise).to(device),
            self._end_conditions(videos, clean),
            self._embedded(captions),
        )

    def _end_conditions(self, videos: Tensor, clean: Tensor) -> Tensor:
        """The first and the last picture as instructions."""
        first, last = (
            encode_pictures(self._codec, videos[:, :, [frame]])[:, :, 0] for frame in (0, -1)
        )
        return (
            place_keyframes(
                [{0: one, -1: other} for one, other in zip(first, last, strict=True)],
                num_frames=videos.shape[2],
                channels=clean.shape[1],
                latent_height=clean.shape[3],
                latent_width=clean.shape[4],
            )
            .stacked()
            .to(clean.device)
        )

    def _embedded(self, captions: list[str]) -> Tensor:
        tokenizer, text_encoder = load_text_encoder()
        embeds, _ = encode_prompts(
            tokenizer,
            text_encoder,
            captions,
            max_sequence_length=self.config.model.text_tokens,
        )
        return embeds.to(self._accelerator.device)

    def _rows(self, clips: _Clips) -> Iterator[slice]:
        """Clips that are computed together: as many as one process trains on."""
        count = max(1, self.bucket.batch_size // self._accelerator.num_processes)
        for start in range(0, len(clips.videos), count):
            yield slice(start, start + count)

    # ---- the transformer: generated from the draft between the two end pictures

    def _generated(self, model: nn.Module, clips: _Clips) -> _Outcome:
        latents, errors = [], []
        begin, sigma = clips.noise, 1.0
        if self._codec.refiner is not None:
            shots = self._codec.prepare(_references(clips), begin.shape[2])
            drafts = draft_latents(self._codec, shots)
            begin, sigma = add_noise(drafts, begin, SAMPLING_START), SAMPLING_START
        for rows in self._rows(clips):
            velocity = self._velocity_of(model, clips, rows)
            latents.append(
                sample_euler(
                    lambda noisy, sigma, _: velocity(noisy, sigma),  # noqa: B023 - called here
                    begin[rows],
                    shifted_sigmas(_SAMPLING_STEPS, shift=SAMPLING_SHIFT, start=sigma),
                )
            )
            errors.append(self._velocity_errors(velocity, clips.clean[rows], clips.noise[rows]))
        losses = torch.cat(errors).mean(0).tolist()
        videos = self._decoded(torch.cat(latents), clips)
        return _Outcome(videos, dict(zip(SIGMAS, losses, strict=True)))

    def _velocity_of(
        self, model: nn.Module, clips: _Clips, rows: slice
    ) -> Callable[[Tensor, Tensor], Tensor]:
        conditions, embeds = clips.conditions[rows], clips.prompt_embeds[rows]

        def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
            with self._accelerator.autocast():
                made: Tensor = model(
                    hidden_states=torch.cat([noisy, conditions], dim=1),
                    timestep=timesteps_of(sigma).to(noisy.device).expand(len(noisy)),
                    encoder_hidden_states=embeds,
                    return_dict=False,
                )[0]
            return made.float()

        return velocity

    @staticmethod
    def _velocity_errors(
        velocity: Callable[[Tensor, Tensor], Tensor], clean: Tensor, noise: Tensor
    ) -> Tensor:
        """Mean squared errors ``(clips, levels)``."""
        target = velocity_target(clean, noise)
        errors = []
        for sigma in SIGMAS:
            made = velocity(add_noise(clean, noise, sigma), torch.tensor(sigma))
            errors.append((made - target).square().flatten(1).mean(1))
        return torch.stack(errors, dim=1)

    # ---- the refiner: decoded from disturbed latents beside the two end pictures

    def _refined(self, model: nn.Module, clips: _Clips) -> _Outcome:
        shown, losses = clips.videos, {}
        with self._decoding_with(self._accelerator.unwrap_model(model)):
            for level in SIGMAS:
                videos = self._decoded(clips.clean + level * clips.noise, clips)
                losses[level] = float((videos - clips.videos).abs().mean())
                if level == _SHOWN_LEVEL:
                    shown = videos
        return _Outcome(shown, losses)

    @contextmanager
    def _decoding_with(self, refiner: nn.Module) -> Iterator[None]:
        before = self._codec.refiner
        self._codec.refiner = cast("Any", refiner)
        try:
            yield
        finally:
            self._codec.refiner = before

    def _decoded(self, latents: Tensor, clips: _Clips) -> Tensor:
        """Videos of latents, one after the other, each helped by its true end pictures and text."""
        references = _references(clips)
        return torch.cat(
            [
                decode_latents(
                    self._codec,
                    latents[[clip]],
                    references.select([clip]),
                )
                for clip in range(len(latents))
            ]
        )

    # ---- what is written

    def _write(self, path: Path, step: int, clips: _Clips, outcome: _Outcome) -> None:
        each = [
            _inner_psnr(truth, made)
            for truth, made in zip(clips.videos, outcome.videos, strict=True)
        ]
        facts = {
            "step": step,
            "bucket": bucket_name(self.bucket),
            "loss": sum(outcome.losses.values()) / len(outcome.losses),
            "loss_by_sigma": {str(level): loss for level, loss in outcome.losses.items()},
            "inner_psnr": sum(each) / len(each),
            "inner_psnr_by_clip": each,
            "captions": clips.captions,
        }
        sheet = _sheet(clips.videos, outcome.videos)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_files(path.with_suffix(".json"), path, overwrite=True) as (numbers, picture):
            numbers.write_text(json.dumps(_without_nan(facts), indent=1) + "\n", encoding="utf-8")
            sheet.save(picture, format="PNG")


def _references(clips: _Clips) -> References:
    count, _, frames = clips.videos.shape[:3]
    positions = torch.tensor([[0, frames - 1]], device=clips.videos.device).expand(count, -1)
    pictures = torch.stack([clips.videos[:, :, 0], clips.videos[:, :, -1]], dim=1)
    present = torch.ones_like(positions, dtype=torch.bool)
    return References(pictures, positions, present, clips.prompt_embeds)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _inner_psnr(truth: Tensor, made: Tensor) -> float:
    """PSNR in dB of the frames between the first and the last, of videos in [-1, 1]: the mean."""
    errors = ((truth - made) / 2)[:, 1:-1].square().mean(dim=(0, 2, 3))
    return float((-10 * errors.log10()).clamp(max=_MAX_PSNR).mean())


def _sheet(truth: Tensor, made: Tensor) -> Any:
    """A row of the truth and one of the model for each clip."""
    shown = sheet_frames(truth.shape[2], _SHOWN_FRAMES)
    rows = torch.stack([truth[:, :, shown], made[:, :, shown]], dim=1).flatten(0, 1)
    frames = rows.transpose(1, 2).flatten(0, 1)
    return contact_sheet(_pixels(frames), columns=len(shown), max_frames=len(frames), labels=False)


def _pixels(frames: Tensor) -> npt.NDArray[np.uint8]:
    """``(n, 3, height, width)`` in [-1, 1] to ``(n, height, width, 3)``; not a number is black."""
    bytes_ = frames.float().add(1).mul(127.5).nan_to_num(0.0).clamp(0, 255).round().byte()
    return cast("npt.NDArray[np.uint8]", bytes_.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _without_nan(value: Any) -> Any:
    """The same for JSON, which has no infinities: None stands in."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
