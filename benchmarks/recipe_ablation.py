"""The paper's ablation at a small scale: training without last-frame drop, window or noise.

Four small transformers are trained from nothing on the same clips in the same order, with the same
noise; only the recipe of their instructions differs. Held-out clips are then made from noise with
8 steps and decoded by the bare projection, so that nothing but the transformer shows. Finished
trainings are kept in the output folder, so that a run that was stopped goes on.

Run: python benchmarks/recipe_ablation.py --output ablation (needs the extra eval; about an hour
of one core; --steps 20 --pool 40 --num-clips 4 tries it out).
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pixeldance.evaluation.lpips import Lpips, load_lpips
from pixeldance.evaluation.measures import compare_clip
from pixeldance.evaluation.peers import Frames
from pixeldance.evaluation.statistics import bootstrap_interval
from pixeldance.instructions import TrainingRecipe
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.text import encode_prompts, load_text_encoder
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.pipeline import PixelDancePipeline
from pixeldance.training.config import BucketConfig, ModelConfig, OptimizerConfig, TrainConfig
from pixeldance.training.data import instructed, render_clips, stable_hash
from pixeldance.training.optim import learning_rate, make_optimizers, set_learning_rate
from pixeldance.training.parts import TransformerPart
from pixeldance.video import write_contact_sheet
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import Scene, StickerWorld

BUCKET = BucketConfig(height=96, width=96, num_frames=17, batch_size=16)
FPS = 12
SHIFT = 3.0
NUM_STEPS = 8
AS_PUBLISHED = TrainingRecipe(tasks={"first_last": 1.0})
RECIPES = {
    "as published": AS_PUBLISHED,
    "without drop": replace(AS_PUBLISHED, last_frame_drop=0.0),
    "without window": replace(AS_PUBLISHED, last_frame_window=1),
    "without noise": replace(AS_PUBLISHED, noise_probability=0.0),
}
LastPicture = Literal["none", "exact", "rough", "shifted"]
QUESTIONS: Mapping[str, tuple[LastPicture, float]] = {  # with last_frame_strength
    "first picture alone": ("none", 1.0),
    "both pictures": ("exact", 1.0),
    "last picture for half of the steps": ("exact", 0.5),
    "rough last picture": ("rough", 1.0),
    "last picture that does not fit": ("shifted", 1.0),
}
MEASURES = {"lpips": "inner LPIPS", "last_lpips": "last frame, LPIPS", "end_jump": "end jump"}

logger = logging.getLogger("recipe_ablation")


class Pool(NamedTuple):
    """Clips with their texts.

    Attributes:
        videos: ``(n, 3, frames, height, width)`` uint8.
        captions: Their texts.
        embeds: Token states ``(n, tokens, text_dim)``.
    """

    videos: Tensor
    captions: list[str]
    embeds: Tensor


def simple_scenes(world: StickerWorld, count: int) -> list[Scene]:
    """One actor before a camera at rest: what a small model can learn in minutes."""
    scenes: list[Scene] = []
    seed = 0
    while len(scenes) < count:
        scene = world.sample_scene(seed, aspect=1.0)
        if scene.is_simple:
            scenes.append(scene)
        seed += 1
    return scenes


def make_pool(
    split: Literal["train", "heldout"],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
) -> Pool:
    """Render clips of a split and read their texts."""
    world = StickerWorld(split)
    scenes = simple_scenes(world, count)
    captions = [describe(scene, seed) for seed, scene in enumerate(scenes)]
    videos, embeds = [], []
    for start in range(0, count, 64):
        part = slice(start, start + 64)
        rendered = render_clips(world, scenes[part], BUCKET, FPS)
        videos.append((rendered * 255).round().to(torch.uint8))
        embeds.append(encode_prompts(tokenizer, text_encoder, captions[part])[0])
    return Pool(torch.cat(videos), captions, torch.cat(embeds))


def train(
    recipe: TrainingRecipe, pool: Pool, codec: LinearVideoCodec, steps: int
) -> PixelDanceTransformer3DModel:
    """A small transformer trained from nothing; all but the instructions depends on the step."""
    config = TrainConfig(
        max_steps=steps,
        shift=SHIFT,
        recipe=recipe,
        buckets=(BUCKET,),
        model=ModelConfig(num_attention_heads=1, num_layers=6, ffn_dim=512),
        optimizer=OptimizerConfig(learning_rate=2.0e-3, warmup_steps=50, decay_fraction=0.5),
    )
    torch.manual_seed(0)
    part = TransformerPart(config)
    optimizers = make_optimizers(part.model, config.optimizer)
    for step in range(steps):
        ids = [stable_hash(0, step, place) for place in range(BUCKET.batch_size)]
        rows = [number % len(pool.videos) for number in ids]
        batch = instructed(codec, pool.videos[rows].float() / 127.5 - 1, ids, recipe)
        is_kept = torch.tensor(batch.pop("keep"))[:, None, None]
        batch |= {"prompt_embeds": pool.embeds[rows] * is_kept, "sample_ids": torch.tensor(ids)}
        with torch.autocast("cpu", torch.bfloat16):
            loss = part.loss(part.model, batch).losses.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.model.parameters(), config.optimizer.max_grad_norm)
        set_learning_rate(optimizers, learning_rate(config.optimizer, step, steps))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d of %d, loss %.3f", step, steps, loss.item())
    model: PixelDanceTransformer3DModel = part.model.eval()
    return model


def last_pictures(videos: Frames, kind: LastPicture) -> list[Image.Image] | None:
    """What is given as the last frame of each clip."""
    if kind == "none":
        return None
    pictures = [Image.fromarray(frames[-1]) for frames in videos]
    if kind == "rough":  # a sketch: blurred by 3 pixels, in 24 colours
        blurred = [picture.filter(ImageFilter.GaussianBlur(3)) for picture in pictures]
        return [picture.quantize(24).convert("RGB") for picture in blurred]
    if kind == "shifted":  # by an eighth of the width, as if the camera stood elsewhere
        shift = BUCKET.width // 8
        pad = ((0, 0), (0, shift), (0, 0))
        shifted = (np.pad(frames[-1], pad, "reflect")[:, shift:] for frames in videos)
        return [Image.fromarray(frame) for frame in shifted]
    return pictures


def make(pipeline: PixelDancePipeline, pool: Pool, last: LastPicture, strength: float) -> Frames:
    """One clip of each row of the pool, uint8 ``(n, frames, height, width, 3)``."""
    videos = frames_of(pool)
    clips = []
    for start in range(0, len(videos), 16):
        part = slice(start, start + 16)
        made = pipeline(
            pool.captions[part],
            first_frame=[Image.fromarray(frames[0]) for frames in videos[part]],
            last_frame=last_pictures(videos[part], last),
            last_frame_strength=strength,
            height=BUCKET.height,
            width=BUCKET.width,
            num_frames=BUCKET.num_frames,
            num_inference_steps=NUM_STEPS,
            generator=[torch.Generator().manual_seed(i) for i in range(len(videos))[part]],
            return_dict=False,
        )[0]
        clips.append((made * 255).round().astype(np.uint8))
    return np.concatenate(clips)


def frames_of(pool: Pool) -> Frames:
    """The clips as users get them."""
    frames: Frames = pool.videos.movedim(1, -1).numpy()
    return frames


def answers(
    pipeline: PixelDancePipeline, pool: Pool, lpips: Lpips, sheet: Path
) -> dict[str, dict[str, list[float]]]:
    """Each measure of each clip for each question."""
    truth = frames_of(pool)
    found = {}
    for question, asked in QUESTIONS.items():
        made = make(pipeline, pool, *asked)
        scores = [
            compare_clip(true, clip, lpips=lpips, truth_features=lpips.features(true))
            for true, clip in zip(truth, made, strict=True)
        ]
        found[question] = {key: [score[key] for score in scores] for key in MEASURES}
        rows = np.concatenate(made[:4, ::4])
        name = f"{sheet.stem}-{question.replace(' ', '-')}.png"
        write_contact_sheet(sheet.with_name(name), rows, columns=5, max_frames=20, overwrite=True)
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
    """Means, and differences from the recipe as published with their intervals, as Markdown."""
    lines = ["| asked | measure | " + " | ".join(RECIPES) + " |"]
    lines.append("|---|---|" + "---|" * len(RECIPES))
    for question in QUESTIONS:
        for key, title in MEASURES.items():
            every = {name: np.array(found[name][question][key]) for name in RECIPES}
            whole = every["as published"]
            cells = [f"{whole.mean():.3f}"]
            for values in list(every.values())[1:]:
                change = bootstrap_interval(values - whole)
                cells.append(f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
            lines.append(f"| {question} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not there yet, ask, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--pool", type=int, default=2000, help="training clips")
    parser.add_argument("--num-clips", type=int, default=64, help="held-out clips")
    parser.add_argument("--codec", type=Path, default=Path("weights/pixeldance-mini/vae"))
    parser.add_argument("--output", type=Path, default=Path("ablation"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    codec = LinearVideoCodec.from_pretrained(options.codec)
    codec.refiner = None  # what the transformer makes, as it is
    texts = tokenizer, text_encoder = load_text_encoder()
    training = heldout = None
    lpips, found = load_lpips(), {}
    for name, recipe in RECIPES.items():
        folder = options.output / name.replace(" ", "-")
        if not folder.exists():
            training = training or make_pool("train", options.pool, *texts)
            logger.info("training %s", name)
            train(recipe, training, codec, options.steps).save_pretrained(folder)
        heldout = heldout or make_pool("heldout", options.num_clips, *texts)
        transformer = PixelDanceTransformer3DModel.from_pretrained(folder)
        pipeline = PixelDancePipeline(transformer, codec, text_encoder, tokenizer, shift=SHIFT)
        pipeline.set_progress_bar_config(disable=True)
        found[name] = answers(pipeline, heldout, lpips, folder.with_suffix(".png"))
    settings: dict[str, Any] = {"steps": options.steps, "pool": options.pool, "found": found}
    (options.output / "ablation.json").write_text(json.dumps(settings), encoding="utf-8")
    print(table(found))  # noqa: T201


if __name__ == "__main__":
    main()
