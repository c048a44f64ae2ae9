"""The kernels of the operations on NVIDIA GPUs; ``cuda.py`` checks arguments and launches them.

A program computes a tile of ``ROWS`` tokens of one batch element. ``COLUMNS`` is a power of two;
the channels from ``WIDTH`` on and the tokens from ``length`` on are masked. Numbers are read in
whatever format they have, computed in float32 and rounded once, when they are written. Offsets have
64 bits, because a batch of long videos has more than 2**31 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["gated_residual", "layer_norm", "rms_norm_rotate", "rms_norm_silu"]


@triton.jit
def _place(length, ROWS: tl.constexpr):
    """The batch element and the tokens of this program."""
    num_tiles = (length - 1) // ROWS + 1
    program = tl.program_id(0)
    first = (program % num_tiles).to(tl.int64) * ROWS
    return (program // num_tiles).to(tl.int64), first + tl.arange(0, ROWS)


@triton.jit
def _load_vectors(start, stride, rows, columns, inside, is_column, PER_TOKEN: tl.constexpr):
    """One vector for each token, or one for all of them, which is then read only once."""
    if PER_TOKEN:
        vectors = tl.load(start + rows[:, None] * stride + columns[None, :], inside, other=0.0)
    else:
        vectors = tl.load(start + columns, is_column, other=0.0)[None, :]
    return vectors.to(tl.float32)


@triton.jit(do_not_specialize=["length"])
def layer_norm(
    out,
    tokens,
    tokens_batch_stride,
    tokens_stride,
    weight,
    weight_batch_stride,
    weight_stride,
    bias,
    bias_batch_stride,
    bias_stride,
    length,
    eps,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,
    BIAS_PER_TOKEN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``layer_norm(tokens) * (WEIGHT_OFFSET + weight) + bias``; ``out`` is contiguous."""
    batch, rows = _place(length, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    inside = (rows < length)[:, None] & is_column[None, :]

    tokens += batch * tokens_batch_stride
    x = tl.load(tokens + rows[:, None] * tokens_stride + columns[None, :], inside, other=0.0)
    x = x.to(tl.float32)
    mean = tl.sum(x, axis=1) / WIDTH
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / WIDTH
    normed = centred * tl.rsqrt(variance + eps)[:, None]

    weight += batch * weight_batch_stride
    bias += batch * bias_batch_stride
    scale = _load_vectors(weight, weight_stride, rows, columns, inside, is_column, WEIGHT_PER_TOKEN)
    shift = _load_vectors(bias, bias_stride, rows, columns, inside, is_column, BIAS_PER_TOKEN)
    result = normed * (WEIGHT_OFFSET + scale) + shift
    tl.store(out + (batch * length + rows)[:, None] * WIDTH + columns[None, :], result, inside)


@triton.jit(do_not_specialize=["length"])
def gated_residual(
    out,
    tokens,
    tokens_batch_stride,
    tokens_stride,
    update,
    update_batch_stride,
    update_stride,
    gate,
    gate_batch_stride,
    gate_stride,
    length,
    GATE_PER_TOKEN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``tokens + update * gate``, of which a program computes ``COLUMNS`` channels."""
    batch, rows = _place(length, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    inside = (rows < length)[:, None] & is_column[None, :]

    tokens += batch * tokens_batch_stride
    update += batch * update_batch_stride
    gate += batch * gate_batch_stride
    x = tl.load(tokens + rows[:, None] * tokens_stride + columns[None, :], inside, other=0.0)
    change = tl.load(update + rows[:, None] * update_stride + columns[None, :], inside, other=0.0)
    factor = _load_vectors(gate, gate_stride, rows, columns, inside, is_column, GATE_PER_TOKEN)
    result = x.to(tl.float32) + change.to(tl.float32) * factor
    tl.store(out + (batch * length + rows)[:, None] * WIDTH + columns[None, :], result, inside)


@triton.jit(do_not_specialize=["length"])
def rms_norm_rotate(
    out,
    tokens,
    tokens_batch_stride,
    tokens_stride,
    weight,
    rotary_emb,
    length,
    eps,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """RMS norm over all channels, then rotation of the pairs if there are angles."""
    batch, rows = _place(length, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    inside = (rows < length)[:, None] & is_column[None, :]

    tokens += batch * tokens_batch_stride
    x = tl.load(tokens + rows[:, None] * tokens_stride + columns[None, :], inside, other=0.0)
    x = x.to(tl.float32)
    mean_square = tl.sum(x * x, axis=1) / WIDTH
    scale = tl.load(weight + columns, is_column, other=0.0).to(tl.float32)
    result = x * tl.rsqrt(mean_square + eps)[:, None] * scale[None, :]

    if rotary_emb is not None:
        # Cosine and sine lie side by side, as the channels of a pair do; all heads share them.
        angles = rows[:, None] * HEAD_DIM + (columns % HEAD_DIM)[None, :]
        rotation = tl.load(rotary_emb + angles, inside, other=0.0).to(tl.float32)
        cos, sin = tl.split(tl.reshape(rotation, (ROWS, COLUMNS // 2, 2)))
        even, odd = tl.split(tl.reshape(result, (ROWS, COLUMNS // 2, 2)))
        rotated = tl.join(even * cos - odd * sin, even * sin + odd * cos)
        result = tl.reshape(rotated, (ROWS, COLUMNS))
    tl.store(out + (batch * length + rows)[:, None] * WIDTH + columns[None, :], result, inside)


@triton.jit(do_not_specialize=["length"])
def rms_norm_silu(
    out,
    out_distance,
    x,
    weight,
    length,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``silu(x / max(|x|, eps) * sqrt(WIDTH) * weight)``; in ``out``, runs of rows lie apart."""
    run, rows = _place(length, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_column = columns < WIDTH
    inside = (rows < length)[:, None] & is_column[None, :]

    x += run * length * WIDTH
    cells = tl.load(x + rows[:, None] * WIDTH + columns[None, :], inside, other=0.0)
    cells = cells.to(tl.float32)
    norm = tl.sqrt(tl.sum(cells * cells, axis=1))
    norm = tl.maximum(norm, eps, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.load(weight + columns, is_column, other=0.0).to(tl.float32)
    normed = cells * (WIDTH**0.5 / norm)[:, None] * scale[None, :]
    result = normed * tl.sigmoid(normed)
    tl.store(out + run * out_distance + rows[:, None] * WIDTH + columns[None, :], result, inside)
