"""Held-out clips in training: an oracle is recognised, and nothing of the run is disturbed."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import BUCKETS, made_up_embeds, make_codec, make_config, use_made_up_world
from torch import Tensor, nn

from pixeldance.models.carrying import Motion, still
from pixeldance.models.codec import LinearVideoCodec, decode_latents, encode_pictures
from pixeldance.training.config import TrainConfig
from pixeldance.training.parts import make_part
from pixeldance.training.validation import SIGMAS, Validation
from pixeldance.worlds.stickers import StickerWorld

BUCKET = BUCKETS[0]


class Alone:
    """What validation asks of accelerate, in one process."""

    device = torch.device("cpu")
    num_processes = 1

    def __init__(self, *, is_main_process: bool = True) -> None:
        self.is_main_process = is_main_process
        self.waits = 0

    def autocast(self) -> Any:
        return nullcontext()

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model

    def wait_for_everyone(self) -> None:
        self.waits += 1


class Oracle(nn.Module):
    """Knows the held-out latents: its velocity leads from any noise straight to them."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean, self.batches = clean, []
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        self.batches.append(len(hidden_states))
        clean = self.clean if len(hidden_states) == len(self.clean) else self.clean[-1:]
        noisy = hidden_states[:, : clean.shape[1]]
        sigma = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return (self.dropout((noisy - clean) / sigma),)


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LinearVideoCodec:
    use_made_up_world(monkeypatch)
    monkeypatch.setattr("pixeldance.training.validation.load_text_encoder", drawn_text_encoder)
    monkeypatch.setattr("pixeldance.training.validation.encode_prompts", made_up_embeds)
    return make_codec(tmp_path / "codec")


def drawn_text_encoder() -> tuple[None, None]:
    """The real one draws random weights before it reads its own."""
    torch.rand(3)
    return None, None


def configured(tmp_path: Path, **changes: Any) -> TrainConfig:
    return make_config(tmp_path, **({"validation_steps": 2, "validation_clips": 2} | changes))


def opened(config: TrainConfig, codec: LinearVideoCodec, **options: Any) -> Validation:
    accelerator: Any = Alone(**options)
    return Validation(config, codec, accelerator)


def heldout_videos(count: int = 2) -> Tensor:
    world = StickerWorld("heldout")
    shape = {"height": BUCKET.height, "width": BUCKET.width, "num_frames": BUCKET.num_frames}
    clips = [world.render(world.sample_scene(seed), fps=12, **shape) for seed in range(count)]
    return torch.stack(clips).transpose(1, 2) * 2 - 1


def numbers(sheet: Path) -> dict[str, Any]:
    return json.loads(sheet.with_suffix(".json").read_text(), parse_constant=pytest.fail)


def test_an_oracle_makes_the_truth_without_loss(tmp_path: Path, codec: LinearVideoCodec) -> None:
    truth = heldout_videos()
    clean = encode_pictures(codec, truth)
    sheet = opened(configured(tmp_path), codec).run(Oracle(clean), 4)
    assert sheet == tmp_path / "run" / "validation" / "step-0000004.png"
    facts = numbers(sheet)
    assert (facts["step"], facts["bucket"], len(facts["captions"])) == (4, "48x48x9", 2)
    assert list(facts["loss_by_sigma"]) == [str(sigma) for sigma in SIGMAS]
    assert facts["loss"] == pytest.approx(0, abs=1e-9)
    # what the codec keeps is the best that can be made
    best = ((decode_latents(codec, clean) - truth) / 2)[:, :, 1:-1].square()
    expected = -10 * best.mean(dim=(1, 3, 4)).log10().mean(1)
    assert facts["inner_psnr_by_clip"] == pytest.approx(expected.tolist(), abs=0.01)
    assert facts["inner_psnr"] == pytest.approx(float(expected.mean()), abs=0.01)


def test_the_sheet_shows_the_truth_above_the_model(tmp_path: Path, codec: LinearVideoCodec) -> None:
    truth = heldout_videos()
    sheet = opened(configured(tmp_path), codec).run(Oracle(encode_pictures(codec, truth)), 2)
    picture = np.asarray(Image.open(sheet))
    gap, side = 4, 48
    columns, rows = (
        (picture.shape[1] - gap) // (side + gap),
        (picture.shape[0] - gap) // (side + gap),
    )
    assert (columns, rows) == (8, 4)
    expected = (truth.add(1).mul(127.5)).round().byte()
    for clip in (0, 1):
        top = gap + 2 * clip * (side + gap)
        for left, frame in ((gap, 0), (gap + 7 * (side + gap), -1)):
            tile = picture[top : top + side, left : left + side]
            assert np.array_equal(tile, expected[clip, :, frame].permute(1, 2, 0).numpy())


