"""Training data: batches of the sticker world, each a pure function of (seed, step)."""

import hashlib
import math
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pixeldance.instructions import TrainingRecipe, place_keyframes, sample_instructions
from pixeldance.models.codec import LinearVideoCodec, encode_pictures
from pixeldance.models.text import encode_prompts, load_text_encoder
from pixeldance.training.config import BucketConfig, TrainConfig
from pixeldance.worlds.captions import describe
from pixeldance.worlds.motion import motion_in_words, true_motion
from pixeldance.worlds.stickers import Scene, StickerWorld

_NO_TEXT = 0.1  # share of the samples from which the motion is learned without a text


@dataclass(frozen=True)
class StepPlan:
    """What a step trains on: a clip shape, and per sample a number that decides all else."""

    bucket: BucketConfig
    sample_ids: tuple[int, ...]


def plan_step(config: TrainConfig, step: int) -> StepPlan:
    """The batch of a step; the same for every number of processes."""
    rng = random.Random(f"{config.seed}:{step}")
    bucket = rng.choices(config.buckets, weights=[b.weight for b in config.buckets])[0]
    return StepPlan(
        bucket, tuple(stable_hash(config.seed, step, i) for i in range(bucket.batch_size))
    )


def stable_hash(*parts: object) -> int:
    """A 63-bit number from anything printable, the same in every process."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def share_of(plan: StepPlan, rank: int, world_size: int) -> tuple[int, ...]:
    """The samples of a step that one of several processes trains on; may be empty."""
    return plan.sample_ids[rank::world_size]


def micro_steps(plan: StepPlan, accumulation_steps: int, world_size: int) -> int:
    """Parts of a step's batch on each process: equal everywhere, for all synchronize together."""
    return min(accumulation_steps, math.ceil(len(plan.sample_ids) / world_size))


