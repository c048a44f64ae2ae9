"""The training loop: one process or several, resumable to the bit, saved while it goes on.

A step is a pure function of the weights, the config and its number: the batch, the noise and every
other random choice come from the ids of the samples, the learning rate from the step. Resuming
therefore needs the number of the step and no random state, and a run may go on with another number
of processes: they only divide the same batches. The loss of a process is the sum over its samples,
times the number of processes, over the size of the batch, so that averaging gradients over
processes gives the exact mean over the batch even where it divides unevenly.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pixeldance.errors import PixelDanceError
from pixeldance.models.codec import LinearVideoCodec
from pixeldance.training.checkpoint import Checkpoints, Tensors
from pixeldance.training.config import TrainConfig
from pixeldance.training.data import (
    StepPlan,
    micro_steps,
    plan_step,
    split_batch,
    training_batches,
)
from pixeldance.training.distributed import Processes, clip_gradients, start_processes
from pixeldance.training.ema import AveragedWeights
from pixeldance.training.export import export_weights
from pixeldance.training.log import RunLog, StepRecord
from pixeldance.training.optim import (
    allocate_state,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    state_of,
)
from pixeldance.training.part import PartLoss
from pixeldance.training.parts import codec_fingerprint, make_part
from pixeldance.training.validation import Validation

__all__ = ["EXIT_STOPPED", "DivergedError", "TrainingStopped", "train"]

logger = logging.getLogger(__name__)

EXIT_STOPPED = 128 + signal.SIGTERM
"""Exit code of a run that was told to stop and has saved its state."""

_MAX_BAD_STEPS = 10


class TrainingStopped(PixelDanceError):  # noqa: N818 - an outcome, not a failure
    """A run was told to stop (SIGTERM); its state is saved and the same command goes on."""


class DivergedError(PixelDanceError):
    """The loss or its gradient was not finite in many steps in a row."""


def train(config: TrainConfig) -> Path:
    """Train to ``config.max_steps``, resuming from the newest checkpoint in ``config.output_dir``.

    Args:
        config: The run.

    Returns:
        Folder of the exported part (averaged weights), in diffusers' layout.

    Raises:
        CheckpointError: If a checkpoint exists but is damaged or contradicts the config, or if
            one cannot be written.
        ConfigError: If the processes of the run did not find each other.
        DivergedError: If the loss was not finite in ten steps in a row.
        TrainingStopped: If the process was told to stop; the state is saved.
    """
    processes = start_processes(config.mixed_precision)
    with _stop_requests() as stop:
        return _Run(config, processes, stop).to_the_end()


class _Computed(NamedTuple):
    """What the backward passes of a step leave beside the gradients."""

    losses: Tensor
    sigmas: Tensor | None
    seconds: float


class _Run:
    """A run in progress."""

    def __init__(self, config: TrainConfig, processes: Processes, stop: threading.Event) -> None:
        self.config, self.processes, self.stop = config, processes, stop
        self.output = Path(config.output_dir)
        torch.manual_seed(config.seed)
        self.codec = LinearVideoCodec.from_pretrained(config.codec)
        self.part = make_part(config, self.codec)
        fingerprint = {
            "part": config.part,
            "use_muon": config.optimizer.use_muon,
            "codec": codec_fingerprint(self.codec),
            **self.part.fingerprint(),
        }
        if config.gradient_checkpointing:
            cast("Any", self.part.model).enable_gradient_checkpointing()
        if config.compile_blocks and hasattr(self.part.model, "compile_repeated_blocks"):
            # before sharding, which gives the blocks another class
            cast("Any", self.part.model).compile_repeated_blocks()
        self.part.to(processes.device)
        self.model = processes.prepare(self.part.model, config.strategy)
        self.optimizers = make_optimizers(self.part.model, config.optimizer)
        self.average = AveragedWeights(self.part.model)
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.checkpoints = Checkpoints(
            self.output, keep=config.keep_checkpoints, fingerprint=fingerprint, processes=processes
        )
        self.start = self._resume()
        self.validation = (
            None
            if config.validation_steps is None
            else Validation(config, self.codec, processes.accelerator)
        )
        self.saved_at = time.monotonic()

    def to_the_end(self) -> Path:
        """Train, save, export."""
        log = RunLog(
            self.output,
            self.config,
            accelerator=self.processes.accelerator,
            start_step=self.start,
        )
        try:
            self.model.train()
            for step, batch, wait_s in self._batches():
                self._step(step, batch, wait_s, log)
            self._save(max(self.start, self.config.max_steps))
            self.checkpoints.finish()
        except BaseException:
            self.checkpoints.abandon()
            raise
        finally:
            log.close()
        exported = self.output / "export"
        export_weights(self.part, self.average.values, exported, self.processes)
        return exported

    def _batches(self) -> Iterator[tuple[int, dict[str, Tensor], float]]:
        """Step, this process' share of its batch, and the seconds that were waited for it."""
        loader = iter(
            training_batches(
                self.config,
                self.codec,
                start=self.start,
                rank=self.processes.rank,
                world_size=self.processes.count,
            )
        )
        for step in range(self.start, self.config.max_steps):
            since = time.perf_counter()
            batch = {
                name: value.to(self.processes.device, non_blocking=True)
                for name, value in next(loader).items()
            }
            yield step, batch, time.perf_counter() - since

    def _step(self, step: int, batch: dict[str, Tensor], wait_s: float, log: RunLog) -> None:
        plan = plan_step(self.config, step)
        rate = learning_rate(self.config.optimizer, step, self.config.max_steps)
        set_learning_rate(self.optimizers, rate)
        computed = self._gradients(plan, batch)
        norm = clip_gradients(self.model, self.config.optimizer.max_grad_norm)
        is_finite = bool(computed.losses.isfinite().all()) and norm < float("inf")
        is_bad, must_stop, must_save = self.processes.any(
            not is_finite, self.stop.is_set(), self._is_checkpoint_due(step + 1)
        )
        self._count(step, is_bad=is_bad)
        for optimizer in self.optimizers:
            if not is_bad:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not is_bad:
            self.average.update(min(self.config.optimizer.ema_decay, (1 + step) / (10 + step)))
        since = time.perf_counter()
        self.checkpoints.poll()
        if must_save or must_stop:
            self._save(step + 1)
        log.record(
            StepRecord(
                step=step + 1,
                bucket=plan.bucket,
                losses=computed.losses,
                sigmas=computed.sigmas,
                gradient_norm=norm,
                learning_rate=rate,
                wait_s=wait_s,
                compute_s=computed.seconds,
                checkpoint_s=time.perf_counter() - since,
                skipped=is_bad,
            )
        )
        if must_stop:
            self.checkpoints.finish()
            raise TrainingStopped(
                f"Stopped after step {step + 1}; its state is saved in {self.output}. "
                "The same command goes on from there."
            )
        self._validate(step + 1)

    def _gradients(self, plan: StepPlan, batch: dict[str, Tensor]) -> _Computed:
        """Leave the mean gradient of the whole batch in the parameters."""
        parts = split_batch(
            batch,
            micro_steps(plan, self.config.gradient_accumulation_steps, self.processes.count),
        )
        timer = _Timer(self.processes.device)
        results = []
        for number, rows in enumerate(parts, 1):
            is_last = number == len(parts)
            with self.processes.micro_step(self.model, is_last=is_last):
                with self.processes.accelerator.autocast():
                    result = self.part.loss(self.model, rows)
                total = (result.losses * rows["weight"]).sum()
                if is_last:
                    timer.stop()
                (total * (self.processes.count / len(plan.sample_ids))).backward()
            results.append(PartLoss(result.losses.detach(), result.sigmas))
        counted = batch["weight"] > 0  # the others stand in for a share that is empty
        losses = torch.cat([result.losses for result in results])[: len(counted)]
        sigmas = [result.sigmas for result in results if result.sigmas is not None]
        return _Computed(
            losses[counted],
            torch.cat(sigmas)[: len(counted)][counted] if sigmas else None,
            timer.seconds(),
        )

    def _count(self, step: int, *, is_bad: bool) -> None:
        """Keep count of the steps that are left out because they would spoil the weights."""
        self.skipped += is_bad
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_bad else 0
        if is_bad and self.processes.is_main:
            logger.warning(
                "step %d is skipped: its loss or gradient is not finite (%d skipped so far)",
                step + 1,
                self.skipped,
            )
        if self.skipped_in_a_row >= _MAX_BAD_STEPS:
            raise DivergedError(
                f"The loss or its gradient was not finite in steps {step + 2 - _MAX_BAD_STEPS} to "
                f"{step + 1}. Lower optimizer.learning_rate and start again: the run resumes from "
                "its newest checkpoint."
            )

    def _validate(self, step: int) -> None:
        if self.validation is not None and self.validation.due(step):
            with self.average.swapped_in():
                self.validation.run(self.model, step)

    # ---- checkpoints

    def _is_checkpoint_due(self, step: int) -> bool:
        every, minutes = self.config.checkpoint_steps, self.config.checkpoint_minutes
        is_time = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        return is_time or (every is not None and step % every == 0)

    def _tensors(self) -> Tensors:
        """All tensors of a checkpoint, sharing their memory."""
        weights = {name: p.detach() for name, p in self.part.model.named_parameters()}
        state = state_of(self.part.model, self.optimizers)
        return {"model": weights, "ema": self.average.values, "optimizer": state}

    def _save(self, step: int) -> None:
        facts = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        self.checkpoints.save(step, self._tensors(), facts)
        self.saved_at = time.monotonic()

    def _resume(self) -> int:
        """Load the newest checkpoint; returns the steps done."""
        found = self.checkpoints.newest()
        if found is None:
            return 0
        allocate_state(self.part.model, self.optimizers, found.sizes("optimizer"))
        found.load(self._tensors(), self.processes)
        self.skipped = found.facts["skipped"]
        self.skipped_in_a_row = found.facts["skipped_in_a_row"]
        if self.processes.is_main:
            logger.info("resuming from step %d", found.step)
        return found.step


class _Timer:
    """Seconds of computing since it was made; on a GPU measured by the GPU, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            if device.type == "cuda"
            else None
        )
        if self._events is not None:
            self._events[0].record()
        self._start = self._stop = time.perf_counter()

    def stop(self) -> None:
        """Take the time."""
        self._stop = time.perf_counter()
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float:
        """The time taken; waits for a GPU to get there."""
        if self._events is None:
            return self._stop - self._start
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process between two instructions."""
    stop = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
