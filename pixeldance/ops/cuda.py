"""The operations on NVIDIA GPUs: arguments checked here, computed by ``triton_kernels``.

Attention and GELU are missing on purpose: PyTorch already computes each in one pass over memory.

As in :mod:`pixeldance.ops.native`, every method returns None for arguments that it does not cover,
and the caller then takes the reference. Importing this module needs Triton, which PyTorch brings
along where it is built for CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from pixeldance.ops import triton_kernels
from pixeldance.ops.native import row_runs

__all__ = ["TritonOps"]

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
MAX_WIDTH = 16384  # channels that a program holds in registers to norm them
TILE = 4096  # numbers that a program computes, if one token has no more
MAX_TILE_WIDTH = 1024  # where a token may be divided
NUMBERS_PER_WARP = 512  # 16 in each thread: two loads of 16 bytes in bfloat16
MAX_WARPS = 16


class TritonOps:
    """What the kernels cover: contiguous channels in float32, bfloat16 or float16."""

    def layer_norm(self, tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor | None:
        """See :func:`pixeldance.ops.layer_norm`."""
        return _layer_norm(tokens, weight, bias, eps, weight_offset=0.0)

    def modulated_norm(
        self, tokens: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.modulated_norm`."""
        return _layer_norm(tokens, scale, shift, eps, weight_offset=1.0)

    def gated_residual(self, tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor | None:
        """See :func:`pixeldance.ops.gated_residual`."""
        if not _are_covered(tokens, update, gate) or update.shape != tokens.shape:
            return None
        batch, length, width = tokens.shape
        tokens, update, gate = _even(tokens), _even(update), _spread(gate, tokens)
        out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        tiling = _tiling(length, width, MAX_TILE_WIDTH)
        grid = (_num_tiles(batch, length, tiling), triton.cdiv(width, tiling["COLUMNS"]))
        return _launch(
            triton_kernels.gated_residual,
            grid,
            out,
            *(tokens, *tokens.stride()[:2], update, *update.stride()[:2]),
            *(gate, *gate.stride()[:2], length),
            GATE_PER_TOKEN=gate.stride(1) != 0,
            WIDTH=width,
            **tiling,
        )

    def rms_norm_rotate(
        self, tokens: Tensor, weight: Tensor, eps: float, heads: int, rotary_emb: Tensor | None
    ) -> Tensor | None:
        """See :func:`pixeldance.ops.rms_norm_rotate`."""
        if not _are_covered(tokens, weight) or tokens.shape[-1] % heads:
            return None
        batch, length, width = tokens.shape
        head_dim = width // heads
        if rotary_emb is not None:
            if rotary_emb.shape != (1, length, 1, head_dim // 2, 2) or head_dim % 2:
                return None
            rotary_emb = rotary_emb.contiguous()
        tokens, weight = _even(tokens), weight.contiguous()
        out = tokens.new_empty(batch, length, heads, head_dim)
        tiling = _tiling(length, width)
        return _launch(
            triton_kernels.rms_norm_rotate,
            (_num_tiles(batch, length, tiling),),
            out,
            *(tokens, *tokens.stride()[:2], weight, rotary_emb, length, eps),
            HEAD_DIM=head_dim,
            WIDTH=width,
            **tiling,
        )

    def rms_norm_silu(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor | None:
        """See :func:`pixeldance.ops.rms_norm_silu`."""
        runs = row_runs(out)
        width = x.shape[-1]
        if runs is None or width > MAX_WIDTH or not {x.dtype, weight.dtype} <= DTYPES:
            return None
        length, distance = runs
        tiling = _tiling(length, width)
        return _launch(
            triton_kernels.rms_norm_silu,
            (_num_tiles(x.numel() // width // length, length, tiling),),
            *(out, distance, x.contiguous(), weight.contiguous(), length, eps),
            WIDTH=width,
            **tiling,
        )


def _layer_norm(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, weight_offset: float
) -> Tensor | None:
    if not _are_covered(tokens, weight, bias):
        return None
    batch, length, width = tokens.shape
    tokens, weight, bias = _even(tokens), _spread(weight, tokens), _spread(bias, tokens)
    out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    tiling = _tiling(length, width)
    return _launch(
        triton_kernels.layer_norm,
        (_num_tiles(batch, length, tiling),),
        out,
        *(tokens, *tokens.stride()[:2], weight, *weight.stride()[:2]),
        *(bias, *bias.stride()[:2], length, eps),
        WEIGHT_OFFSET=weight_offset,
        WEIGHT_PER_TOKEN=weight.stride(1) != 0,
        BIAS_PER_TOKEN=bias.stride(1) != 0,
        WIDTH=width,
        **tiling,
    )


def _are_covered(tokens: Tensor, *others: Tensor) -> bool:
    dtypes = {tensor.dtype for tensor in (tokens, *others)}
    return tokens.ndim == 3 and tokens.shape[-1] <= MAX_WIDTH and dtypes <= DTYPES


def _even(tokens: Tensor) -> Tensor:
    """``tokens`` with neighbouring channels next to each other."""
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def _spread(vectors: Tensor, tokens: Tensor) -> Tensor:
    """``vectors``, one for each token of ``batch tokens dim``, mostly with strides 0."""
    return _even(vectors).expand(tokens.shape)


def _tiling(length: int, width: int, max_columns: int = MAX_WIDTH) -> dict[str, int]:
    """How many tokens and channels a program computes, with how many warps."""
    columns = min(triton.next_power_of_2(width), max_columns)
    rows = max(min(TILE // columns, triton.next_power_of_2(length)), 1)
    num_warps = min(max(rows * columns // NUMBERS_PER_WARP, 1), MAX_WARPS)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": num_warps}


def _num_tiles(batch: int, length: int, tiling: dict[str, int]) -> int:
    return batch * int(triton.cdiv(length, tiling["ROWS"]))


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> Tensor:
    """Start a kernel on the device of its output, which need not be the current one."""
    out: Tensor = arguments[0]
    with torch.cuda.device_of(out):
        kernel[grid](*arguments, **constants)
    return out
