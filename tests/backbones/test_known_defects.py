"""Defects of other implementations that the other tests here do not rule out already.

Elsewhere: masks and lengths other than 81 frames, key frames by pixel frame, pictures that are
ignored, batches of pairs and several clips of a prompt (``test_tricks``); the negative prompt under
a step cache (``test_step_cache``); no need of torchvision (``test_imports``) or ftfy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny import picture, seeded

from pixeldance.backbones import autoencoder
from pixeldance.errors import InputError
from pixeldance.pipeline import PixelDancePipeline

Load = Callable[[str], PixelDancePipeline]

SMALL: dict[str, Any] = {
    "height": 32,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "output_type": "latent",
}
FIRST, LAST = picture(1, 64, 32), picture(3, 64, 32)


def run(pipeline: PixelDancePipeline, **options: Any) -> torch.Tensor:
    options = {"generator": seeded(0), **SMALL, **options}
    frames: torch.Tensor = pipeline("a red fox", **options).frames
    return frames


def test_a_tall_last_frame_is_cropped_not_padded(ours: Load) -> None:
    """Wan's own code mixes up height and width when it crops the last frame, and pads it black."""
    tall = picture(4, 64, 96)
    expected = run(ours("flf2v-14b"), first_frame=FIRST, last_frame=tall.crop((0, 32, 64, 64)))
    made = run(ours("flf2v-14b"), first_frame=FIRST, last_frame=tall)
    torch.testing.assert_close(made, expected, rtol=0, atol=0)


def test_a_small_last_frame_fills_the_clip(ours: Load) -> None:
    """Without resizing, cropping a picture smaller than the clip leaves black around it."""
    grey = Image.new("RGB", (32, 16), (120, 130, 140))
    large = Image.new("RGB", (64, 32), (120, 130, 140))
    made = run(ours("flf2v-14b"), first_frame=FIRST, last_frame=grey)
    expected = run(ours("flf2v-14b"), first_frame=FIRST, last_frame=large)
    torch.testing.assert_close(made, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_frames", [4, 82])
def test_lengths_that_the_autoencoder_cannot_make_are_not_rounded(
    ours: Load, num_frames: int
) -> None:
    """VACE makes 82 frames of 80 asked for; diffusers rounds down."""
    with pytest.raises(InputError, match=f"num_frames must be .* got {num_frames}"):
        run(ours("fun-inp"), first_frame=FIRST, num_frames=num_frames)


def test_a_held_last_frame_is_a_still_group_of_frames(ours: Load) -> None:
    """Open-Sora puts the latent of a single picture where the decoder expects four frames."""
    pipeline = ours("ti2v-5b")
    last = run(pipeline, first_frame=FIRST, last_frame=LAST)[:, :, 2]
    pixels = torch.frombuffer(bytearray(LAST.tobytes()), dtype=torch.uint8)
    still = pixels.reshape(1, 32, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1.0
    video = still.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    latents = pipeline.vae.encode(video.contiguous()).latent_dist.mode()[:, :, 1]
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    torch.testing.assert_close(last, (latents - mean) / std, rtol=0, atol=1e-4)


def test_every_clip_of_a_batch_has_its_held_frames(ours: Load) -> None:
    """Open-Sora writes them back to the first clip of a batch alone."""
    pipeline = ours("ti2v-5b")
    clips = pipeline(
        ["a red fox", "a cat"],
        last_frame=[LAST, FIRST],
        generator=[seeded(0), seeded(1)],
        **SMALL,
    ).frames
    for row, shown in enumerate((LAST, FIRST)):
        alone = run(pipeline, last_frame=shown)
        torch.testing.assert_close(clips[row, :, 2], alone[0, :, 2], rtol=0, atol=1e-4)


def test_a_generator_for_each_clip_encodes_the_pictures_once(
    ours: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers encodes them once for each generator."""
    encode, encoded = autoencoder.encode_keyframes, []
    monkeypatch.setattr(
        autoencoder, "encode_keyframes", lambda *given: encoded.append(1) or encode(*given)
    )
    generators = [seeded(seed) for seed in range(3)]
    clips = run(ours("fun-inp"), first_frame=FIRST, num_videos_per_prompt=3, generator=generators)
    assert (len(clips), len(encoded)) == (3, 1)


def test_latents_and_timesteps_stay_in_float32(checkpoint: Callable[[str], Path]) -> None:
    """diffusers' Euler solver takes over bfloat16 of the model; modular Wan rounds timesteps."""
    dtypes = {"default": torch.float32, "transformer": torch.bfloat16}
    pipeline = PixelDancePipeline.from_pretrained(checkpoint("fun-inp"), dtype=dtypes)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0))
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    timesteps: list[float] = []

    def look(module: Any, args: Any, given: dict[str, Any]) -> None:
        timesteps.append(float(given["timestep"].flatten()[0]))

    def after_step(_: Any, step: int, timestep: torch.Tensor, given: dict[str, Any]) -> Any:
        seen.append((given["latents"].dtype, timestep.dtype))
        return given

    handle = pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
    run(pipeline, num_inference_steps=7, callback_on_step_end=after_step)
    handle.remove()
    assert seen == [(torch.float32, torch.float32)] * 7
    assert timesteps == pipeline.scheduler.timesteps.tolist()
    # What rounding would do to them.
    assert timesteps != pipeline.scheduler.timesteps.bfloat16().tolist()
