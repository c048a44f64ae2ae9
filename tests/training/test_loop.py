"""Training: resuming changes nothing, checkpoints are whole, and the loss falls."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    BUCKETS,
    forget_accelerate,
    make_codec,
    make_config,
    saved_tensors,
    use_made_up_world,
)
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from pixeldance.errors import CheckpointError
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.training import __main__ as command
from pixeldance.training import loop
from pixeldance.training.config import ModelConfig, OptimizerConfig, RefinerConfig, TrainConfig
from pixeldance.training.data import training_batches
from pixeldance.training.loop import DivergedError, TrainingStopped, train
from pixeldance.training.optim import learning_rate, make_optimizers
from pixeldance.training.parts import TransformerPart, make_part
from pixeldance.training.validation import Validation

PARTS = ("transformer", "refiner", "motion")


@pytest.fixture(autouse=True)
def _made_up_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_made_up_world(monkeypatch)
    make_codec(tmp_path / "codec")
    forget_accelerate()


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupt the next run before it takes step ``steps``."""

    def interrupted(*arguments: Any, start: int, **options: Any) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(training_batches(*arguments, start=start, **options), start):
            if step == steps:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(loop, "training_batches", interrupted)


def interrupted_run(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, steps: int = 3) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def checkpoints(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in Path(config.output_dir).glob("step-*"))


def weights(config: TrainConfig, step: int, name: str) -> dict[str, Tensor]:
    return saved_tensors(config.output_dir, step, name)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def as_saved(tmp_path: Path, part: str, **changes: object) -> TrainConfig:
    """A run that writes a checkpoint after every step."""
    return make_config(tmp_path, part=part, checkpoint_minutes=0.0, **changes)


@pytest.mark.parametrize("part", PARTS)
def test_stopping_and_resuming_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    changes = {"max_steps": 4, "buckets": BUCKETS if part == "transformer" else BUCKETS[1:]}
    straight = make_config(tmp_path, part=part, output_dir=str(tmp_path / "straight"), **changes)
    train(straight)
    resumed = as_saved(tmp_path, part, output_dir=str(tmp_path / "resumed"), **changes)
    interrupted_run(monkeypatch, resumed, steps=2)
    assert checkpoints(resumed) == ["step-0000001", "step-0000002"]
    train(resumed)
    for name in ("model", "ema", "optimizer"):
        assert_equal(weights(straight, 4, name), weights(resumed, 4, name))
        before = weights(resumed, 3, name)
        assert any(not torch.equal(before[k], v) for k, v in weights(resumed, 4, name).items())


@pytest.mark.parametrize("part", PARTS)
def test_what_is_exported_can_be_loaded(tmp_path: Path, part: str) -> None:
    config = make_config(tmp_path, part=part, max_steps=2)
    folder = train(config)
    ema = weights(config, 2, "ema")
    if part == "transformer":
        model = PixelDanceTransformer3DModel.from_pretrained(folder)
        assert model.config.in_channels == 2 * 4 + 4
        expected = {name: value.bfloat16() for name, value in ema.items()}
        assert_equal({k: v.bfloat16() for k, v in model.state_dict().items()}, expected)
        return
    codec = LinearVideoCodec.from_pretrained(folder)
    given = LinearVideoCodec.from_pretrained(config.codec)
    assert codec.refiner is not None
    trained = codec.refiner if part == "refiner" else codec.refiner.aligner.motion
    assert_equal(trained.state_dict(), ema)
    # The projection decides what latents mean: training a part of the decoder must not touch it.
    assert torch.equal(codec.components, given.components)
    assert torch.equal(codec.patch_mean, given.patch_mean)
    assert codec.config.latents_std == given.config.latents_std


def test_a_finished_run_is_exported_again_and_not_trained(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=1)
    train(config)
    before = weights(config, 1, "model")
    assert train(config) == Path(config.output_dir) / "export"
    assert checkpoints(config) == ["step-0000001"]
    assert_equal(weights(config, 1, "model"), before)


def test_without_averaging_the_export_is_the_model(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=2, optimizer=OptimizerConfig(ema_decay=0.0))
    train(config)
    assert_equal(weights(config, 2, "model"), weights(config, 2, "ema"))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    config = as_saved(tmp_path, "transformer", max_steps=4, keep_checkpoints=3)
    train(config)
    assert checkpoints(config) == ["step-0000002", "step-0000003", "step-0000004"]


