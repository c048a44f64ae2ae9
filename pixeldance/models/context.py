"""What the video attends to besides itself: text and given pictures, once per generation.

References:
    Wan, https://arxiv.org/abs/2503.20314 (text and pictures enter through cross attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixeldance.errors import InputError

__all__ = ["BlockContext", "KeysValues", "TextContext", "collapse_padding"]


class KeysValues(NamedTuple):
    """Keys and values of one cross attention, each ``batch context_seq heads head_dim``."""

    key: Tensor
    value: Tensor


class BlockContext(NamedTuple):
    """What one block attends to besides the video.

    Attributes:
        text: Text tokens ``batch context_seq dim``, or their keys and values for this block.
        image: Tokens of the given pictures in the same two forms, or None.
        text_bias: Added to the attention logits, ``batch 1 1 context_seq``, or None.
    """

    text: Tensor | KeysValues
    image: Tensor | KeysValues | None = None
    text_bias: Tensor | None = None


@dataclass(frozen=True)
class TextContext:
    """What depends on the text and the given pictures only, computed once per generation.

    It holds what the weights were when it was prepared: prepare it anew after loading a LoRA.

    Attributes:
        text: Text tokens before the text MLP, ``batch context_seq text_dim``.
        image: CLIP tokens of the given pictures, ``batch image_seq image_dim``, or None.
        text_bias: Added to the text logits, ``batch 1 1 context_seq``, or None.
        blocks: Keys and values of every block; None if each forward has to compute them.
    """

    text: Tensor
    image: Tensor | None = None
    text_bias: Tensor | None = None
    blocks: tuple[BlockContext, ...] | None = None

    def select(self, indices: Sequence[int]) -> TextContext:
        """Context of the given batch elements, in that order; repeats are allowed."""

        def pick(entry: Any) -> Any:
            if entry is None:
                return None
            if isinstance(entry, Tensor):
                return entry[torch.as_tensor(indices, device=entry.device)]
            if isinstance(entry, (BlockContext, KeysValues)):
                return type(entry)(*map(pick, entry))
            return tuple(map(pick, entry))

        return TextContext(*map(pick, (self.text, self.image, self.text_bias, self.blocks)))


def collapse_padding(text: Tensor, num_real_tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Keep one of the equal padding tokens and a bias that counts it as often as it was there.

    n equal keys with logit z weigh n exp(z) = exp(z + log n) in the softmax and share one value,
    so attention over the result is exactly attention over ``text``.

    Args:
        text: ``batch context_seq text_dim``, zeros after each element's real tokens.
        num_real_tokens: Real tokens of each batch element.

    Returns:
        The shorter text and its bias ``batch 1 1 context_seq`` (None if nothing was padded).

    Raises:
        InputError: If a number does not fit the text, or if the padding is not zero.
    """
    batch, length, _ = text.shape
    if len(num_real_tokens) != batch or not all(0 <= n <= length for n in num_real_tokens):
        raise InputError(
            f"num_real_tokens must hold {batch} numbers from 0 to {length}, got {num_real_tokens}."
        )
    real = torch.tensor(num_real_tokens, device=text.device)[:, None]
    position = torch.arange(length, device=text.device)
    if bool(text[position >= real].any()):
        raise InputError("Text tokens after the real ones must be zeros. Zero the padding.")
    kept = min(max(num_real_tokens) + 1, length)
    if min(num_real_tokens) == length:
        return text, None
    position = position[:kept]
    padding_bias = torch.where(position == real, (length - real).log(), -torch.inf)
    bias = torch.where(position < real, 0.0, padding_bias)
    return text[:, :kept], bias[:, None, None]
