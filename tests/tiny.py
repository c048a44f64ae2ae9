"""A pipeline of a few thousand random weights, and pictures to give it."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pixeldance.models.codec import LinearVideoCodec
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.pipeline import PixelDancePipeline

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fox", "cat", "jumps", "moves", "left")
Z_DIM = 8
TEXT_DIM = 16


def tiny_pipeline(
    *, text_dim: int = TEXT_DIM, has_text_encoder: bool = True, has_refiner: bool = False
) -> PixelDancePipeline:
    """Always the same weights; its own text encoder, or room for the real one (384 wide).

    Without a refiner the decoder makes no use of the pictures, and takes half of the time.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = PixelDanceTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=2 * Z_DIM + 4,
            out_channels=Z_DIM,
            text_dim=text_dim,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
        )
        codec = LinearVideoCodec(
            z_dim=Z_DIM, refiner_channels=(8, 8, 8) if has_refiner else None, text_dim=text_dim
        )
        components, _ = torch.linalg.qr(torch.randn(codec.components.shape))
        codec.components.data.copy_(components)
        text_encoder = BertModel(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=TEXT_DIM,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        )
    pipeline = PixelDancePipeline(
        transformer=transformer.eval(),
        vae=codec.eval(),
        text_encoder=text_encoder.eval() if has_text_encoder else None,
        tokenizer=tiny_tokenizer() if has_text_encoder else None,
        pixel_budget=48 * 48,
        max_sequence_length=8,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """A picture of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
