"""UMT5 token states as Wan checkpoints were trained with them.

References:
    Wan, https://arxiv.org/abs/2503.20314, section 4.2 (UMT5-XXL, 512 tokens).
"""

import html
import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_SEQUENCE_LENGTH = 512
"""Tokens that every Wan checkpoint sees."""

_STRAIGHT_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def clean_prompt(prompt: str) -> str:
    """A prompt as the checkpoints' training data were cleaned: one form for what looks the same.

    Args:
        prompt: Text as typed or pasted.

    Returns:
        HTML entities replaced, Unicode composed (NFC), quotes straight, white space single.
    """
    text = html.unescape(html.unescape(prompt))
    text = unicodedata.normalize("NFC", text).translate(_STRAIGHT_QUOTES)
    return re.sub(r"\s+", " ", text).strip()


@torch.no_grad()
def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: Sequence[str],
    *,
    max_sequence_length: int = MAX_SEQUENCE_LENGTH,
) -> Tensor:
    """Turn prompts into token states, padded with zeros to one length.

    Padding is masked in the encoder, so only as much of it is computed as the longest prompt needs.
    Of a prompt that is too long the end is not seen; a warning says so.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        text_encoder: UMT5 encoder; it decides device and dtype of the result.
        prompts: Texts; equal ones are encoded once. An empty one has its end token.
        max_sequence_length: Tokens kept of each prompt.

    Returns:
        ``prompts max_sequence_length dim``.
    """
    cleaned = [clean_prompt(prompt) for prompt in prompts]
    unique = list(dict.fromkeys(cleaned))
    _warn_if_cut(tokenizer, unique, max_sequence_length)
    # One by one: the states of a prompt must not depend on its neighbours.
    states = {
        prompt: _encode(tokenizer, text_encoder, prompt, max_sequence_length) for prompt in unique
    }
    any_states = next(iter(states.values()))
    embeds = any_states.new_zeros(len(cleaned), max_sequence_length, any_states.shape[-1])
    for row, prompt in enumerate(cleaned):
        embeds[row, : len(states[prompt])] = states[prompt]
    return embeds


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompt: str,
    max_sequence_length: int,
) -> Tensor:
    """States of the real tokens of one prompt, ``tokens dim``."""
    tokens: Any = tokenizer(
        [prompt], truncation=True, max_length=max_sequence_length, return_tensors="pt"
    )
    # An offloaded encoder computes on another device than it lies on.
    device = get_module_execution_device(text_encoder)
    states: Tensor = text_encoder(
        tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
    ).last_hidden_state[0]
    return states


def _warn_if_cut(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_sequence_length: int
) -> None:
    ids: Any = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
    for prompt, tokens in zip(prompts, ids, strict=True):
        if len(tokens) > max_sequence_length:
            logger.warning(
                "The prompt has %d tokens, the model sees %d. Its end is not seen: %r. Shorten it.",
                len(tokens),
                max_sequence_length,
                prompt[-40:],
            )
