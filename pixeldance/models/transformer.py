"""The video transformer: Wan's network (key for key), with a text context computed once per clip.

Weights and configuration are those of diffusers' ``WanTransformer3DModel``: Wan checkpoints and
Wan LoRAs load here, and a checkpoint saved here loads there. What differs is how it is computed:

* text keys and values can be computed once per generation (:meth:`prepare_context`),
* padded text tokens, all equal, become one key with a logarithmic count bias,
* per-token timesteps are embedded once per distinct value,
* text of any length can be combined with image tokens,
* without gradients, :mod:`pixeldance.ops` computes the norms, positions, GELU and attention.

References:
    Wan, https://arxiv.org/abs/2503.20314 (the network);
    DiT, https://arxiv.org/abs/2212.09748 (adaptive layer norm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.activations import GELU
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from pixeldance import ops
from pixeldance.errors import ConfigError, InputError
from pixeldance.models.attention import PixelDanceAttention
from pixeldance.models.context import BlockContext, TextContext, collapse_padding
from pixeldance.models.embeddings import ConditionEmbedding, RotaryPositions, TimeEmbedding

__all__ = ["PixelDanceTransformer3DModel", "TextContext"]


class ContextNorm(FP32LayerNorm):
    """Layer norm in float32 of what attends to the context."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise the last axis."""
        return ops.layer_norm(inputs, self.weight, self.bias, self.eps)


class GELUProjection(GELU):
    """The first layer of the feed-forward network, with GELU by its tanh approximation."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``batch tokens dim`` to ``batch tokens ffn_dim``."""
        return ops.gelu_linear(hidden_states, self.proj)


class FeedForward(nn.Module):
    """Two layers with GELU; names as in Wan's state dict."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        expand = GELUProjection(dim, inner_dim, approximate="tanh")
        self.net = nn.Sequential(expand, nn.Dropout(0.0), nn.Linear(inner_dim, dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``batch tokens dim`` to the same."""
        return self.net(hidden_states)


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
        self.norm2 = ContextNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, ffn_dim)
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

        normed = ops.modulated_norm(hidden_states, shift, scale, self.norm1.eps)
        update = self.attn1(normed, rotary_emb=rotary_emb)
        hidden_states = ops.gated_residual(hidden_states, update, gate)

        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states)

        normed = ops.modulated_norm(hidden_states, ffn_shift, ffn_scale, self.norm3.eps)
        return ops.gated_residual(hidden_states, self.ffn(normed), ffn_gate)


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
    _cp_plan: dict[str, Any] = {  # noqa: RUF012 - read by diffusers; parallel.py narrows it
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
        hidden_states = ops.modulated_norm(hidden_states, shift, scale, self.norm_out.eps)
        velocity = self._unpatchify(self.proj_out(hidden_states), grid)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _unpatchify(self, tokens: Tensor, grid: list[int]) -> Tensor:
        patch_size = self.config.patch_size
        patches = tokens.reshape(tokens.shape[0], *grid, *patch_size, -1)
        video = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)


# diffusers' caches only work on blocks that it knows.
TransformerBlockRegistry.register(
    PixelDanceTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
)
