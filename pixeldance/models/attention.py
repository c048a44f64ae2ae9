"""Attention of the video transformer: to the video itself, and to a context of text and pictures.

References:
    RoFormer, https://arxiv.org/abs/2104.09864 (rotary position embedding).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from pixeldance.models.context import BlockContext, KeysValues

__all__ = ["PixelDanceAttention", "PixelDanceAttnProcessor"]


def rotate(tokens: Tensor, rotary_emb: Tensor) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) by their angles (RoFormer, equation 34), in float32.

    Args:
        tokens: ``batch tokens heads head_dim``.
        rotary_emb: Cosine and sine of the angles, ``1 tokens 1 head_dim/2 2``.

    Returns:
        The rotated tokens, in their own dtype.
    """
    pairs = tokens.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # fuses real arithmetic, has no code for complex numbers
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary_emb.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:  # one pass instead of eight
        product = torch.view_as_complex(pairs) * torch.view_as_complex(rotary_emb)
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(tokens.dtype)


class QKNorm(nn.RMSNorm):
    """RMS norm over all heads together, in float32, keeping the input's dtype under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        normed = F.rms_norm(x.float(), self.normalized_shape, eps=self.eps)
        return (normed * self.weight).to(x.dtype)


class PixelDanceAttnProcessor:
    """Computes self attention (with rotary positions) and cross attention (text plus pictures)."""

    # Set by diffusers' set_attention_backend and enable_parallelism.
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: PixelDanceAttention,
        hidden_states: Tensor,
        encoder_hidden_states: BlockContext | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Attend and project; the result has the shape of ``hidden_states``."""
        if encoder_hidden_states is None:
            attended = self._attend_to_video(attn, hidden_states, rotary_emb)
        else:
            attended = self._attend_to_context(attn, hidden_states, encoder_hidden_states)
        attended = attended.flatten(2, 3).type_as(hidden_states)
        projection, dropout = attn.to_out
        return dropout(projection(attended))

    def _attend_to_video(
        self, attn: PixelDanceAttention, hidden_states: Tensor, rotary_emb: Tensor | None
    ) -> Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = (to(hidden_states) for to in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.split_heads(attn.norm_q(query)), attn.split_heads(attn.norm_k(key))
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        return dispatch_attention_fn(
            query,
            key,
            attn.split_heads(value),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )

    def _attend_to_context(
        self, attn: PixelDanceAttention, hidden_states: Tensor, context: BlockContext
    ) -> Tensor:
        query = attn.split_heads(attn.norm_q(attn.to_q(hidden_states)))
        text, image, bias = attn.project_context(context)
        # Flash kernels take no bias; with one, attention runs on PyTorch's own.
        backend = self._attention_backend if bias is None else AttentionBackendName.NATIVE
        if bias is not None:
            bias = bias.to(query.dtype)
        # Every rank holds the whole context: no parallel_config here.
        attended = dispatch_attention_fn(query, *text, attn_mask=bias, backend=backend)
        if image is not None:
            attended = attended + dispatch_attention_fn(
                query, *image, backend=self._attention_backend
            )
        return attended


class PixelDanceAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with normalised queries and keys; names as in Wan's state dict."""

    _default_processor_cls = PixelDanceAttnProcessor
    _available_processors: ClassVar = [PixelDanceAttnProcessor]
    use_bias = True  # read by AttentionModuleMixin.fuse_projections
    processor: PixelDanceAttnProcessor
    to_qkv: nn.Linear  # while fused, in self attention
    to_kv: nn.Linear  # while fused, in cross attention
    add_k_proj: nn.Linear  # these three only with pictures
    add_v_proj: nn.Linear
    norm_added_k: QKNorm

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        eps: float,
        is_cross_attention: bool,
        added_kv_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.is_cross_attention = is_cross_attention
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm_q = QKNorm(dim, eps=eps)
        self.norm_k = QKNorm(dim, eps=eps)
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, dim)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, dim)
            self.norm_added_k = QKNorm(dim, eps=eps)
        self.processor = PixelDanceAttnProcessor()

    def split_heads(self, tokens: Tensor) -> Tensor:
        """``batch tokens dim`` to ``batch tokens heads head_dim``."""
        return tokens.unflatten(-1, (self.heads, -1))

    def project_context(self, context: BlockContext) -> BlockContext:
        """Turn the tokens of a context into keys and values, unless it holds those already."""
        text, image, bias = context
        if isinstance(text, Tensor):
            if self.fused_projections:
                key, value = self.to_kv(text).chunk(2, dim=-1)
            else:
                key, value = self.to_k(text), self.to_v(text)
            text = KeysValues(self.split_heads(self.norm_k(key)), self.split_heads(value))
        if isinstance(image, Tensor):
            key, value = self.norm_added_k(self.add_k_proj(image)), self.add_v_proj(image)
            image = KeysValues(self.split_heads(key), self.split_heads(value))
        return BlockContext(text, image, bias)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: BlockContext | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Attend to the video itself, or to a context if one is given."""
        return self.processor(self, hidden_states, encoder_hidden_states, rotary_emb)


def _unchanged(_attention: nn.Module, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """What a skipped attention returns (diffusers' layer-skip hook)."""
    return hidden_states


# diffusers' layer-skip hook only works on processors that it knows.
AttentionProcessorRegistry.register(
    PixelDanceAttnProcessor, AttentionProcessorMetadata(skip_processor_output_fn=_unchanged)
)
