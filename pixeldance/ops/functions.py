"""The operations: native or Triton where that can be and needs no gradients, else in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pixeldance.errors import InputError
from pixeldance.ops import reference
from pixeldance.ops.kernels import FrameKernel
from pixeldance.ops.tiers import active_tier

if TYPE_CHECKING:
    from pixeldance.ops.cuda import TritonOps
    from pixeldance.ops.native import NativeOps

__all__ = [
    "attention",
    "convolve_frames",
    "gated_residual",
    "gelu_linear",
    "gelu_tanh",
    "layer_norm",
    "modulated_norm",
    "rms_norm_rotate",
    "rms_norm_silu",
]


def layer_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm in float32, rounded to the input's dtype.

    Args:
        tokens: ``batch tokens dim``.
        weight: ``dim``.
        bias: ``dim``.
        eps: Added to the variance.

    Returns:
        ``batch tokens dim``.
    """
    return _compute("layer_norm", tokens, weight, bias, eps)


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(tokens) * (1 + scale) + shift`` in float32 (DiT, arXiv 2212.09748, section 3.2).

    Args:
        tokens: ``batch tokens dim``.
        shift: ``batch 1 dim``, or for each token.
        scale: As ``shift``.
        eps: Added to the variance.

    Returns:
        ``batch tokens dim``, rounded to the dtype of ``tokens``.
    """
    return _compute("modulated_norm", tokens, shift, scale, eps)


def gated_residual(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """``tokens + update * gate`` in float32.

    Args:
        tokens: ``batch tokens dim``.
        update: ``batch tokens dim``.
        gate: ``batch 1 dim``, or for each token.

    Returns:
        ``batch tokens dim``, rounded once to the dtype of ``tokens``.
    """
    return _compute("gated_residual", tokens, update, gate)


def rms_norm_rotate(
    tokens: Tensor, weight: Tensor, eps: float, heads: int, rotary_emb: Tensor | None = None
) -> Tensor:
    """RMS norm over all heads together, then rotary positions within each, in float32.

    Args:
        tokens: ``batch tokens dim``.
        weight: ``dim``.
        eps: Added to the mean square.
        heads: How many heads share the channels.
        rotary_emb: Cosine and sine of the angles of the channel pairs (2i, 2i + 1),
            ``1 tokens 1 head_dim/2 2``; None for no rotation.

    Returns:
        ``batch tokens heads head_dim``, rounded to the dtype of ``tokens``.
    """
    return _compute("rms_norm_rotate", tokens, weight, eps, heads, rotary_emb)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (arXiv 1606.08415, section 2)."""
    return _compute("gelu_tanh", x)


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``gelu_tanh(linear(x))``, where possible in one pass of oneDNN, which then rounds once.

    Args:
        x: ``... in_features``.
        linear: Any layer that is called like one; only a plain one without hooks can be fused.

    Returns:
        ``... out_features``.
    """
    if _can_fuse(x, linear):
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, linear.weight, linear.bias, "gelu", [], "tanh"
        )
        return fused
    return gelu_tanh(linear(x))


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        query: ``batch tokens heads head_dim``.
        key: ``batch context_seq heads head_dim``.
        value: As ``key``.
        bias: Added to the logits, ``batch 1 1 context_seq``, or None.

    Returns:
        ``batch tokens heads head_dim``.
    """
    if _is_intercepted():
        return reference.attention(query, key, value, bias)
    return _compute("attention", query, key, value, bias)


def convolve_frames(cells: Tensor, kernel: FrameKernel, residual: Tensor | None = None) -> Tensor:
    """Convolve over 3 x 3 cells, zeros around every picture, and over one or three frames.

    The native operations compute it by Winograd's algorithm F(2x2, 3x3) (arXiv 1509.09308) with
    less than half of the products; in bfloat16 cells and weights are then rounded once more.

    Args:
        cells: Channels last, ``batch frames height width in_channels``: for every frame of the
            result also those before it that the kernel sees. A single frame is the first of its
            clip, and the zeros before it are left out.
        kernel: The weights.
        residual: Added to the result, or None.

    Returns:
        ``batch frames height width out_channels``; height and width are those of ``cells``, or
        twice those if the kernel doubles them.
    """
    arguments = cells, kernel.weight, kernel.bias, residual
    library = None if _is_intercepted() else _library_for(arguments)
    fused = getattr(library, "convolve_frames", None)
    result: Tensor | None = None if fused is None else fused(cells, kernel, residual)
    if result is None:
        result = reference.convolve_frames(
            cells, kernel.weight, kernel.bias, residual, kernel.is_doubled
        )
    return result


def rms_norm_silu(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """``silu(x / max(|x|, eps) * sqrt(channels) * weight)`` over the last axis, in float32.

    Args:
        x: Activations with the channels last, ``... channels``.
        weight: One number per channel.
        eps: Smallest norm divided by.
        out: Where to write, of the shape and dtype of ``x``; it may be a part of a padded buffer.

    Returns:
        ``out``, or a new tensor.

    Raises:
        InputError: If the shape or the dtype of ``out`` is not that of ``x``.
    """
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    elif (out.shape, out.dtype) != (x.shape, x.dtype):
        raise InputError(
            f"out must be {tuple(x.shape)} {x.dtype}, got {tuple(out.shape)} {out.dtype}."
        )
    return _compute("rms_norm_silu", x, weight, eps, out)


def _compute(name: str, *arguments: Any) -> Tensor:
    fused = getattr(_library_for(arguments), name, None)
    result: Tensor | None = None if fused is None else fused(*arguments)
    if result is None:
        result = getattr(reference, name)(*arguments)
    return result


def _library_for(arguments: tuple[Any, ...]) -> NativeOps | TritonOps | None:
    """What computes these tensors, if nobody else wants to see what happens to them."""
    if torch.compiler.is_compiling():  # which fuses the reference
        return None
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if not all(map(_is_plain, tensors)) or _is_recorded(tensors):
        return None
    device, *others = {tensor.device for tensor in tensors}
    return None if others else active_tier(device.type).library


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in {Tensor, nn.Parameter}
        and tensor.layout == torch.strided
        and tensor.numel() > 0
        and not tensor.is_neg()
    )


def _is_recorded(tensors: list[Tensor]) -> bool:
    """Whether autograd, a function transform, a tracer or a dispatch mode follows the tensors."""
    return (
        (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
    )


def _is_intercepted() -> bool:
    """Whether a mode replaces functions of PyTorch, as that of ``parallel.share_rows`` does.

    The default device is such a mode too, but only places new tensors.
    """
    return not torch.compiler.is_compiling() and any(
        not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    )


def _can_fuse(x: Tensor, linear: nn.Module) -> bool:
    if torch.compiler.is_compiling() or type(linear) is not nn.Linear:
        return False
    has_hooks = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    tensors = [x, linear.weight, *([] if linear.bias is None else [linear.bias])]
    return (
        not has_hooks
        and all(tensor.is_cpu for tensor in tensors)
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.dtype in {torch.float32, torch.bfloat16}
        and {tensor.dtype for tensor in tensors} == {x.dtype}
        and all(map(_is_plain, tensors))
        and not _is_recorded(tensors)
    )
