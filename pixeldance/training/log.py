"""What a run tells about itself: a JSON line every few steps, TensorBoard, and the screen.

Sums stay on the device between lines: nothing waits for it. For a line, one small tensor of every
rank is gathered, so all ranks must record the same steps.
"""

import json
import logging
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from pixeldance.errors import ConfigError
from pixeldance.training.config import BucketConfig, TrainConfig
from pixeldance.training.flops import clip_tokens, peak_flops, training_flops
from pixeldance.video.files import new_files

__all__ = ["LOG_NAME", "RunLog", "StepRecord", "bucket_name"]

LOG_NAME = "log.jsonl"
NUM_BINS = 4
SLOW_RATIO = 1.2
SLOW_LINES = 3

_HOST_VALUES = ("wait_s", "compute_s", "checkpoint_s", "peak_flops", "peak_memory")

logger = logging.getLogger(__name__)


class StepRecord(NamedTuple):
    """One step, as one rank saw it."""

    step: int
    """From 1, after the update."""
    bucket: BucketConfig
    """Clip shape; its batch size is that of all ranks together."""
    losses: Tensor
    """Of each sample of this rank, float32 without a gradient; may be empty."""
    sigmas: Tensor | None
    """Noise level of each sample in [0, 1]; None for a part that has none."""
    gradient_norm: float | Tensor
    """Before clipping, of all ranks together."""
    learning_rate: float
    """Of this step."""
    wait_s: float
    """Seconds that this rank waited for data."""
    compute_s: float
    """Seconds that this rank computed before it met the others to exchange gradients."""
    checkpoint_s: float
    """Seconds that saving held this rank up."""
    skipped: bool = False
    """Whether the update was left out since the gradients were not finite."""


def bucket_name(bucket: BucketConfig) -> str:
    """Name of a clip shape in logs: width, height and number of frames."""
    return f"{bucket.width}x{bucket.height}x{bucket.num_frames}"


@dataclass
class _Window:
    """What has happened since the last line.

    Attributes:
        losses: Sums and counts, ``2 rows``: by bucket, then by noise level, then of gradient norms.
        since: Clock at its start.
        steps: Steps recorded.
        clips: Of all ranks.
        tokens: Of all ranks.
        flops: Of all ranks.
        skipped: Steps without an update.
        wait_s: Seconds, of this rank.
        compute_s: Seconds, of this rank.
        checkpoint_s: Seconds, of this rank.
    """

    losses: Tensor
    since: float
    steps: int = 0
    clips: int = 0
    tokens: int = 0
    flops: int = 0
    skipped: int = 0
    wait_s: float = 0.0
    compute_s: float = 0.0
    checkpoint_s: float = 0.0