def test_equal_models_get_equal_numbers_and_others_do_not(
    tmp_path: Path, codec: LinearVideoCodec
) -> None:
    clean = encode_pictures(codec, heldout_videos())
    config = configured(tmp_path)
    validation = opened(config, codec)
    one, same = (numbers(validation.run(Oracle(clean + 0.1), step)) for step in (2, 4))
    again = numbers(opened(config, codec).run(Oracle(clean + 0.1), 2))
    worse = numbers(validation.run(Oracle(clean + 0.5), 6))
    assert one == same | {"step": 2} == again
    assert worse["loss"] > 5 * one["loss"]
    assert worse["inner_psnr"] < one["inner_psnr"]


def test_the_loss_is_the_squared_error_of_the_velocity(
    tmp_path: Path, codec: LinearVideoCodec
) -> None:
    """An estimate of the clean latents that is off by 0.3 is off by 0.3 / sigma in velocity."""
    clean = encode_pictures(codec, heldout_videos())
    facts = numbers(opened(configured(tmp_path), codec).run(Oracle(clean + 0.3), 2))
    expected = {str(sigma): (0.3 / sigma) ** 2 for sigma in SIGMAS}
    assert facts["loss_by_sigma"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("part", ["transformer", "refiner"])
def test_neither_mode_nor_randomness_nor_weights_change(
    tmp_path: Path, codec: LinearVideoCodec, part: str
) -> None:
    config = configured(tmp_path, part=part)
    model = make_part(config, codec).model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    opened(config, codec).run(model, 2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert codec.refiner is None
    assert {p.grad for p in model.parameters()} == {None}


def test_every_process_computes_the_same_and_one_writes(
    tmp_path: Path, codec: LinearVideoCodec
) -> None:
    clean = encode_pictures(codec, heldout_videos())
    batches = []
    for is_main in (False, True):
        model = Oracle(clean)
        validation = opened(configured(tmp_path), codec, is_main_process=is_main)
        sheet = validation.run(model, 2)
        assert sheet.exists() == sheet.with_suffix(".json").exists() == is_main
        assert validation._accelerator.waits == 1
        batches.append(model.batches)
    assert batches[0] == batches[1]
    assert sorted(path.name for path in sheet.parent.iterdir()) == [
        "step-0000002.json",
        "step-0000002.png",
    ]


def test_no_more_clips_at_a_time_than_in_training(tmp_path: Path, codec: LinearVideoCodec) -> None:
    clean = encode_pictures(codec, heldout_videos(4))[:3]
    model = Oracle(clean)
    opened(configured(tmp_path, validation_clips=4), codec).run(model, 2)
    assert set(model.batches) == {BUCKET.batch_size, 1} == {3, 1}


def test_numbers_that_are_not_finite_are_null(tmp_path: Path, codec: LinearVideoCodec) -> None:
    clean = encode_pictures(codec, heldout_videos())
    facts = numbers(opened(configured(tmp_path), codec).run(Oracle(clean * torch.nan), 2))
    assert facts["loss"] is facts["inner_psnr"] is None


class PassThrough(nn.Module):
    """A refiner that changes nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 1, 1)  # decides the dtype of the inputs
        self.given: list[tuple[Any, ...]] = []

    def motion_between(self, pictures: Tensor, present: Tensor, text: Tensor) -> Motion:
        assert present.all()
        assert text.any()
        return still(pictures)

    def cuts_asked_for(self, text: Tensor) -> Tensor:
        return torch.full((len(text),), -1)

    def forward(self, coarse: Tensor, *given: Any) -> tuple[Tensor, None]:
        self.given.append(given)
        return coarse, None


def test_the_refiner_decodes_disturbed_latents(tmp_path: Path, codec: LinearVideoCodec) -> None:
    refiner = PassThrough()
    facts = numbers(opened(configured(tmp_path, part="refiner"), codec).run(refiner, 2))
    truth = heldout_videos()
    undisturbed = decode_latents(codec, encode_pictures(codec, truth))
    losses = list(facts["loss_by_sigma"].values())
    assert losses[0] == pytest.approx(float((undisturbed - truth).abs().mean()), rel=0.01)
    assert losses[-1] > losses[0]
    ends = truth[:1, :, [0, -1]].transpose(1, 2)  # of the first clip, beside its first chunk
    pictures, _, offsets, present, _, draft = refiner.given[0]
    assert torch.equal(pictures[:1], ends)
    # it begins with the first one; the last one counts for nearly nothing
    torch.testing.assert_close(draft[:1, 0, -1], ends[:, 0], atol=2e-3, rtol=0)
    assert offsets[0, 0].tolist() == [0, 8]
    assert present.all()


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (5, [5]), (9, [5]), (None, [])])
def test_it_is_due_every_few_steps_and_at_the_end(
    tmp_path: Path, codec: LinearVideoCodec, every: int | None, steps: list[int]
) -> None:
    validation = opened(configured(tmp_path, validation_steps=every, max_steps=5), codec)
    assert [step for step in range(1, 6) if validation.due(step)] == steps
