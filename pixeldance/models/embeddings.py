"""What the video transformer is told beside the latents: positions, timesteps, text, pictures."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn

from pixeldance.errors import InputError

__all__ = ["ConditionEmbedding", "RotaryPositions", "TimeEmbedding"]


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