class RunLog:
    """Collects the steps of a run; the main process writes ``log.jsonl``.

    A run that starts at ``start_step`` goes on in the same file. Lines of later steps, left by a
    run that was killed after its last checkpoint, are taken out first.

    Args:
        output_dir: Folder of the run; it is made if missing.
        config: The run.
        accelerator: The ranks and their devices.
        start_step: Steps that the checkpoint holds; 0 for a new run.

    Raises:
        ConfigError: If ``config.tensorboard`` is set and the package is missing.
    """

    def __init__(
        self,
        output_dir: Path,
        config: TrainConfig,
        *,
        accelerator: Accelerator,
        start_step: int = 0,
    ) -> None:
        self.path = output_dir / LOG_NAME
        self.config, self._accelerator = config, accelerator
        self._names = list(dict.fromkeys(map(bucket_name, config.buckets)))
        self._work = {
            bucket_name(b): (clip_tokens(config, b), training_flops(config, b))
            for b in config.buckets
        }
        self._window = self._new_window()
        self._slow: list[int] = []  # the slowest rank of the last lines, while it is too slow
        self._board: Any = None
        self._bar: Any = None
        writer = _board_writer() if config.tensorboard else None  # missing: all ranks must know
        if not accelerator.is_main_process:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self.path, start_step)
        if writer is not None:
            self._board = writer(str(output_dir / "tensorboard"), purge_step=start_step + 1)
        if sys.stderr.isatty():
            self._bar = _progress_bar(start_step, config.max_steps)

    def record(self, record: StepRecord) -> None:
        """Take a step into account; after every ``log_steps``-th and the last, write a line.

        Args:
            record: The step; every rank must record it.
        """
        self._add(record)
        if self._bar is not None:
            self._bar.update(1)
        if record.step % self.config.log_steps and record.step != self.config.max_steps:
            return
        by_rank = self._gathered()
        row = self._row(record, by_rank)
        self._window = self._new_window()
        self._warn_of_slow_rank(row)
        if self._accelerator.is_main_process:
            self._write(row)

    def close(self) -> None:
        """Finish the progress bar and TensorBoard's file; steps since the last line are lost."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def _new_window(self) -> _Window:
        device = self._accelerator.device
        # sums of many numbers; only Apple's GPUs have no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        rows = len(self._names) + NUM_BINS + 1
        return _Window(torch.zeros(2, rows, dtype=dtype, device=device), time.monotonic())

    def _add(self, record: StepRecord) -> None:
        window, name = self._window, bucket_name(record.bucket)
        tokens, flops = self._work[name]
        window.steps += 1
        window.clips += record.bucket.batch_size
        window.tokens += record.bucket.batch_size * tokens
        window.flops += record.bucket.batch_size * flops
        window.wait_s += record.wait_s
        window.compute_s += record.compute_s
        window.checkpoint_s += record.checkpoint_s
        if record.skipped:  # its loss and gradients are not numbers
            window.skipped += 1
            return
        sums, counts = window.losses
        losses = record.losses.detach().to(sums)
        row = self._names.index(name)
        sums[row] += losses.sum()
        counts[row] += losses.numel()
        if record.sigmas is not None:
            level = (record.sigmas.to(sums) * NUM_BINS).long().clamp(0, NUM_BINS - 1)
            level = level + len(self._names)
            sums.index_add_(0, level, losses)
            counts.index_add_(0, level, torch.ones_like(losses))
        sums[-1] += record.gradient_norm
        counts[-1] += 1

    def _gathered(self) -> Tensor:
        """One row for each rank: sums, counts, then ``_HOST_VALUES``; on the CPU."""
        window, device = self._window, self._accelerator.device
        memory = 0
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        peak = self.config.peak_tflops
        peak = (peak_flops(device) or 0.0) if peak is None else peak * 1e12
        host = [window.wait_s, window.compute_s, window.checkpoint_s, peak, float(memory)]
        mine = torch.cat([window.losses.flatten(), window.losses.new_tensor(host)])
        everyone: Tensor = self._accelerator.gather(mine[None])
        return everyone.cpu().double()

    def _row(self, record: StepRecord, by_rank: Tensor) -> dict[str, Any]:
        window, buckets = self._window, len(self._names)
        elapsed = max(time.monotonic() - window.since, 1e-9)
        cut = len(_HOST_VALUES)
        sums, counts = by_rank[:, :-cut].sum(0).view(2, -1).tolist()
        host = dict(zip(_HOST_VALUES, by_rank[:, -cut:].T.tolist(), strict=True))
        per_second = window.flops / elapsed
        peak = sum(host["peak_flops"]) if all(host["peak_flops"]) else None
        bins = zip(range(NUM_BINS), sums[buckets:-1], counts[buckets:-1], strict=True)
        steps_left = self.config.max_steps - record.step
        return {
            "step": record.step,
            "loss": _mean(sum(sums[:buckets]), sum(counts[:buckets])),
            "loss_by_sigma": {
                f"{i / NUM_BINS:g}-{(i + 1) / NUM_BINS:g}": {
                    "loss": _mean(total, count),
                    "count": int(count),
                }
                for i, total, count in bins
            },
            "loss_by_bucket": {
                name: _mean(total, count)
                for name, total, count in zip(self._names, sums, counts, strict=False)
                if count
            },
            "gradient_norm": _mean(sums[-1], counts[-1]),
            "learning_rate": record.learning_rate,
            "clips": window.clips,
            "clips_per_s": window.clips / elapsed,
            "tokens_per_s": window.tokens / elapsed,
            "tflops_per_s": per_second / 1e12,
            "mfu": None if peak is None else per_second / peak,
            "wait_share": max(host["wait_s"]) / elapsed,
            "checkpoint_s": max(host["checkpoint_s"]),
            "skipped_steps": window.skipped,
            "compute_s": host["compute_s"],
            "slowest_rank": _slowest(host["compute_s"]),
            "peak_memory_gib": max(host["peak_memory"]) / 2**30 or None,
            "remaining_s": elapsed / window.steps * steps_left,
        }

    def _warn_of_slow_rank(self, row: dict[str, Any]) -> None:
        slowest = row["slowest_rank"]
        if slowest["ratio"] <= SLOW_RATIO:
            self._slow = []
            return
        rank = slowest["rank"]
        self._slow = [*self._slow, rank] if set(self._slow) <= {rank} else [rank]
        if len(self._slow) == SLOW_LINES and self._accelerator.is_main_process:
            self._warn(
                f"rank {rank} takes {slowest['ratio']:.2f} times as long as the median rank for "
                f"{SLOW_LINES} log lines in a row: every step waits for it. Look at its machine."
            )

    def _warn(self, message: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        logger.warning(message)

    def _write(self, row: dict[str, Any]) -> None:
        if row["loss"] is None and row["clips"] and not row["skipped_steps"]:
            self._warn(f"the loss up to step {row['step']} is not a finite number.")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in _flat(row):
                self._board.add_scalar(name, value, row["step"])
        summary = _summary(row)
        if self._bar is not None:
            self._bar.set_postfix_str(summary)
        else:
            logger.info(
                "step %d/%d  %s  %.0f s left",
                row["step"],
                self.config.max_steps,
                summary,
                row["remaining_s"],
            )


def _mean(total: float, count: float) -> float | None:
    """A mean that JSON can hold: None for no or not finite numbers."""
    return total / count if count and math.isfinite(total) else None


def _slowest(seconds: list[float]) -> dict[str, float]:
    """The rank that computes longest, and how much longer than the (lower) median."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    median = statistics.median_low(seconds)
    return {"rank": slowest, "ratio": seconds[slowest] / median if median else 1.0}


