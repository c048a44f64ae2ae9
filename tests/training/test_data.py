"""Batches are pure functions of (seed, step), cut the same way by any number of processes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import BUCKETS, TEXT_DIM, TEXT_TOKENS, make_codec, make_config, use_made_up_world
from torch import Tensor

from pixeldance.instructions import TrainingRecipe
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.text import find_text_encoder
from pixeldance.training.config import BucketConfig, ModelConfig, TrainConfig
from pixeldance.training.data import (
    StepPlan,
    micro_steps,
    plan_step,
    sample_generator,
    split_batch,
    stable_hash,
    training_batches,
)
from pixeldance.worlds.stickers import Scene, StickerWorld

ONE_BUCKET = (BucketConfig(height=48, width=48, num_frames=9, batch_size=4),)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> LinearVideoCodec:
    return make_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(autouse=True)
def _made_up_world(monkeypatch: pytest.MonkeyPatch) -> None:
    use_made_up_world(monkeypatch)


def batches(
    config: TrainConfig, codec: LinearVideoCodec, **options: int
) -> Iterator[dict[str, Tensor]]:
    return iter(training_batches(config, codec, **({"start": 0} | options)))


def one_batch(config: TrainConfig, codec: LinearVideoCodec, **options: int) -> dict[str, Tensor]:
    return next(batches(config, codec, **options))


def recipe_config(**recipe: object) -> TrainConfig:
    return make_config(Path(), buckets=ONE_BUCKET, recipe=TrainingRecipe(**recipe))  # type: ignore[arg-type]


def test_the_plan_of_a_step_is_always_the_same() -> None:
    config = make_config(Path())
    plans = [plan_step(config, step) for step in range(50)]
    assert plans == [plan_step(config, step) for step in range(50)]
    assert all(len(p.sample_ids) == p.bucket.batch_size for p in plans)
    numbers = [number for p in plans for number in p.sample_ids]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 for number in numbers)


def test_another_seed_plans_other_samples() -> None:
    one, two = (plan_step(make_config(Path(), seed=seed), 0).sample_ids for seed in (0, 1))
    assert not set(one) & set(two)


def test_buckets_are_drawn_by_their_weights() -> None:
    buckets = (BucketConfig(weight=3.0), BucketConfig(height=64, weight=1.0))
    config = make_config(Path(), buckets=buckets)
    counts = Counter(plan_step(config, step).bucket.height for step in range(2000))
    assert counts[128] / 2000 == pytest.approx(0.75, abs=0.04)


def test_hashes_do_not_depend_on_the_process() -> None:
    # The first eight bytes of sha256("0:1:2"), without the lowest bit.
    assert stable_hash(0, 1, 2) == stable_hash("0", "1", "2")
    assert stable_hash("a") == 0xCA978112CA1BBDCA >> 1
    assert stable_hash("a", "b") != stable_hash("b", "a")


def test_noise_depends_on_sample_and_purpose_only() -> None:
    def noise(sample_id: int, purpose: str) -> list[float]:
        return torch.randn(4, generator=sample_generator(sample_id, purpose)).tolist()

    assert noise(7, "noise") == noise(7, "noise")
    assert noise(7, "noise") != noise(8, "noise")
    assert noise(7, "noise") != noise(7, "sigma")


@pytest.mark.parametrize("part", ["transformer", "refiner"])
def test_two_processes_share_the_batch_of_one(codec: LinearVideoCodec, part: str) -> None:
    config = make_config(Path(), part=part, buckets=BUCKETS[:1])
    whole = one_batch(config, codec)
    halves = [one_batch(config, codec, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(half["sample_ids"]) for half in halves] == [2, 1]
    for name, values in whole.items():
        for rank, half in enumerate(halves):
            torch.testing.assert_close(half[name], values[rank::2], atol=1e-5, rtol=0)


def test_a_process_without_a_share_is_given_a_sample_of_no_weight(codec: LinearVideoCodec) -> None:
    config = make_config(Path(), part="refiner", buckets=BUCKETS[1:])
    shares = [one_batch(config, codec, rank=rank, world_size=3) for rank in range(3)]
    assert [share["weight"].tolist() for share in shares] == [[1.0], [1.0], [0.0]]
    assert torch.equal(shares[2]["video"], shares[0]["video"])


@pytest.mark.parametrize(
    ("rows", "count", "sizes", "weights"),
    [(4, 2, [2, 2], [2, 2]), (3, 2, [2, 1], [2, 1]), (1, 3, [1, 1, 1], [1, 0, 0])],
)
def test_a_share_is_cut_without_losing_a_sample(
    rows: int, count: int, sizes: list[int], weights: list[float]
) -> None:
    batch = {"sample_ids": torch.arange(rows), "weight": torch.ones(rows)}
    parts = split_batch(batch, count)
    assert [len(part["sample_ids"]) for part in parts] == sizes
    assert [float(part["weight"].sum()) for part in parts] == weights
    counted = [part["sample_ids"][part["weight"] > 0] for part in parts]
    assert torch.equal(torch.cat(counted), batch["sample_ids"])


@pytest.mark.parametrize(
    ("accumulation", "world", "expected"), [(1, 1, 1), (2, 1, 2), (8, 1, 3), (8, 2, 2), (2, 8, 1)]
)
def test_no_micro_step_is_empty_everywhere(accumulation: int, world: int, expected: int) -> None:
    plan = StepPlan(BUCKETS[0], (1, 2, 3))
    assert micro_steps(plan, accumulation, world) == expected


def test_rendering_in_the_process_leaves_its_threads_alone(
    monkeypatch: pytest.MonkeyPatch, codec: LinearVideoCodec
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    one_batch(make_config(Path()), codec)
    assert asked == []


@pytest.mark.parametrize("part", ["transformer", "refiner"])
def test_a_loader_can_start_anywhere(codec: LinearVideoCodec, part: str) -> None:
    config = make_config(Path(), part=part, max_steps=4)
    whole = list(batches(config, codec))
    tail = list(batches(config, codec, start=2))
    assert (len(whole), len(tail)) == (4, 2)
    for one, other in zip(whole[2:], tail, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_for_the_transformer(codec: LinearVideoCodec) -> None:
    batch = one_batch(make_config(Path(), buckets=BUCKETS[1:]), codec)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "clean_latents": (2, 4, 3, 3, 4),
        "conditions": (2, 8, 3, 3, 4),
        "prompt_embeds": (2, TEXT_TOKENS, TEXT_DIM),
        "sample_ids": (2,),
        "weight": (2,),
    }


def test_batches_for_the_refiner(codec: LinearVideoCodec) -> None:
    batch = one_batch(make_config(Path(), part="refiner", buckets=BUCKETS[1:]), codec)
    assert set(batch) == {"video", "sample_ids", "weight", "prompt_embeds"}
    assert batch["prompt_embeds"].flatten(1).any(1).all()
    assert batch["video"].shape == (2, 3, 9, 48, 64)
    assert batch["video"].dtype == torch.uint8
    assert batch["video"].max() > 200


def test_batches_for_the_motion(codec: LinearVideoCodec) -> None:
    batch = one_batch(make_config(Path(), part="motion", buckets=BUCKETS[1:]), codec)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pictures": (2, 2, 3, 48, 64),
        "flow": (2, 2, 2, 12, 16),
        "front": (2, 2, 1, 12, 16),
        "detour": (2, 2, 3, 2, 12, 16),
        "prompt_embeds": (2, TEXT_TOKENS, TEXT_DIM),
        "sample_ids": (2,),
        "weight": (2,),
    }


def test_batches_for_the_reader(codec: LinearVideoCodec) -> None:
    batch = one_batch(make_config(Path(), part="reader", buckets=BUCKETS[1:]), codec)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "camera": (2, 2, 4, 4),
        "subjects": (2, 3, 2, 4, 4),
        "named": (2, 3),
        "cut": (2,),
        "prompt_embeds": (2, TEXT_TOKENS, TEXT_DIM),
        "sample_ids": (2,),
        "weight": (2,),
    }


@pytest.mark.parametrize(("simple_share", "low", "high"), [(0.0, 0, 4), (1.0, 8, 8)])
def test_simple_scenes_are_drawn_by_their_share(
    monkeypatch: pytest.MonkeyPatch,
    codec: LinearVideoCodec,
    simple_share: float,
    low: int,
    high: int,
) -> None:
    drawn: list[Scene] = []
    real = StickerWorld.render

    def recorded(world: StickerWorld, scene: Scene, **options: int) -> Tensor:
        drawn.append(scene)
        return real(world, scene, **options)

    monkeypatch.setattr(StickerWorld, "render", recorded)
    config = make_config(Path(), part="refiner", simple_share=simple_share, buckets=ONE_BUCKET)
    loader = batches(config, codec)
    for _ in range(2):
        next(loader)
    assert low <= sum(scene.is_simple for scene in drawn) <= high
    assert len(set(drawn)) == 8


def test_the_first_frame_is_given_as_the_first_latent(codec: LinearVideoCodec) -> None:
    config = recipe_config(tasks={"first": 1.0}, noise_steps=0)
    batch = one_batch(config, codec)
    mask, given = batch["conditions"].split(4, dim=1)
    assert mask[:, :, 0].all()
    assert not mask[:, :, 1:].any()
    torch.testing.assert_close(given[:, :, 0], batch["clean_latents"][:, :, 0])
    assert not given[:, :, 1:].any()


def test_given_pictures_are_encoded_as_pictures(codec: LinearVideoCodec) -> None:
    tasks, options = {"last": 1.0}, {"noise_steps": 0, "last_frame_drop": 0.0}
    windows = [
        one_batch(recipe_config(tasks=tasks, last_frame_window=w, **options), codec) for w in (1, 4)
    ]
    exact, loose = (batch["conditions"][:, 4:, 2] for batch in windows)
    assert [row.tolist() for row in windows[0]["conditions"][0, :4, :, 0, 0]] == [
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 1],
    ]
    # One still picture is not the group of four moving frames that ends with it.
    assert not torch.allclose(exact, windows[0]["clean_latents"][:, :, 2], atol=1e-3)
    assert not torch.allclose(exact, loose, atol=1e-3)  # an earlier frame stands for the last


def test_instructions_are_noised_at_constant_variance(codec: LinearVideoCodec) -> None:
    clean, noised = (
        one_batch(recipe_config(tasks={"first": 1.0}, noise_steps=steps), codec)["conditions"][
            :, 4:, 0
        ]
        for steps in (0, 100)
    )
    rest = noised - 0.9471 * clean
    assert float(rest.std()) == pytest.approx(0.3209, rel=0.2)
    assert abs(float(rest.mean())) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([rest.flatten(), clean.flatten()]))[0, 1])) < 0.25
    assert not torch.allclose(rest[0], rest[1], atol=0.1)


def test_a_dropped_last_frame_leaves_nothing(codec: LinearVideoCodec) -> None:
    config = recipe_config(tasks={"last": 1.0}, last_frame_drop=1.0)
    assert not one_batch(config, codec)["conditions"].any()


@pytest.mark.parametrize(("text_drop", "is_seen"), [(0.0, True), (1.0, False)])
def test_a_dropped_caption_is_the_empty_text(
    codec: LinearVideoCodec, text_drop: float, is_seen: bool
) -> None:
    embeds = one_batch(recipe_config(text_drop=text_drop), codec)["prompt_embeds"]
    assert embeds.flatten(1).any(1).tolist() == [is_seen] * 4


def test_captions_go_through_the_real_text_encoder(
    monkeypatch: pytest.MonkeyPatch, codec: LinearVideoCodec
) -> None:
    from pixeldance.errors import CheckpointError
    from pixeldance.models import text

    try:
        find_text_encoder()
    except CheckpointError:
        pytest.skip("the text encoder is not installed")
    monkeypatch.setattr("pixeldance.training.data.load_text_encoder", text.load_text_encoder)
    monkeypatch.setattr("pixeldance.training.data.encode_prompts", text.encode_prompts)
    config = make_config(Path(), model=ModelConfig(), buckets=BUCKETS[:1])
    embeds = one_batch(config, codec)["prompt_embeds"]
    assert embeds.shape == (3, 64, 384)
    assert embeds.isfinite().all()
    assert not torch.equal(embeds[0], embeds[1])
