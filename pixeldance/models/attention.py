"""Attention of the video transformer, to the video itself and to a context of text and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    SeqAllToAllDim,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor, nn

from pixeldance import ops
from pixeldance.models.context import BlockContext, KeysValues
from pixeldance.ops.reference import rotate

__all__ = ["PixelDanceAttention", "PixelDanceAttnProcessor"]


class QKNorm(nn.Module):
    """RMS norm over all heads together, then rotary positions; keeps the dtype under autocast."""

    average: Callable[[Tensor], Tensor] | None = None
    """Of numbers over the processes, where each of them has a part of the heads."""

    def __init__(self, dim: int, heads: int, *, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor, rotary_emb: Tensor | None = None) -> Tensor:
        """``batch tokens dim`` to ``batch tokens heads head_dim``."""
        if self.average is None:
            return ops.rms_norm_rotate(tokens, self.weight, self.eps, self.heads, rotary_emb)
        mean_square = self.average(tokens.float().square().mean(dim=-1, keepdim=True))
        normed = tokens.float() * torch.rsqrt(mean_square + self.eps) * self.weight
        split = normed.to(tokens.dtype).unflatten(-1, (self.heads, -1))
        return split if rotary_emb is None else rotate(split, rotary_emb)


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
        query = attn.norm_q(query, rotary_emb)
        key = attn.norm_k(key, rotary_emb)
        value = attn.split_heads(value)
        if self._parallel_config is None:
            return self._attend(query, KeysValues(key, value))
        return self._attend_in_parallel(query, key, value)

    def _attend_in_parallel(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        config = self._parallel_config.context_parallel_config
        if config.ring_degree > 1 or config.ulysses_anything:
            return dispatch_attention_fn(
                query,
                key,
                value,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        # Ulysses (arXiv 2309.14509, section 3): all tokens of some heads, by the kernel that one
        # process would use, so that the result is the same.
        group = config._ulysses_mesh.get_group()
        query, key, value = (
            SeqAllToAllDim.apply(group, part, 2, 1) for part in (query, key, value)
        )
        attended = self._attend(query, KeysValues(key, value))
        return cast("Tensor", SeqAllToAllDim.apply(group, attended, 1, 2))

    def _attend_to_context(
        self, attn: PixelDanceAttention, hidden_states: Tensor, context: BlockContext
    ) -> Tensor:
        query = attn.norm_q(attn.to_q(hidden_states))
        text, image, bias = attn.project_context(context)
        # Every rank holds the whole context: no parallel_config here.
        attended = self._attend(query, cast("KeysValues", text), bias)
        if image is not None:
            attended = attended + self._attend(query, cast("KeysValues", image))
        return attended

    def _attend(self, query: Tensor, context: KeysValues, bias: Tensor | None = None) -> Tensor:
        backend = self._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        # Flash kernels take no bias; with one, attention runs on PyTorch's own or on ours.
        if bias is not None or backend == AttentionBackendName.NATIVE:
            return ops.attention(query, *context, bias)
        return dispatch_attention_fn(query, *context, backend=backend)


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
        self.norm_q = QKNorm(dim, heads, eps=eps)
        self.norm_k = QKNorm(dim, heads, eps=eps)
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, dim)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, dim)
            self.norm_added_k = QKNorm(dim, heads, eps=eps)
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
            text = KeysValues(self.norm_k(key), self.split_heads(value))
        if isinstance(image, Tensor):
            key, value = self.add_k_proj(image), self.add_v_proj(image)
            image = KeysValues(self.norm_added_k(key), self.split_heads(value))
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
