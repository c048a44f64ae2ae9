"""The video transformer: Wan's network (key for key), with a text context computed once per clip.

Weights and configuration are those of diffusers' ``WanTransformer3DModel``: Wan checkpoints and
Wan LoRAs load here, and a checkpoint saved here loads there. What differs is how it is computed:

* text keys and values can be computed once per generation (:meth:`prepare_context`),
* padded text tokens, all equal, become one key with a logarithmic count bias,
* per-token timesteps are embedded once per distinct value,
* text of any length can be combined with image tokens.

References:
    Wan, https://arxiv.org/abs/2503.20314 (the network);
    DiT, https://arxiv.org/abs/2212.09748 (adaptive layer norm);
    RoFormer, https://arxiv.org/abs/2104.09864 (rotary position embedding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
)
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from pixeldance.errors import ConfigError, InputError
from pixeldance.models.context import BlockContext, KeysValues, TextContext, collapse_padding

__all__ = ["PixelDanceTransformer3DModel", "TextContext"]


class TimeEmbedding(NamedTuple):
    """Timesteps as the blocks see them.

    Attributes:
        modulation: ``rows 6 dim``, added to each block's ``scale_shift_table``.
        row_of_token: ``batch tokens`` index into the rows, or None when row = batch element.
    """

    modulation: Tensor
    row_of_token: Tensor | None = None

    def broadcast(self, per_row: Tensor) -> Tensor:
        """Spread ``rows dim`` over the tokens: ``batch 1 dim`` or ``batch tokens dim``."""
        return per_row.unsqueeze(1) if self.row_of_token is None else per_row[self.row_of_token]


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(tokens) * (1 + scale) + shift`` in float32, rounded to the input's dtype."""
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(tokens.dtype)