def _summary(row: dict[str, Any]) -> str:
    def shown(name: str, pattern: str) -> str:
        return "-" if row[name] is None else format(row[name], pattern)

    parts = [
        f"loss {shown('loss', '.4f')}",
        f"norm {shown('gradient_norm', '.2f')}",
        f"rate {row['learning_rate']:.2e}",
        f"{row['clips_per_s']:.1f} clips/s",
    ]
    if row["mfu"] is not None:
        parts.append(f"MFU {row['mfu']:.0%}")
    return "  ".join([*parts, f"wait {row['wait_share']:.0%}"])


def _flat(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """All numbers of a line but the step, nested names joined by slashes."""
    found = []
    for name, value in row.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            found += [(f"{prefix}{name}/{i}", one) for i, one in enumerate(value)]
        elif value is not None and name != "step":
            found.append((f"{prefix}{name}", value))
    return found


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to a step; what a killed process left half written goes too."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with new_files(path, overwrite=True) as (temporary,):
            temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """Step of a line; infinite if it is not whole."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard: true needs a package that is missing. "
            "Install it (pip install tensorboard) or leave the option out."
        ) from error
    return SummaryWriter


def _progress_bar(start: int, total: int) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(initial=start, total=total, unit="step", dynamic_ncols=True)