def split_batch(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Cut a process' share into ``count`` parts of about equal size.

    Args:
        batch: Tensors with one row per sample.
        count: Parts, at least 1.

    Returns:
        The parts in order. Where there are fewer rows than parts, the last ones repeat the first
        row with weight 0: every process computes equally often, as collectives need it.
    """
    num_rows = len(batch["weight"])
    parts = []
    for rows in torch.arange(num_rows).tensor_split(count):
        start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)
        part = {name: values[start:stop] for name, values in batch.items()}
        if not len(rows):
            part["weight"] = torch.zeros_like(part["weight"])
        parts.append(part)
    return parts


class _Steps(Sampler[int]):
    """The steps of a run in order, this process' share of each batch being cut out later."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


class _World(Dataset[dict[str, Tensor]]):
    """Batches by step number; everything heavy is opened inside the worker."""

    def __init__(self, config: TrainConfig, codec: LinearVideoCodec, rank: int, world: int) -> None:
        self.config, self.codec, self.rank, self.world = config, codec, rank, world
        self._opened: tuple[StickerWorld, Any, Any] | None = None

    def _open(self) -> tuple[StickerWorld, Any, Any]:
        if self._opened is None:
            self._opened = (StickerWorld("train"), *load_text_encoder())
        return self._opened

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        plan = plan_step(self.config, step)
        share = share_of(plan, self.rank, self.world)
        mine = share or plan.sample_ids[:1]  # a process without samples still takes part
        world, tokenizer, text_encoder = self._open()
        bucket = plan.bucket
        aspect = bucket.width / bucket.height
        scenes = [_drawn_scene(world, number, aspect, self.config.simple_share) for number in mine]
        weight = torch.full((len(mine),), 1.0 if share else 0.0)
        named = {"sample_ids": torch.tensor(mine), "weight": weight}
        if self.config.part == "motion":
            scenes = [_uncut(world, *pair, aspect) for pair in zip(scenes, mine, strict=True)]
        captions = [describe(scene, number) for scene, number in zip(scenes, mine, strict=True)]
        match self.config.part:
            case "motion":
                batch = _end_pictures(world, scenes, bucket, self.config.fps)
                keep = _texts_kept(mine)
            case "reader":
                batch = _motions_in_words(scenes)
                keep = _texts_kept(mine)
            case "refiner":
                videos = render_clips(world, scenes, bucket, self.config.fps)
                batch = {"video": (videos * 255).round().to(torch.uint8)}
                keep = [True] * len(mine)
            case "transformer":
                videos = render_clips(world, scenes, bucket, self.config.fps)
                batch = instructed(self.codec, videos * 2 - 1, mine, self.config.recipe)
                keep = batch.pop("keep")
        captions = [text if is_kept else "" for text, is_kept in zip(captions, keep, strict=True)]
        batch["prompt_embeds"], _ = encode_prompts(
            tokenizer, text_encoder, captions, max_sequence_length=self.config.model.text_tokens
        )
        return batch | named


def instructed(
    codec: LinearVideoCodec, videos: Tensor, sample_ids: Sequence[int], recipe: TrainingRecipe
) -> dict[str, Any]:
    """Clips and the instructions that are drawn for them, as the transformer learns from them.

    Args:
        codec: Codec on the videos' device.
        videos: ``(n, 3, frames, height, width)`` in [-1, 1].
        sample_ids: One number a clip, which decides all that is drawn.
        recipe: How instructions are drawn.

    Returns:
        ``clean_latents`` and ``conditions``, and ``keep``: for each clip whether its text is seen.
    """
    clean = encode_pictures(codec, videos)
    keyframes: list[dict[int, Tensor]] = []
    keep = []
    for clip, number in enumerate(sample_ids):
        rng = random.Random(f"instructions:{number}")
        drawn = sample_instructions(videos.shape[2], recipe, rng)
        keep.append(drawn.keep_text)
        pictures: dict[int, Tensor] = {}
        if drawn.sources:
            given = videos[clip, :, list(drawn.sources.values())].transpose(0, 1)[:, :, None]
            latents = encode_pictures(codec, given)[:, :, 0]
            noise = np.random.default_rng(number).standard_normal(latents.shape, np.float32)
            signal = (1 - drawn.noise**2) ** 0.5
            noised = signal * latents + drawn.noise * torch.from_numpy(noise)
            pictures = dict(zip(drawn.sources, noised, strict=True))
        keyframes.append(pictures)
    conditions = place_keyframes(
        keyframes,
        num_frames=videos.shape[2],
        channels=clean.shape[1],
        latent_height=clean.shape[3],
        latent_width=clean.shape[4],
    )
    return {"clean_latents": clean, "conditions": conditions.stacked(), "keep": keep}


def render_clips(
    world: StickerWorld, scenes: Sequence[Scene], bucket: BucketConfig, fps: int
) -> Tensor:
    """Draw scenes as clips of one shape.

    Args:
        world: Where they are.
        scenes: One a clip.
        bucket: Size and length.
        fps: Frames per second.

    Returns:
        ``(clips, 3, frames, height, width)`` in [0, 1].
    """
    videos = [
        world.render(
            scene,
            height=bucket.height,
            width=bucket.width,
            num_frames=bucket.num_frames,
            fps=fps,
        )
        for scene in scenes
    ]
    return torch.stack(videos).transpose(1, 2)


def _drawn_scene(world: StickerWorld, number: int, aspect: float, simple_share: float) -> Scene:
    """Scene of a sample; for a part of the samples, drawn again until it is a simple one."""
    scene = world.sample_scene(number, aspect=aspect)
    if random.Random(f"simple:{number}").random() < simple_share:
        attempt = 0
        while not scene.is_simple:
            attempt += 1
            scene = world.sample_scene(stable_hash(number, attempt), aspect=aspect)
    return scene


def _uncut(world: StickerWorld, scene: Scene, number: int, aspect: float) -> Scene:
    """The scene, or another one if it has a cut."""
    attempt = 0
    while len(scene.shots) > 1:
        attempt += 1
        scene = world.sample_scene(stable_hash("uncut", number, attempt), aspect=aspect)
    return scene


def _texts_kept(sample_ids: Sequence[int]) -> list[bool]:
    """For which samples the motion is learned with the text."""
    return [random.Random(f"text:{number}").random() >= _NO_TEXT for number in sample_ids]


def _motions_in_words(scenes: Sequence[Scene]) -> dict[str, Any]:
    """What texts say; of scenes with a cut, only that there is one."""
    cuts = [len(scene.shots) > 1 for scene in scenes]
    said = [
        motion_in_words(replace(scene, shots=scene.shots[:1]) if has_cut else scene)
        for scene, has_cut in zip(scenes, cuts, strict=True)
    ]
    return {
        "camera": torch.stack([words.camera for words in said]),
        "subjects": torch.stack([words.subjects for words in said]),
        "named": torch.stack([words.named for words in said]),
        "cut": torch.tensor(cuts, dtype=torch.float32),
    }


def _end_pictures(
    world: StickerWorld, scenes: Sequence[Scene], bucket: BucketConfig, fps: int
) -> dict[str, Any]:
    """First and last frames, uint8, and the true motion between them."""
    size = {"height": bucket.height, "width": bucket.width}
    pace = fps / (bucket.num_frames - 1)  # the second of two frames shows the last one's pose
    pictures = [world.render(scene, **size, num_frames=2, fps=pace) for scene in scenes]
    motions = [
        true_motion(world.assets, scene, **size, num_frames=bucket.num_frames, fps=fps)
        for scene in scenes
    ]
    return {
        "pictures": (torch.stack(pictures) * 255).round().to(torch.uint8),
        "flow": torch.stack([motion.flow for motion in motions]),
        "front": torch.stack([motion.front for motion in motions]),
        "detour": torch.stack([motion.detour for motion in motions]),
    }


def training_batches(
    config: TrainConfig,
    codec: LinearVideoCodec,
    *,
    start: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[dict[str, Tensor]]:
    """Batches from step ``start`` to the end of the run, rendered by worker processes.

    Args:
        config: The run.
        codec: Codec on the CPU; only its projection is used.
        start: First step.
        rank: This process; it gets every ``world_size``-th sample of each batch.
        world_size: Number of processes.

    Returns:
        A loader of dictionaries: ``clean_latents``, ``conditions`` and ``prompt_embeds`` for the
        transformer; uint8 ``video`` for the refiner; uint8 ``pictures``, ``flow``, ``front`` and
        ``detour`` for the motion; ``camera``, ``subjects``, ``named`` and ``cut`` for the
        reader; ``prompt_embeds``, ``sample_ids`` and ``weight`` for all. The weight is 1, or 0
        for the one sample that a process without a share is given.
    """
    return DataLoader(
        _World(config, codec, rank, world_size),
        batch_size=None,
        sampler=_Steps(start, config.max_steps),
        num_workers=config.num_workers,
        prefetch_factor=4 if config.num_workers else None,
        multiprocessing_context="spawn" if config.num_workers else None,
        worker_init_fn=_leave_signals_to_the_parent if config.num_workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_parent(worker: int) -> None:  # noqa: ARG001
    """Schedulers signal every process of a job; the run is saved and ended by the parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def sample_generator(sample_id: int, purpose: str) -> torch.Generator:
    """Randomness of one sample: noise does not depend on batch, process or history."""
    generator = torch.Generator()
    generator.manual_seed(stable_hash(purpose, sample_id))
    return generator
