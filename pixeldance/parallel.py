"""Several processes make one clip: they share out tokens, guidance branches and decoded frames.

Every process runs the same program with the same request and comes to the same clip. ``context`` is
Ulysses: each process computes a part of the tokens, and a part of the heads inside self attention.
``guidance`` lets one half of the processes predict with the prompt and the other half with the
negative prompt; each half shares its tokens as above. Both share out decoding.

References:
    DeepSpeed Ulysses, https://arxiv.org/abs/2309.14509
"""

import atexit
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from diffusers import ContextParallelConfig, DiffusionPipeline, ParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pixeldance.errors import InputError
from pixeldance.models.transformer import PixelDanceTransformer3DModel

__all__ = ["MODES", "Parallelism", "start", "suspended"]

MODES = ("context", "guidance")

_FROM_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, eq=False)
class Parallelism:
    """This process among those that make a clip together.

    Attributes:
        mode: One of ``MODES``.
        device: Where this process computes.
        mesh: The processes, ``guidance ring ulysses``: branches x 1 x processes per branch.
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
        return dist.get_rank()

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
        """Number of processes that share the tokens of a branch."""
        return self.mesh.size(2)

    # ---- context parallelism

    def apply(self, pipeline: DiffusionPipeline) -> None:
        """Let a pipeline make its clips together with those of the other processes.

        Args:
            pipeline: A ``PixelDancePipeline`` with the same weights in every process.

        Raises:
            InputError: If the attention heads cannot be shared out evenly.
        """
        for transformer in (pipeline.transformer, pipeline.transformer_2):
            if transformer is not None:
                self._apply_to(
                    transformer, has_token_timesteps=bool(pipeline.config.expand_timesteps)
                )
        pipeline.parallel = self

    def _apply_to(
        self, transformer: PixelDanceTransformer3DModel, *, has_token_timesteps: bool
    ) -> None:
        """What diffusers' ``enable_parallelism`` does, which fails on hosts without accelerator."""
        if self.degree == 1:
            return
        heads = int(transformer.config.num_attention_heads)
        if heads % self.degree:
            raise InputError(
                f"The model has {heads} attention heads, which {self.degree} processes cannot "
                "share evenly. Start a number that divides it (with guidance: twice that)."
            )
        mesh = self.mesh["ring", "ulysses"]
        tokens = ContextParallelConfig(ulysses_degree=self.degree, mesh=mesh)
        config = ParallelConfig(context_parallel_config=tokens)
        config.setup(self.rank, self.num_processes, self.device, mesh=mesh)
        plan = dict(transformer._cp_plan)
        if not has_token_timesteps:
            plan.pop("")
        transformer._cp_plan = plan
        _configure(transformer, config)
        apply_context_parallel(transformer, tokens, plan)

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
                "parallel guidance needs a guidance_scale above 1: without guidance there is one "
                "branch. Use parallel context, or set guidance_scale."
            )
        tokens = torch.Size(grid).numel()
        if tokens % self.degree:
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
        mode: ``context`` or ``guidance``.
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
    branches = 2 if mode == "guidance" else 1
    mesh = init_device_mesh(
        state.device.type,
        (branches, 1, state.num_processes // branches),
        mesh_dim_names=("guidance", "ring", "ulysses"),
    )
    parallelism = Parallelism(mode, state.device, mesh)
    parallelism.any_of(False)  # nobody leaves, say with an error, while others still connect
    return parallelism


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
        raise InputError(f"parallel must be {' or '.join(MODES)}, got {mode!r}.")
    count = int(environment.get("WORLD_SIZE", "1"))
    if count < 2:
        raise InputError(
            f"parallel {mode} needs several processes, this is one. Start it with "
            "'torchrun --nproc-per-node 2 -m pixeldance ...', or leave parallel out."
        )
    if mode == "guidance" and count % 2:
        raise InputError(
            f"parallel guidance shares two branches, which {count} processes cannot. Start an even "
            "number, or use parallel context."
        )
    missing = [name for name in _FROM_LAUNCHER if name not in environment]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set. Start the processes with "
            "torchrun or accelerate launch."
        )


@contextmanager
def suspended(transformer: PixelDanceTransformer3DModel) -> Iterator[None]:
    """Let a transformer compute all tokens in every process for a while.

    Hooks on its blocks have to be set meanwhile, if they are to see the tokens of this process
    only: diffusers runs hooks from the last one to the first, so that one set later would meet the
    first block before the tokens are shared out, and the last block after that.

    Args:
        transformer: May or may not be parallel.

    Yields:
        Nothing.
    """
    config = transformer._parallel_config
    if config is None:
        yield
        return
    plan: Any = transformer._cp_plan
    remove_context_parallel(transformer, plan)
    _configure(transformer, None)
    try:
        yield
    finally:
        _configure(transformer, config)
        apply_context_parallel(transformer, config.context_parallel_config, plan)


def _configure(transformer: PixelDanceTransformer3DModel, config: ParallelConfig | None) -> None:
    transformer._parallel_config = config
    for processor in transformer.attn_processors.values():
        processor._parallel_config = config
