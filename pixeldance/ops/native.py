"""The native operations: arguments checked here, computed by ``csrc``.

Every method returns None for arguments that it does not cover (another dtype, another layout);
the caller then takes the reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixeldance.ops.kernels import FrameKernel

__all__ = ["NativeOps", "row_runs"]

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
MAX_HEAD_DIM = 256  # as in csrc/attention.h
LANES = 16  # numbers in a vector

_INT = ctypes.c_int64
_POINTER = ctypes.c_void_p
_REAL = ctypes.c_double
_SIZES = ctypes.POINTER(_INT)
_THREADS = _FLAG = ctypes.c_int

_SIGNATURES = {
    "layer_norm": (
        *(_POINTER, _POINTER, _INT, _INT, _POINTER, _INT, _INT, _REAL),
        *(_POINTER, _INT, _INT, _INT, _REAL, _THREADS),
    ),
    "gated_residual": (
        *(_POINTER, _POINTER, _POINTER, _INT, _INT),
        *(_POINTER, _INT, _INT, _INT, _THREADS),
    ),
    "rms_norm_rotate": (
        *(_POINTER, _INT, _POINTER, _POINTER),
        *(_POINTER, _INT, _INT, _INT, _INT, _REAL, _THREADS),
    ),
    "gelu_tanh": (_POINTER, _POINTER, _INT, _THREADS),
    "rms_norm_silu": (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT, _REAL, _THREADS),
    "attention": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
        *(_SIZES, _SIZES, _REAL, _THREADS),
    ),
    "pack_weight": (_POINTER, _SIZES, _FLAG, _POINTER),
    "convolve_frames": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
        *(_SIZES, _FLAG, _THREADS),
    ),
}
_RETURN_WORDS = {"attention", "pack_weight", "convolve_frames"}  # of memory to be given


class NativeOps:
    """The functions of a library from :func:`pixeldance.ops.build.build_library`.

    Args:
        library: Its path.
        instructions: What it was built for.
        has_amx: Whether the processor has tile registers for bfloat16. PyTorch uses them for
            attention and convolutions and is then faster than these functions, which do not.
    """

    def __init__(self, library: Path, instructions: Iterable[str], *, has_amx: bool) -> None:
        self.instructions = tuple(instructions)
        self._has_amx = has_amx
        self._functions: dict[tuple[str, torch.dtype], Callable[..., int]] = {}
        loaded = ctypes.CDLL(str(library))
        for name, arguments in _SIGNATURES.items():
            for dtype, suffix in SUFFIXES.items():
                # Products of bfloat16 are there only if the processor multiplies it.
                function = getattr(loaded, f"{name}_{suffix}", None)
                if function is not None:
                    function.argtypes = arguments
                    function.restype = _INT if name in _RETURN_WORDS else None
                    self._functions[name, dtype] = function

    def layer_norm(self, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor | None:
        """See :func:`pixeldance.ops.layer_norm`."""
        return self._layer_norm(tokens, weight, bias, eps, weight_offset=0.0)

    def modulated_norm(
        self, tokens: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.modulated_norm`."""
        return self._layer_norm(tokens, scale, shift, eps, weight_offset=1.0)

    def _layer_norm(
        self, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, weight_offset: float
    ) -> Tensor | None:
        weight, bias = _spread(weight, tokens), _spread(bias, tokens)
        function = self._functions.get(("layer_norm", tokens.dtype))
        if function is None or tokens.ndim != 3:
            return None
        tokens = tokens.contiguous()
        out = torch.empty_like(tokens)
        function(
            tokens.data_ptr(),
            *(weight.data_ptr(), *weight.stride()[:2]),
            *(bias.data_ptr(), *bias.stride()[:2]),
            *(weight_offset, out.data_ptr(), *tokens.shape, eps, torch.get_num_threads()),
        )
        return out

    def gated_residual(self, tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor | None:
        """See :func:`pixeldance.ops.gated_residual`."""
        function = self._functions.get(("gated_residual", tokens.dtype))
        if function is None or tokens.ndim != 3:
            return None
        if (update.dtype, update.shape) != (tokens.dtype, tokens.shape):
            return None
        tokens, update, gate = tokens.contiguous(), update.contiguous(), _spread(gate, tokens)
        out = torch.empty_like(tokens)
        function(
            *(tokens.data_ptr(), update.data_ptr(), gate.data_ptr(), *gate.stride()[:2]),
            *(out.data_ptr(), *tokens.shape, torch.get_num_threads()),
        )
        return out

    def rms_norm_rotate(
        self, tokens: Tensor, weight: Tensor, eps: float, heads: int, rotary_emb: Tensor | None
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.rms_norm_rotate`."""
        function = self._functions.get(("rms_norm_rotate", tokens.dtype))
        if function is None or tokens.ndim != 3 or tokens.shape[-1] % heads:
            return None
        batch, length, width = tokens.shape
        head_dim = width // heads
        if rotary_emb is not None:
            if rotary_emb.shape != (1, length, 1, head_dim // 2, 2) or head_dim % 2:
                return None
            rotary_emb = rotary_emb.float().contiguous()
        token_stride = tokens.stride(1)
        is_even = batch == 1 or tokens.stride(0) == length * token_stride
        if tokens.stride(2) != 1 or not is_even:
            tokens, token_stride = tokens.contiguous(), width
        weight = weight.float().contiguous()
        out = tokens.new_empty(batch, length, heads, head_dim)
        function(
            *(tokens.data_ptr(), token_stride, weight.data_ptr()),
            *(None if rotary_emb is None else rotary_emb.data_ptr(), out.data_ptr()),
            *(batch, length, heads, head_dim, eps, torch.get_num_threads()),
        )
        return out

    def gelu_tanh(self, x: Tensor) -> Tensor | None:
        """See :func:`pixeldance.ops.gelu_tanh`."""
        function = self._functions.get(("gelu_tanh", x.dtype))
        if function is None:
            return None
        x = x.contiguous()
        out = torch.empty_like(x)
        function(x.data_ptr(), out.data_ptr(), x.numel(), torch.get_num_threads())
        return out

    def rms_norm_silu(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor | None:
        """See :func:`pixeldance.ops.rms_norm_silu`."""
        function = self._functions.get(("rms_norm_silu", x.dtype))
        runs = row_runs(out)
        if function is None or runs is None:
            return None
        x, weight = x.contiguous(), weight.float().contiguous()
        function(
            *(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // x.shape[-1]),
            *(*runs, x.shape[-1], eps, torch.get_num_threads()),
        )
        return out

    def convolve_frames(
        self, cells: Tensor, kernel: FrameKernel, residual: Tensor | None
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.convolve_frames`."""
        function = self._functions.get(("convolve_frames", cells.dtype))
        out_channels, in_channels, weight_frames = kernel.weight.shape[:3]
        needs_pytorch = self._has_amx or kernel.is_exact or in_channels < LANES
        if function is None or (cells.dtype == torch.bfloat16 and needs_pytorch):
            return None
        if kernel.weight.dtype != cells.dtype or cells.shape[-1] != in_channels:
            return None
        batch, in_frames, height, width, _ = cells.shape
        taps = min(weight_frames, in_frames)
        frames, side = in_frames - taps + 1, 1 + kernel.is_doubled
        shape = (batch, frames, side * height, side * width, out_channels)
        if residual is not None:
            if (residual.dtype, residual.shape) != (cells.dtype, shape):
                return None
            residual = residual.contiguous()
        packed, cells = self._packed_weight(kernel), cells.contiguous()
        bias = None if kernel.bias is None else kernel.bias.float().contiguous()
        out, threads = cells.new_empty(shape), torch.get_num_threads()
        pointers = [0 if t is None else t.data_ptr() for t in (packed, bias, cells, residual, out)]
        sizes = (in_channels, out_channels, weight_frames, batch, frames, height, width, taps)
        rest: tuple[Any, ...] = ((_INT * 8)(*sizes), kernel.is_doubled, threads)
        num_words = function(*pointers, None, *rest)
        scratch = torch.empty(threads * num_words, dtype=torch.int32)
        function(*pointers, scratch.data_ptr(), *rest)
        return out

    def _packed_weight(self, kernel: FrameKernel) -> Tensor:
        if kernel.packed is None:
            weight = kernel.weight.permute(0, 2, 3, 4, 1).contiguous()
            function = self._functions["pack_weight", weight.dtype]
            sizes = (_INT * 3)(weight.shape[-1], *weight.shape[:2])
            num_words = function(weight.data_ptr(), sizes, kernel.is_doubled, None)
            packed = torch.empty(num_words, dtype=torch.int32)
            function(weight.data_ptr(), sizes, kernel.is_doubled, packed.data_ptr())
            kernel.packed = packed
        return kernel.packed

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.attention`."""
        function = self._functions.get(("attention", query.dtype))
        if function is None or (self._has_amx and query.dtype == torch.bfloat16):
            return None
        if query.ndim != 4 or key.shape != value.shape or query.shape[2:] != key.shape[2:]:
            return None
        batch, queries, heads, head_dim = query.shape
        keys = key.shape[1]
        if {query.dtype} != {key.dtype, value.dtype} or key.shape[0] != batch:
            return None
        if head_dim > MAX_HEAD_DIM:
            return None
        if bias is not None:
            if bias.shape not in {(batch, 1, 1, keys), (1, 1, 1, keys)}:
                return None
            bias = bias.float().expand(batch, 1, 1, keys).contiguous()
        query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
        out = query.new_empty(query.shape)
        strides = chain.from_iterable(t.stride()[:3] for t in (query, key, value, out))
        sizes = (_INT * 5)(batch, heads, queries, keys, head_dim)
        pointers = [t.data_ptr() for t in (query, key, value, out)]
        pointers.append(0 if bias is None else bias.data_ptr())
        rest: tuple[Any, ...] = (sizes, (_INT * 12)(*strides), head_dim**-0.5)
        threads = torch.get_num_threads()
        num_words = function(*pointers, None, *rest, threads)
        packed = torch.empty(num_words, dtype=torch.int32)
        function(*pointers, packed.data_ptr(), *rest, threads)
        return out


def _spread(vectors: Tensor, tokens: Tensor) -> Tensor:
    """``vectors`` in float32, one for each token of ``batch tokens dim``, mostly with strides 0."""
    vectors = vectors.float()
    if vectors.stride(-1) != 1:
        vectors = vectors.contiguous()
    return vectors.expand(tokens.shape)


def row_runs(out: Tensor) -> tuple[int, int] | None:
    """How many rows of ``out`` follow one another, and how far such runs are apart.

    None if its rows are not at regular places.
    """
    width = out.shape[-1]
    if out.stride(-1) != 1 and width > 1:
        return None
    axes = [(n, s) for n, s in zip(out.shape[:-1], out.stride()[:-1], strict=True) if n > 1]
    run = 1
    while axes and axes[-1][1] == run * width:
        run *= axes.pop()[0]
    if not axes:
        return run, 0
    distance = expected = axes[-1][1]
    for size, stride in reversed(axes):
        if stride != expected:
            return None
        expected *= size
    return run, distance
