"""The processes that make a clip together: how they start, and how they exchange tensors."""

import atexit
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pixeldance.errors import InputError
from pixeldance.parallel.heads import share_heads
from pixeldance.parallel.tokens import share_tokens

__all__ = ["MODES", "Parallelism", "check_processes", "start"]

MODES = ("context", "guidance", "tensor", "guidance+tensor")

_FROM_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, eq=False)
class Parallelism:
    """This process among those that make a clip together.

    Attributes:
        mode: One of ``MODES``.
        device: Where this process computes.
        mesh: The processes, ``guidance ring ulysses`` (branches x 1 x processes per branch), or
            ``guidance tensor`` where they share weights.
    """

    mode: str
    device: torch.device
    mesh: DeviceMesh

    def __str__(self) -> str:
        """The way and the number of processes."""
        return f"{self.mode}, {self.num_processes} processes"

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.mesh.get_rank()

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def num_branches(self) -> int:
        """2 if the guidance branches are computed at once, else 1."""
        return self.mesh.size(0)

    @property
    def branch(self) -> int:
        """0 if this process predicts with the prompt, 1 if with the negative prompt."""
        return self.mesh.get_local_rank("guidance")

    @property
    def degree(self) -> int:
        """Number of processes that share a branch."""
        return self.num_processes // self.num_branches

    @property
    def shares_weights(self) -> bool:
        """Whether the processes of a branch share out the heads, and not the tokens."""
        return self.mode.endswith("tensor")

    @property
    def weight_parts(self) -> int:
        """Number of processes among which the weights of a transformer are spread."""
        return self.degree if self.shares_weights else 1

    # ---- sharing a clip

    def apply(self, pipeline: DiffusionPipeline) -> None:
        """Let a pipeline make its clips together with those of the other processes.

        Where weights are shared out, do it before the pipeline is moved to a device, on which they
        may not fit as a whole.

        Args:
            pipeline: A ``PixelDancePipeline`` with the same weights in every process.

        Raises:
            InputError: If the attention heads cannot be shared out evenly.
        """
        for transformer in (pipeline.transformer, pipeline.transformer_2):
            if transformer is None:
                continue
            if self.shares_weights:
                share_heads(transformer, self.mesh["tensor"])
            else:
                share_tokens(
                    transformer,
                    self.mesh["ring", "ulysses"],
                    self.device,
                    has_token_timesteps=bool(pipeline.config.expand_timesteps),
                )
        pipeline.parallel = self

    def check_call(self, grid: Sequence[int], *, is_guided: bool) -> None:
        """Refuse a clip that these processes cannot share.

        Args:
            grid: Tokens along each axis.
            is_guided: Whether the call has two guidance branches.

        Raises:
            InputError: If the tokens cannot be shared out evenly, or there is one branch for two.
        """
        if self.num_branches == 2 and not is_guided:
            raise InputError(
                f"parallel {self.mode} needs a guidance_scale above 1: without guidance there is "
                f"one branch. Use parallel {_without_branches(self.mode)}, or set guidance_scale."
            )
        tokens = torch.Size(grid).numel()
        if tokens % self.degree and not self.shares_weights:
            shape = " x ".join(map(str, grid))
            raise InputError(
                f"The clip has {shape} = {tokens} tokens, which {self.degree} processes cannot "
                "share evenly. Choose another size or length, or another number of processes."
            )

    # ---- exchange

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """The tensor of one process, in all of them.

        Args:
            tensor: Of the same shape and dtype everywhere.
            source: Rank of that process.

        Returns:
            A new tensor on the device of ``tensor``.
        """
        shared = tensor.to(self.device, copy=True).contiguous()
        dist.broadcast(shared, src=source)
        return shared.to(tensor.device)

    def agree_on(self, number: int) -> int:
        """The first process's number, such as a seed that was drawn."""
        return int(self.broadcast(torch.tensor(number, dtype=torch.int64)))

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set in any process."""
        numbers = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return tuple(map(bool, numbers.tolist()))

    def exchange_branches(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Give this branch's velocity for both.

        Args:
            velocity: That of this process's branch.

        Returns:
            With the prompt, and with the negative prompt.
        """
        both = [torch.empty_like(velocity, memory_format=torch.contiguous_format) for _ in range(2)]
        dist.all_gather(both, velocity.contiguous(), group=self.mesh.get_group("guidance"))
        return both[0], both[1]

    def bounds(self, count: int) -> list[int]:
        """Where the part of each process begins when ``count`` things are shared out, and the end.

        Args:
            count: Number of things; parts may be empty.

        Returns:
            One more number than there are processes, from 0 to ``count``.
        """
        return [count * rank // self.num_processes for rank in range(self.num_processes + 1)]

    def concatenate(self, part: Tensor, lengths: Sequence[int], *, dim: int) -> Tensor:
        """Put together the parts of all processes.

        Args:
            part: That of this process.
            lengths: How long each process's part is along ``dim``; they are alike otherwise.
            dim: Axis of the parts.

        Returns:
            The whole, in every process.
        """
        shape = list(part.shape)
        parts = []
        for rank, length in enumerate(lengths):
            shape[dim] = length
            own = part if rank == self.rank else part.new_empty(shape)
            parts.append(self.broadcast(own, source=rank) if length else own)
        return torch.cat(parts, dim=dim)


def start(mode: str, device: str = "auto") -> Parallelism:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started.

    Args:
        mode: One of ``MODES``.
        device: ``cpu``, ``cuda`` (a GPU for each process), or ``auto``: GPUs if there are any.

    Returns:
        This process among them.

    Raises:
        InputError: If there is one process, or their number or an option does not fit.
    """
    check_processes(mode, os.environ)
    if device not in {"auto", "cpu", "cuda"}:
        raise InputError(
            f"With parallel every process takes its own device; device must be auto, cpu or cuda, "
            f"got {device!r}."
        )
    is_cpu = device == "cpu" or not torch.cuda.is_available()
    if device == "cuda" and is_cpu:
        raise InputError("The device 'cuda' cannot be used here. Use auto or cpu.")
    was_started = dist.is_initialized()
    # diffusers gathers the tokens by the old name of the function.
    warnings.filterwarnings("ignore", ".*all_gather_tensor` is deprecated", FutureWarning)
    state = PartialState(cpu=is_cpu)
    if not was_started:
        atexit.register(state.destroy_process_group)
    parallelism = Parallelism(mode, state.device, _mesh(mode, state))
    parallelism.any_of(False)  # nobody leaves, say with an error, while others still connect
    return parallelism


def _mesh(mode: str, state: PartialState) -> DeviceMesh:
    branches = 2 if mode.startswith("guidance") else 1
    degree = state.num_processes // branches
    if mode.endswith("tensor"):
        shape: tuple[int, ...] = (branches, degree)
        names: tuple[str, ...] = ("guidance", "tensor")
    else:
        shape, names = (branches, 1, degree), ("guidance", "ring", "ulysses")
    return init_device_mesh(state.device.type, shape, mesh_dim_names=names)


def _without_branches(mode: str) -> str:
    """The way that shares one branch as this one shares each of two."""
    return "tensor" if mode.endswith("tensor") else "context"


def check_processes(mode: str | None, environment: Mapping[str, str]) -> None:
    """Refuse a way that does not fit the processes started.

    Args:
        mode: The way asked for, or None.
        environment: What the launcher has set.

    Raises:
        InputError: If it is unknown, or there are too few processes, or an odd number for guidance.
    """
    if mode is None:
        return
    if mode not in MODES:
        raise InputError(f"parallel must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}.")
    count = int(environment.get("WORLD_SIZE", "1"))
    if count < 2:
        raise InputError(
            f"parallel {mode} needs several processes, this is one. Start it with "
            "'torchrun --nproc-per-node 2 -m pixeldance ...' or accelerate launch --multi_gpu (on "
            "CPUs, too), or leave parallel out."
        )
    if mode.startswith("guidance") and count % 2:
        raise InputError(
            f"parallel {mode} shares two branches, which {count} processes cannot. Start an even "
            f"number, or use parallel {_without_branches(mode)}."
        )
    missing = [name for name in _FROM_LAUNCHER if name not in environment]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set. Start the processes with "
            "torchrun or accelerate launch."
        )
