"""The training loop on accelerate: one process or several, resumable, averaged weights."""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixeldance.errors import CheckpointError
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.training.config import OptimizerConfig, TrainConfig
from pixeldance.training.data import training_batches
from pixeldance.training.parts import Part, make_part

logger = logging.getLogger(__name__)


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Linear warm-up, a constant part, then a linear fall to zero at ``max_steps``."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(config.decay_fraction * max_steps))
    return config.learning_rate * warmup * min(1.0, (max_steps - step) / decay_steps)


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    References:
        Jordan et al. 2024, Muon, https://kellerjordan.github.io/posts/muon
        Liu et al. 2025, "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982
        (the scaling to AdamW's update size)
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = "blocks." in name and parameter.ndim == 2
        (matrices if inside and config.use_muon else others).append(parameter)
    decayed = [p for p in others if p.ndim >= 2]
    plain = [p for p in others if p.ndim < 2]
    rate = config.learning_rate
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def train(config: TrainConfig) -> Path:
    """Train to ``config.max_steps``, resuming from the newest checkpoint in ``config.output_dir``.

    Args:
        config: The run.

    Returns:
        Folder of the exported part (averaged weights), in diffusers' layout.

    Raises:
        CheckpointError: If a checkpoint exists but does not fit the config.
    """
    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16", cpu=on_cpu)
    torch.manual_seed(config.seed)
    codec = LinearVideoCodec.from_pretrained(config.codec)
    part = make_part(config, codec)
    optimizers = make_optimizers(part.model, config.optimizer)
    model = accelerator.prepare_model(part.model)
    ema = {name: value.detach().clone().float() for name, value in part.model.state_dict().items()}
    output = Path(config.output_dir)
    start = _resume(output, part.model, optimizers, ema)
    if config.compile_blocks and hasattr(part.model, "compile_repeated_blocks"):
        cast("Any", part.model).compile_repeated_blocks()
    loader = training_batches(
        config,
        codec,
        start=start,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    log = _Log(output, config, accelerator.is_main_process)
    saved = time.monotonic()
    model.train()
    for step, batch in enumerate(_on_device(loader, accelerator), start):
        rate = learning_rate(config.optimizer, step, config.max_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with accelerator.autocast():
            loss = part.loss(model, batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _average(ema, part.model, min(config.optimizer.ema_decay, (1 + step) / (10 + step)))
        log.step(step, float(loss.detach()), float(norm), rate, len(batch["sample_ids"]))
        due = time.monotonic() - saved > 60 * config.checkpoint_minutes
        if (due or step + 1 == config.max_steps) and accelerator.is_main_process:
            _save(output, step + 1, config, part.model, optimizers, ema)
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    exported = output / "export"
    if accelerator.is_main_process:
        export(part, ema, exported)
    return exported


def export(part: Part, ema: dict[str, Tensor], folder: Path) -> None:
    """Write averaged weights in diffusers' layout."""
    state = part.model.state_dict()
    part.export({name: ema[name].to(value.dtype) for name, value in state.items()}, folder)


def _on_device(loader: Any, accelerator: Accelerator) -> Iterator[dict[str, Tensor]]:
    for batch in loader:
        yield {name: value.to(accelerator.device) for name, value in batch.items()}


@torch.no_grad()
def _average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    current = model.state_dict()
    names = [name for name in ema if ema[name].is_floating_point()]
    torch._foreach_lerp_(
        [ema[name] for name in names], [current[name].float() for name in names], 1 - decay
    )


def _save(
    output: Path,
    step: int,
    config: TrainConfig,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: dict[str, Tensor],
) -> None:
    """Write a checkpoint into a temporary folder and rename it: it is whole or not there."""
    folder = output / f"step-{step:07d}"
    scratch = folder.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, scratch / "model.safetensors"
    )
    save_file({k: v.contiguous() for k, v in ema.items()}, scratch / "ema.safetensors")
    torch.save([optimizer.state_dict() for optimizer in optimizers], scratch / "optimizers.pt")
    (scratch / "step.json").write_text(json.dumps({"step": step, "part": config.part}))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    for old in _checkpoints(output)[: -config.keep_checkpoints]:
        shutil.rmtree(old)


def _checkpoints(output: Path) -> list[Path]:
    return sorted(p for p in output.glob("step-*") if p.suffix != ".tmp")


def _resume(
    output: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: dict[str, Tensor],
) -> int:
    found = _checkpoints(output)
    if not found:
        return 0
    folder = found[-1]
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        for name, value in load_file(folder / "ema.safetensors").items():
            ema[name].copy_(value)
        states = torch.load(folder / "optimizers.pt", weights_only=True)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, OSError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(
            f"{folder} does not fit this config ({str(error).splitlines()[0]}). "
            "Use another output_dir, or delete the folder."
        ) from error
    step: int = json.loads((folder / "step.json").read_text())["step"]
    logger.info("resuming from step %d", step)
    return step


class _Log:
    """Means over a few steps, to the console and to ``log.jsonl``."""

    def __init__(self, output: Path, config: TrainConfig, active: bool) -> None:
        self.every, self.max_steps, self.active = config.log_steps, config.max_steps, active
        self.path = output / "log.jsonl"
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.clips = 0
        self.since = time.monotonic()
        output.mkdir(parents=True, exist_ok=True)

    def step(self, step: int, loss: float, norm: float, rate: float, clips: int) -> None:
        """Record one step; write a line every ``log_steps``."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.clips += clips
        if (step + 1) % self.every and step + 1 != self.max_steps:
            return
        elapsed = time.monotonic() - self.since
        row = {
            "step": step + 1,
            "loss": sum(self.losses) / len(self.losses),
            "gradient_norm": sum(self.norms) / len(self.norms),
            "learning_rate": rate,
            "clips_per_s": self.clips / elapsed,
            "remaining_s": elapsed / len(self.losses) * (self.max_steps - step - 1),
        }
        if not math.isfinite(row["loss"]):
            logger.warning("the loss is %s at step %d", row["loss"], step + 1)
        if self.active:
            with self.path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            logger.info(
                "step %(step)d  loss %(loss).4f  norm %(gradient_norm).2f  "
                "rate %(learning_rate).2e  %(clips_per_s).1f clips/s  %(remaining_s).0f s left",
                row,
            )
        self.losses, self.norms, self.clips, self.since = [], [], 0, time.monotonic()