def gated_residual(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """``tokens + update * gate`` in float32, rounded once to the dtype of ``tokens``."""
    return torch.addcmul(tokens.float(), update.float(), gate).to(tokens.dtype)


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


class RotaryPositions(nn.Module):
    """Angles of the rotary embedding over (frame, row, column); no weights, no buffers."""

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.max_seq_len = max_seq_len
        side = 2 * (head_dim // 6)
        self.axis_dims = (head_dim - 2 * side, side, side)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Cosine and sine of the angles of a latent video, ``1 tokens 1 head_dim/2 2`` float32."""
        grid = [n // p for n, p in zip(hidden_states.shape[2:], self.patch_size, strict=True)]
        if max(grid) > self.max_seq_len:
            raise InputError(
                f"The video has {grid[0]} x {grid[1]} x {grid[2]} patches, at most "
                f"{self.max_seq_len} per axis are allowed. Ask for a shorter or smaller video."
            )
        device = hidden_states.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        angles = []
        for axis, (length, dim) in enumerate(zip(grid, self.axis_dims, strict=True)):
            frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=precise, device=device) / dim)
            positions = torch.arange(length, dtype=precise, device=device)
            shape = [length if i == axis else 1 for i in range(3)]
            angle = torch.outer(positions, frequencies).view(*shape, -1)
            angles.append(angle.expand(*grid, -1))
        table = torch.cat(angles, dim=-1).reshape(1, math.prod(grid), 1, -1)
        return torch.stack([table.cos(), table.sin()], dim=-1).float()


class ImageEmbedding(nn.Module):
    """Maps CLIP tokens of the given pictures to the width of the transformer."""

    def __init__(self, in_features: int, out_features: int, pos_embed_seq_len: int | None) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(in_features)
        self.ff = FeedForward(in_features, out_features, mult=1, activation_fn="gelu")
        self.norm2 = FP32LayerNorm(out_features)
        self.pos_embed = None
        if pos_embed_seq_len is not None:
            self.pos_embed = nn.Parameter(torch.zeros(1, pos_embed_seq_len, in_features))

    def forward(self, image_tokens: Tensor) -> Tensor:
        """``batch image_seq image_dim`` to ``batch image_seq dim``."""
        if self.pos_embed is not None:
            image_tokens = image_tokens + self.pos_embed
        return self.norm2(self.ff(self.norm1(image_tokens)))


class ConditionEmbedding(nn.Module):
    """Embeds timesteps, text and picture tokens."""

    def __init__(
        self,
        dim: int,
        *,
        freq_dim: int,
        text_dim: int,
        image_dim: int | None,
        pos_embed_seq_len: int | None,
    ) -> None:
        super().__init__()
        self.timesteps_proj = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")
        self.image_embedder = None
        if image_dim is not None:
            self.image_embedder = ImageEmbedding(image_dim, dim, pos_embed_seq_len)

    def embed_time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, TimeEmbedding]:
        """Embed each distinct timestep once.

        Args:
            timestep: ``batch`` or ``batch tokens``.
            dtype: What the blocks compute in.

        Returns:
            The embedding ``rows dim`` for the output layer and the one for the blocks.
        """
        row_of_token = None
        if timestep.ndim == 2:
            timestep, row_of_token = timestep.unique(return_inverse=True)
        weight_dtype = self.time_embedder.linear_1.weight.dtype
        # 1000 levels are too fine for bfloat16: this small part ignores autocast, as in Wan.
        device = timestep.device.type
        has_autocast = torch.amp.is_autocast_available(device)  # the meta device has none
        with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            frequencies = self.timesteps_proj(timestep)
            if weight_dtype.is_floating_point:
                frequencies = frequencies.to(weight_dtype)
            embedding = self.time_embedder(frequencies).to(dtype)
        modulation = self.time_proj(self.act_fn(embedding)).unflatten(-1, (6, -1))
        return embedding, TimeEmbedding(modulation, row_of_token)


class PixelDanceTransformerBlock(nn.Module):
    """Self attention, cross attention to the context, feed-forward; modulated by the timestep."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        *,
        cross_attn_norm: bool,
        eps: float,
        added_kv_proj_dim: int | None,
    ) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = PixelDanceAttention(dim, num_heads, eps=eps, is_cross_attention=False)
        self.attn2 = PixelDanceAttention(
            dim,
            num_heads,
            eps=eps,
            is_cross_attention=True,
            added_kv_proj_dim=added_kv_proj_dim,
        )
        self.norm2 = FP32LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: BlockContext,
        temb: TimeEmbedding,
        rotary_emb: Tensor,
    ) -> Tensor:
        """One block on tokens ``batch tokens dim``."""
        # Adaptive layer norm: DiT, section 3.2.
        rows = (self.scale_shift_table + temb.modulation.float()).unbind(dim=1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = map(temb.broadcast, rows)

        normed = modulated_norm(hidden_states, shift, scale, self.norm1.eps)
        update = self.attn1(normed, rotary_emb=rotary_emb)
        hidden_states = gated_residual(hidden_states, update, gate)

        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states)

        normed = modulated_norm(hidden_states, ffn_shift, ffn_scale, self.norm3.eps)
        return gated_residual(hidden_states, self.ffn(normed), ffn_gate)


