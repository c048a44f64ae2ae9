"""The processes of a run: how they start, share a model and agree.

accelerate starts the processes, picks devices and gives autocast; DDP is its ``prepare_model``.
FSDP2 is torch's ``fully_shard``, called here on the transformer's blocks and on the whole:
accelerate would do the same on GPUs but ignores its FSDP plugin on CPUs, and so the very code that
runs on a cluster can be tested with two CPU processes. Autocast does the mixed precision under
both, on float32 weights, so that DDP and FSDP2 compute the same numbers.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pixeldance.errors import ConfigError

__all__ = ["BYTES_PER_PARAMETER", "Processes", "clip_gradients", "start_processes"]

T = TypeVar("T")

BYTES_PER_PARAMETER = 20
"""Float32 weight, gradient, two AdamW moments and the average, held by every process under DDP."""

_FROM_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_OWN_DISTRIBUTION = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Processes:
    """This process among those of the run.

    Args:
        accelerator: Device, rank and autocast.

    Attributes:
        accelerator: The same.
        group: Group of all processes for what stays on the CPU (checkpoints, agreement), or None
            if there is one process.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.group: dist.ProcessGroup | None = None
        if accelerator.num_processes > 1:
            self.group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    @property
    def rank(self) -> int:
        """Number of this process."""
        return cast("int", self.accelerator.process_index)

    @property
    def count(self) -> int:
        """Number of processes."""
        return cast("int", self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log and the marks of complete checkpoints."""
        return cast("bool", self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return cast("torch.device", self.accelerator.device)

    def prepare(self, model: nn.Module, strategy: Literal["auto", "ddp", "fsdp2"]) -> nn.Module:
        """Bring a model to the device and share it among the processes.

        Args:
            model: Equal on all processes. Under FSDP2 its parameters are replaced by shards, one
                block at a time, so a model larger than the device fits.
            strategy: ``auto`` shards if the weights and all that is kept for each of them would
                take more than half of the device's memory.

        Returns:
            The model to call; the one given keeps the parameters.
        """
        if self.count == 1:
            return model.to(self.device)
        if strategy == "auto":
            strategy = "fsdp2" if self._fills_device(model) else "ddp"
        if strategy == "ddp":
            return cast("nn.Module", self.accelerator.prepare_model(model))
        # The model returns a view; that matters only to who writes into it, which no loss does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        mesh = init_device_mesh(self.device.type, (self.count,))
        block_names = getattr(model, "_no_split_modules", None) or ()
        # The root's weights, too, are freed after forward: after a validation they would be stale.
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
        for module in list(model.modules()):
            if type(module).__name__ in block_names:
                fully_shard(module, **options)
        return cast("nn.Module", fully_shard(model, **options))

    def _fills_device(self, model: nn.Module) -> bool:
        if self.device.type != "cuda" or not getattr(model, "_no_split_modules", None):
            return False
        needed = BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
        return needed > 0.5 * torch.cuda.get_device_properties(self.device).total_memory

    @contextmanager
    def micro_step(self, model: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Forward and backward of a part of the batch; gradients are exchanged in the last one.

        Args:
            model: What :meth:`prepare` returned.
            is_last: Whether the optimizer steps after this part.

        Yields:
            None: Nothing.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(is_last)
        is_waiting = isinstance(model, nn.parallel.DistributedDataParallel) and not is_last
        with model.no_sync() if is_waiting else nullcontext():  # type: ignore[operator]
            yield

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether some process says so, for each of several questions; all get the same answers."""
        if self.group is None:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.group)
        return tuple(bool(vote) for vote in votes)

    def from_main(self, value: T) -> T:
        """The main process' value of something small, on all processes."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def wait(self) -> None:
        """Return once all processes are here."""
        if self.group is not None:
            dist.barrier(group=self.group)


def start_processes(mixed_precision: Literal["bf16", "no"]) -> Processes:
    """Join the other processes of a run.

    Args:
        mixed_precision: ``bf16`` for autocast, ``no`` for float32.

    Returns:
        This process among them; processes that accelerate or torchrun started find each other,
        over NCCL on GPUs and over gloo on CPUs.

    Raises:
        ConfigError: If they did not, or if accelerate was told to shard the model itself.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in _FROM_LAUNCHER if name not in os.environ]
    if expected > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE is {expected} but {', '.join(missing)} is not set. Start the processes "
            "with torchrun or accelerate launch, or unset WORLD_SIZE to train with one."
        )
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=not torch.cuda.is_available())
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"The launcher started {expected} processes but they found "
            f"{accelerator.num_processes}. Start them with torchrun or accelerate launch, "
            "with one process per GPU."
        )
    if accelerator.distributed_type not in _OWN_DISTRIBUTION:
        raise ConfigError(
            f"accelerate is configured for {accelerator.distributed_type.value}; use plain "
            "processes there and choose 'strategy: ddp' or 'fsdp2' in the training config."
        )
    return Processes(accelerator)


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients to at most ``max_norm``.

    Args:
        model: Its gradients are whole, or shards of which the norm is taken together.
        max_norm: Largest norm.

    Returns:
        The norm before, equal on all processes.
    """
    norm: Tensor = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
