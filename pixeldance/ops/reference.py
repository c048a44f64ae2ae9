"""The operations in plain PyTorch: differentiable, on every device, and what the others must equal.

References:
    Layer normalization, https://arxiv.org/abs/1607.06450;
    RMS norm, https://arxiv.org/abs/1910.07467;
    RoFormer, https://arxiv.org/abs/2104.09864 (rotary position embedding);
    GELU, https://arxiv.org/abs/1606.08415 (section 2: the approximation by tanh);
    SiLU, https://arxiv.org/abs/1702.03118.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

__all__ = [
    "attention",
    "convolve_frames",
    "gated_residual",
    "gelu_tanh",
    "layer_norm",
    "modulated_norm",
    "rms_norm_rotate",
    "rms_norm_silu",
]


def layer_norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm in float32 with a weight and a bias ``dim``, rounded to the input's dtype."""
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], weight.float(), bias.float(), eps)
    return normed.to(tokens.dtype)


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(tokens) * (1 + scale) + shift`` in float32, rounded to the input's dtype."""
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(tokens.dtype)


def gated_residual(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """``tokens + update * gate`` in float32, rounded once to the dtype of ``tokens``."""
    return torch.addcmul(tokens.float(), update.float(), gate).to(tokens.dtype)


def rms_norm_rotate(
    tokens: Tensor, weight: Tensor, eps: float, heads: int, rotary_emb: Tensor | None
) -> Tensor:
    """RMS norm over all heads together, then rotary positions within each, in float32."""
    normed = F.rms_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    split = (normed * weight).to(tokens.dtype).unflatten(-1, (heads, -1))
    return split if rotary_emb is None else rotate(split, rotary_emb)


def rotate(tokens: Tensor, rotary_emb: Tensor) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) by their angles (RoFormer, equation 34), in float32."""
    pairs = tokens.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # fuses real arithmetic, has no code for complex numbers
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary_emb.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:  # one pass instead of eight
        product = torch.view_as_complex(pairs) * torch.view_as_complex(rotary_emb.contiguous())
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(tokens.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of tokens ``batch tokens heads head_dim``; the bias is added to the logits."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if bias is not None:
        bias = bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


def rms_norm_silu(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """``silu(x / max(|x|, eps) * sqrt(channels) * weight)`` over the last axis, into ``out``."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(eps)
    return out.copy_(F.silu(x * (x.shape[-1] ** 0.5 / norm) * weight))


def convolve_frames(
    cells: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, doubled: bool
) -> Tensor:
    """Convolve over 3 x 3 cells and one or three frames, channels last, and add ``residual``."""
    if doubled:
        cells = repeat(cells, "b t h w c -> b t (h 2) (w 2) c")
    if cells.shape[1] == 1:
        weight = weight[:, :, -1:]
    if weight.shape[2] == 1:
        pictures = cells.flatten(0, 1).permute(0, 3, 1, 2)
        pictures = F.conv2d(pictures, weight.squeeze(2), bias, padding=1)
        frames: Tensor = pictures.permute(0, 2, 3, 1).contiguous().unflatten(0, cells.shape[:2])
    else:
        video = F.conv3d(cells.permute(0, 4, 1, 2, 3), weight, bias, padding=(0, 1, 1))
        frames = video.permute(0, 2, 3, 4, 1).contiguous()
    return frames if residual is None else frames.add_(residual)