def test_an_interrupted_checkpoint_is_not_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = as_saved(tmp_path, "transformer", max_steps=3)
    interrupted_run(monkeypatch, config, steps=1)

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", fail)
        with pytest.raises(CheckpointError, match=r"step-0000002 could not be .*no space left"):
            train(config)
    assert checkpoints(config) == ["step-0000001", "step-0000002.tmp"]
    train(config)
    assert checkpoints(config) == ["step-0000002", "step-0000003"]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "model": ModelConfig(
                num_attention_heads=1, attention_head_dim=12, num_layers=1, text_dim=8
            )
        },
        {"optimizer": OptimizerConfig(use_muon=False)},
        {"part": "refiner"},
    ],
)
def test_a_checkpoint_of_another_config_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    train(make_config(tmp_path, max_steps=1))
    with pytest.raises(CheckpointError, match=r"step-0000001 does not fit .*another output_dir"):
        train(make_config(tmp_path, **({"max_steps": 2} | changes)))


def test_a_refiner_can_learn_from_what_a_transformer_makes(tmp_path: Path) -> None:
    estimates = train(make_config(tmp_path, max_steps=1))
    trained = []
    for name, transformer in (("alone", None), ("together", str(estimates))):
        refiner = RefinerConfig(
            channels=(8, 8, 8), groups_per_clip=1, transformer=transformer, estimated_share=1.0
        )
        config = make_config(
            tmp_path, part="refiner", refiner=refiner, output_dir=str(tmp_path / name), max_steps=2
        )
        train(config)
        trained.append(weights(config, 2, "model"))
    assert all(value.isfinite().all() for value in trained[1].values())
    assert any(not torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_training_starts_from_exported_weights(tmp_path: Path) -> None:
    first = make_config(tmp_path, max_steps=1)
    exported = train(first)
    second = make_config(tmp_path, initial=str(exported))
    part = make_part(second, LinearVideoCodec.from_pretrained(second.codec))
    expected = {k: v.bfloat16() for k, v in weights(first, 1, "ema").items()}
    assert_equal({k: v.bfloat16() for k, v in part.model.state_dict().items()}, expected)


def test_the_log_has_a_line_for_every_few_steps(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=5, log_steps=2)
    train(config)
    rows = [json.loads(r) for r in (Path(config.output_dir) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert all(0 < row["loss"] < 10 and row["clips_per_s"] > 0 for row in rows)
    assert rows[-1]["remaining_s"] == 0


@pytest.mark.parametrize(("before", "part"), [("reader", "motion"), ("motion", "refiner")])
def test_a_part_builds_on_the_one_before_it_and_leaves_that_alone(
    tmp_path: Path, before: str, part: str
) -> None:
    first = make_config(tmp_path, part=before, max_steps=1, output_dir=str(tmp_path / "first"))
    second = make_config(
        tmp_path,
        part=part,
        initial=str(train(first)),
        output_dir=str(tmp_path / "second"),
        max_steps=1,
    )
    codec = LinearVideoCodec.from_pretrained(train(second))
    assert codec.refiner is not None
    motion = codec.refiner.aligner.motion
    kept = motion if before == "motion" else motion.reader
    assert_equal(kept.state_dict(), weights(first, 1, "ema"))


@pytest.mark.parametrize(
    ("part", "rate"),
    [("transformer", 0.02), ("refiner", 0.005), ("motion", 0.003), ("reader", 0.003)],
)
def test_the_loss_of_one_batch_falls(tmp_path: Path, part: str, rate: float) -> None:
    config = make_config(tmp_path, part=part, buckets=BUCKETS[:1])
    codec = LinearVideoCodec.from_pretrained(config.codec)
    torch.manual_seed(0)
    trained = make_part(config, codec)
    batch = next(iter(training_batches(config, codec, start=0)))
    optimizers = make_optimizers(trained.model, OptimizerConfig(learning_rate=rate))
    losses = []
    for _ in range(30):
        loss = trained.loss(trained.model, batch).losses.mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] == pytest.approx(float(make_part_loss(config, codec, batch)), rel=1e-4)


def make_part_loss(
    config: TrainConfig, codec: LinearVideoCodec, batch: dict[str, Tensor]
) -> Tensor:
    """Loss of the first step once more: weights and noise come from seeds alone."""
    torch.manual_seed(0)
    part = make_part(config, codec)
    torch.rand(5)  # whatever else draws numbers
    return part.loss(part.model, batch).losses.detach().mean()


def test_an_untrained_transformer_predicts_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path, buckets=BUCKETS[:1])
    codec = LinearVideoCodec.from_pretrained(config.codec)
    part = TransformerPart(config)
    batch = next(iter(training_batches(config, codec, start=0)))
    # Then the loss is the mean square of noise - clean, two independent things.
    expected = 1 + float(batch["clean_latents"].square().mean())
    losses = part.loss(part.model, batch).losses.detach()
    assert float(losses.mean()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kind", ["transformer", "refiner", "refiner of estimates", "motion"])
def test_the_loss_of_a_clip_does_not_depend_on_its_batch(tmp_path: Path, kind: str) -> None:
    config = make_config(tmp_path, part=kind.split()[0], buckets=BUCKETS[:1])
    codec = LinearVideoCodec.from_pretrained(config.codec)
    if kind == "refiner of estimates":
        exported = tmp_path / "exported"
        disturbed(TransformerPart(make_config(tmp_path)).model).save_pretrained(exported)
        estimates = replace(config.refiner, transformer=str(exported), estimated_share=0.7)
        config = replace(config, refiner=estimates, mixed_precision="no")
    part = make_part(config, codec)
    disturbed(part.model)
    batch = next(iter(training_batches(config, codec, start=0)))
    with torch.no_grad():
        whole = part.loss(part.model, batch)
        rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
        alone = [part.loss(part.model, row) for row in rows]
    torch.testing.assert_close(
        whole.losses, torch.cat([row.losses for row in alone]), rtol=1e-3, atol=0
    )
    assert whole.losses.std() > 0
    assert (whole.sigmas is None) == (kind != "transformer")


def disturbed(model: Any) -> Any:
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        parameter.data.add_(0.1 * noise)
    return model


def one_step(tmp_path: Path, name: str, **changes: object) -> dict[str, Any]:
    """The log line of a step on three clips, in float32."""
    config = make_config(
        tmp_path,
        output_dir=str(tmp_path / name),
        max_steps=1,
        buckets=BUCKETS[:1],
        mixed_precision="no",
        **changes,
    )
    train(config)
    return log_rows(config)[0]


def log_rows(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (Path(config.output_dir) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 8},
        {"gradient_checkpointing": True},
    ],
)
def test_saving_memory_changes_neither_loss_nor_gradient(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    plain, saving = one_step(tmp_path, "plain"), one_step(tmp_path, "saving", **changes)
    assert plain["gradient_norm"] > 0
    for name in ("loss", "gradient_norm"):
        assert saving[name] == pytest.approx(plain[name], rel=1e-5)


def test_checkpoints_come_every_few_steps_and_at_the_end(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=5, checkpoint_steps=2, keep_checkpoints=9)
    train(config)
    assert checkpoints(config) == [f"step-000000{step}" for step in (2, 4, 5)]


def test_a_run_that_is_told_to_stop_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def signalled(*arguments: Any, **options: Any) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(training_batches(*arguments, **options)):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    config = make_config(tmp_path, checkpoint_minutes=None)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_batches", signalled)
        with pytest.raises(TrainingStopped, match=r"after step 3; its state is saved in .*run"):
            train(config)
    assert checkpoints(config) == ["step-0000003"]
    assert signal.getsignal(signal.SIGTERM) == before


def spoil(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Some batches hold a clip that is not a number."""

    def spoiled(*arguments: Any, **options: Any) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(training_batches(*arguments, **options)):
            if step in steps:
                batch["clean_latents"][0] = float("nan")
            yield batch

    monkeypatch.setattr(loop, "training_batches", spoiled)


def test_a_step_that_is_not_finite_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, range(1, 3))
    config = make_config(tmp_path, max_steps=4, keep_checkpoints=9, checkpoint_steps=1, log_steps=1)
    train(config)
    assert [row["skipped_steps"] for row in log_rows(config)] == [0, 1, 1, 0]
    for name in ("model", "ema", "optimizer"):
        assert_equal(weights(config, 1, name), weights(config, 3, name))
    last = weights(config, 4, "model")
    assert all(value.isfinite().all() for value in last.values())
    assert any(not torch.equal(last[k], v) for k, v in weights(config, 3, "model").items())
    assert "step 3 is skipped: its loss or gradient is not finite (2 skipped so far)" in caplog.text


def test_a_run_that_stays_not_finite_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, range(1, 20))
    with pytest.raises(DivergedError, match=r"not finite in steps 2 to 11\. Lower .*learning_rate"):
        train(make_config(tmp_path, max_steps=20, buckets=BUCKETS[1:]))


def test_clips_are_made_with_the_averaged_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path, max_steps=2, validation_steps=1, checkpoint_steps=1, keep_checkpoints=9
    )
    seen: list[dict[str, Tensor]] = []

    def looked_at(validation: Validation, model: torch.nn.Module, step: int) -> None:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    monkeypatch.setattr(Validation, "run", looked_at)
    train(config)
    for step in (1, 2):
        assert_equal(seen[step - 1], weights(config, step, "ema"))
    assert any(not torch.equal(seen[1][k], v) for k, v in weights(config, 2, "model").items())


def test_noise_levels_are_a_shifted_logit_normal(tmp_path: Path) -> None:
    ids = torch.arange(400)
    plain, shifted, constant = (
        TransformerPart(make_config(tmp_path, **options)).sigmas(ids)
        for options in ({"shift": 1.0}, {"shift": 3.0}, {"shift": 3.0, "logit_std": 0.0})
    )
    assert 0 < plain.min() < plain.max() < 1
    logits = plain.logit()
    assert float(logits.mean()) == pytest.approx(0, abs=0.2)
    assert float(logits.std()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    torch.testing.assert_close(constant, torch.full((400,), 0.75))
    assert torch.equal(
        TransformerPart(make_config(tmp_path, shift=1.0)).sigmas(ids[7:8]), plain[7:8]
    )


def test_the_rate_rises_stays_and_falls() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay_fraction=0.5)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9:12] == [2.0, 2.0, pytest.approx(1.8)]
    assert rates[-1] == pytest.approx(0.2)
    assert learning_rate(config, 20, 20) == 0


def test_without_warmup_and_decay_the_rate_is_constant() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=0, decay_fraction=0.0)
    assert [learning_rate(config, step, 3) for step in range(3)] == [2.0, 2.0, 2.0]


def test_every_weight_has_one_optimizer(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    model = make_part(config, LinearVideoCodec.from_pretrained(config.codec)).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers = make_optimizers(model, config.optimizer)
    held = [[names[id(p)] for g in o.param_groups for p in g["params"]] for o in optimizers]
    assert sorted(held[0] + held[1]) == sorted(names.values())
    assert isinstance(optimizers[1], torch.optim.Muon)
    assert all("blocks." in name for name in held[1])
    assert "blocks.0.attn1.to_q.weight" in held[1]
    assert "proj_out.weight" in held[0]
    assert len(make_optimizers(model, OptimizerConfig(use_muon=False))) == 1


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pixeldance.training", *arguments])
    return command.main()


def test_the_command_prints_where_the_result_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: runs/here")
    monkeypatch.setattr(loop, "train", lambda config: Path(config.output_dir) / "export")
    assert run_command(monkeypatch, str(path)) == 0
    assert capsys.readouterr().out == "runs/here/export\n"


def test_the_command_of_a_stopped_run_ends_with_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: TrainConfig) -> Path:
        raise TrainingStopped("Stopped after step 3.")

    path = tmp_path / "config.yaml"
    path.write_text("")
    monkeypatch.setattr(loop, "train", stopped)
    assert run_command(monkeypatch, str(path)) == 143
    assert capsys.readouterr().err == "Stopped after step 3.\n"


def test_the_command_reports_mistakes_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_step: 3")
    assert run_command(monkeypatch, str(path)) == 2
    assert capsys.readouterr().err == "error: Unknown key 'max_step'. Did you mean 'max_steps'?\n"