class PixelDanceTransformer3DModel(
    ModelMixin,
    ConfigMixin,
    PeftAdapterMixin,
    FromOriginalModelMixin,
    CacheMixin,
    AttentionMixin,
):
    """Predicts the velocity of a latent video; see the module's description.

    Args:
        patch_size: Latent frames, rows and columns per token.
        num_attention_heads: Heads; the width is heads times ``attention_head_dim``.
        attention_head_dim: Channels per head, even.
        in_channels: Channels of the input (noisy latents, then mask and condition latents).
        out_channels: Channels of the velocity; None means ``in_channels``.
        text_dim: Channels of the text tokens.
        freq_dim: Channels of the sinusoidal timestep embedding.
        ffn_dim: Inner width of the feed-forward layers.
        num_layers: Number of blocks.
        cross_attn_norm: Whether tokens are normalised before cross attention.
        qk_norm: Only ``"rms_norm_across_heads"``, the one Wan uses.
        eps: Added to variances.
        image_dim: Channels of CLIP picture tokens; None if the model takes none.
        added_kv_proj_dim: Channels of the picture keys and values (the width), or None.
        rope_max_seq_len: Largest number of tokens along one axis.
        pos_embed_seq_len: Picture tokens of a (first, last) pair, or None.

    Raises:
        ConfigError: If ``qk_norm`` is unknown, or one of ``image_dim`` and ``added_kv_proj_dim``
            is given without the other.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: ClassVar = ["patch_embedding", "condition_embedder", "norm"]
    _no_split_modules: ClassVar = ["PixelDanceTransformerBlock"]
    _keep_in_fp32_modules: ClassVar = [
        "time_embedder",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar = ["norm_added_q"]
    _repeated_blocks: ClassVar = ["PixelDanceTransformerBlock"]
    _cp_plan: ClassVar = {
        "rope": {0: ContextParallelInput(split_dim=1, expected_dims=5, split_output=True)},
        "blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        "": {"timestep": ContextParallelInput(split_dim=1, expected_dims=2)},
    }

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int | None = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        if qk_norm != "rms_norm_across_heads":
            raise ConfigError(f"qk_norm must be 'rms_norm_across_heads', got {qk_norm!r}.")
        if (image_dim is None) != (added_kv_proj_dim is None):
            raise ConfigError(
                "image_dim and added_kv_proj_dim must be given together or both left out, "
                f"got {image_dim} and {added_kv_proj_dim}."
            )
        dim = num_attention_heads * attention_head_dim
        patch_size = tuple(patch_size)  # type: ignore[assignment]  # a list after loading from JSON
        self.rope = RotaryPositions(attention_head_dim, patch_size, rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(in_channels, dim, patch_size, stride=patch_size)
        self.condition_embedder = ConditionEmbedding(
            dim,
            freq_dim=freq_dim,
            text_dim=text_dim,
            image_dim=image_dim,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        self.blocks = nn.ModuleList(
            PixelDanceTransformerBlock(
                dim,
                ffn_dim,
                num_attention_heads,
                cross_attn_norm=cross_attn_norm,
                eps=eps,
                added_kv_proj_dim=added_kv_proj_dim,
            )
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, (out_channels or in_channels) * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False

    @apply_forward_hook
    @apply_lora_scale("attention_kwargs")
    def prepare_context(
        self,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        *,
        num_real_tokens: Sequence[int] | Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 - read by the decorator
    ) -> TextContext:
        """Compute once what every step of a generation needs of the text and the pictures.

        Args:
            encoder_hidden_states: Text tokens ``batch context_seq text_dim``.
            encoder_hidden_states_image: CLIP tokens ``batch image_seq image_dim``; for a model
                with ``pos_embed_seq_len`` ``2 * batch`` rows, first and last picture in turn.
            num_real_tokens: Real tokens of each batch element, the others being zeros: they are
                then computed once instead of ``context_seq`` times, with the same result.
            attention_kwargs: ``{"scale": float}`` scales the LoRAs, as in :meth:`forward`.

        Returns:
            The ``context`` for :meth:`forward`. With group offloading or FSDP, weights are at
            hand inside forward only, and the keys and values are left to it.

        Raises:
            InputError: If a shape does not fit the model, or if the padding is not zero.
        """
        context = self._check_context(encoder_hidden_states, encoder_hidden_states_image)
        if num_real_tokens is not None:
            counts = [int(n) for n in num_real_tokens]
            text, bias = collapse_padding(context.text, counts)
            context = replace(context, text=text, text_bias=bias)
        sharded = hasattr(self.proj_out.weight, "device_mesh")
        if sharded or _is_group_offload_enabled(self):
            return context
        blocks = cast("list[PixelDanceTransformerBlock]", self.blocks)
        embedded = self._embed_context(context)
        projected = [b.attn2.project_context(e) for b, e in zip(blocks, embedded, strict=True)]
        return replace(context, blocks=tuple(projected))

    def _check_context(self, text: Tensor, image: Tensor | None) -> TextContext:
        config = self.config
        if text.ndim != 3 or text.shape[-1] != config.text_dim:
            raise InputError(
                f"Text tokens must be batch x tokens x {config.text_dim}, got {tuple(text.shape)}."
            )
        if (image is not None) != (config.image_dim is not None):
            needs = "takes no" if config.image_dim is None else "needs"
            raise InputError(f"This model {needs} CLIP tokens (encoder_hidden_states_image).")
        if image is not None:
            rows = text.shape[0] * (1 if config.pos_embed_seq_len is None else 2)
            if image.ndim != 3 or image.shape[::2] != (rows, config.image_dim):
                raise InputError(
                    f"CLIP tokens must be {rows} x tokens x {config.image_dim}, "
                    f"got {tuple(image.shape)}."
                )
            image = image.reshape(text.shape[0], -1, config.image_dim)
        return TextContext(text, image)

    def _embed_context(self, context: TextContext) -> tuple[BlockContext, ...]:
        embed, image = self.condition_embedder, context.image
        shared = BlockContext(
            embed.text_embedder(context.text),
            image if embed.image_embedder is None else embed.image_embedder(image),
            context.text_bias,
        )
        return (shared,) * len(self.blocks)

    def _check_latents(self, hidden_states: Tensor, timestep: Tensor) -> list[int]:
        """Latent frames, rows and columns of tokens."""
        config = self.config
        shape = tuple(hidden_states.shape)
        if len(shape) != 5 or shape[1] != config.in_channels:
            raise InputError(
                f"The model takes batch x {config.in_channels} channels x frames x height x width,"
                f" got {shape}. Latents, mask and condition latents go on the channel axis."
            )
        if any(n % p for n, p in zip(shape[2:], config.patch_size, strict=True)):
            raise InputError(
                f"Latent frames, height and width must be multiples of {config.patch_size}, "
                f"got {shape[2:]}. Choose another size."
            )
        grid = [n // p for n, p in zip(shape[2:], config.patch_size, strict=True)]
        # Under context parallelism each rank is given its own part of per-token timesteps.
        allowed = [(shape[0],), (shape[0], math.prod(grid))]
        if tuple(timestep.shape) not in allowed and self._parallel_config is None:
            raise InputError(
                f"timestep must have shape {allowed[0]} or {allowed[1]} (one per token), "
                f"got {tuple(timestep.shape)}."
            )
        return grid

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 - read by the decorator
        context: TextContext | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity.

        Args:
            hidden_states: Noisy latents and conditions, ``batch in_channels frames height width``.
            timestep: ``1000 * sigma`` per batch element, or per token ``batch tokens``.
            encoder_hidden_states: Text tokens ``batch context_seq text_dim``.
            encoder_hidden_states_image: CLIP tokens, see :meth:`prepare_context`.
            return_dict: Whether to return an object with ``.sample`` instead of a tuple.
            attention_kwargs: ``{"scale": float}`` scales the LoRAs.
            context: From :meth:`prepare_context`, in place of the text and CLIP tokens.

        Returns:
            Velocity ``batch out_channels frames height width``.

        Raises:
            InputError: If a shape does not fit the model, or not exactly one of text and context
                is given.
        """
        grid = self._check_latents(hidden_states, timestep)
        if context is None and encoder_hidden_states is not None:
            context = self._check_context(encoder_hidden_states, encoder_hidden_states_image)
        elif context is None or encoder_hidden_states is not None:
            raise InputError("Give either encoder_hidden_states or context, not both or neither.")
        if context.text.shape[0] != hidden_states.shape[0]:
            raise InputError(
                f"{hidden_states.shape[0]} videos but {context.text.shape[0]} texts were given."
            )
        block_contexts = context.blocks or self._embed_context(context)

        # 1. Tokens, positions and timesteps
        rotary_emb = self.rope(hidden_states)
        hidden_states = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        time, temb = self.condition_embedder.embed_time(timestep, hidden_states.dtype)

        # 2. Blocks
        checkpoint = torch.is_grad_enabled() and self.gradient_checkpointing
        for block, block_context in zip(self.blocks, block_contexts, strict=True):
            arguments = (hidden_states, block_context, temb, rotary_emb)
            if checkpoint:
                hidden_states = self._gradient_checkpointing_func(block, *arguments)
            else:
                hidden_states = block(*arguments)

        # 3. Velocity (with a model spread over devices, the last block's device counts)
        rows = (self.scale_shift_table + time.unsqueeze(1).float()).unbind(dim=1)
        shift, scale = (temb.broadcast(row).to(hidden_states.device) for row in rows)
        hidden_states = modulated_norm(hidden_states, shift, scale, self.norm_out.eps)
        velocity = self._unpatchify(self.proj_out(hidden_states), grid)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _unpatchify(self, tokens: Tensor, grid: list[int]) -> Tensor:
        patch_size = self.config.patch_size
        patches = tokens.reshape(tokens.shape[0], *grid, *patch_size, -1)
        video = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _unchanged(_attention: nn.Module, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """What a skipped attention returns (diffusers' layer-skip hook)."""
    return hidden_states


# diffusers' caches only work on blocks that it knows.
TransformerBlockRegistry.register(
    PixelDanceTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
)
AttentionProcessorRegistry.register(
    PixelDanceAttnProcessor, AttentionProcessorMetadata(skip_processor_output_fn=_unchanged)
)
