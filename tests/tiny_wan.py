"""Tiny random Wan checkpoints of every released kind, written by diffusers in its own layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_DIM = 16
IMAGE_DIM = 16
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "fox", "cat", "jumps", "moves", "left", "'")


@dataclass(frozen=True)
class Kind:
    """What tells one released checkpoint from another."""

    takes_pictures: bool = True
    has_clip: bool = False
    clip_pictures: int = 1
    has_two_experts: bool = False
    holds: bool = False
    z_dim: int = 4
    flow_shift: float = 3.0


KINDS = {
    "t2v-1.3b": Kind(takes_pictures=False),
    "t2v-a14b": Kind(takes_pictures=False, has_two_experts=True),
    "i2v-14b": Kind(has_clip=True),
    "flf2v-14b": Kind(has_clip=True, clip_pictures=2, flow_shift=5.0),
    "fun-inp": Kind(),
    "i2v-a14b": Kind(has_two_experts=True),
    "ti2v-5b": Kind(holds=True, z_dim=8, flow_shift=5.0),
}


def write_checkpoint(folder: Path, kind: str) -> Path:
    """Always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock_pipeline(KINDS[kind]).save_pretrained(folder)
    return folder


def stock_pipeline(kind: Kind) -> DiffusionPipeline:
    """diffusers' own pipeline of that kind."""
    components: dict[str, Any] = {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2
            )
        ).eval(),
        "vae": tiny_vae(kind).eval(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=kind.flow_shift
        ),
        "transformer": tiny_transformer(kind).eval(),
    }
    if kind.has_two_experts:
        components.update(transformer_2=tiny_transformer(kind).eval(), boundary_ratio=0.9)
    if kind.has_clip:
        components.update(
            image_encoder=CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=IMAGE_DIM,
                    intermediate_size=32,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    image_size=32,
                    patch_size=16,
                )
            ).eval(),
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        )
    if not kind.takes_pictures:
        return WanPipeline(**components)
    return WanImageToVideoPipeline(**components, expand_timesteps=kind.holds)


def tiny_transformer(kind: Kind) -> WanTransformer3DModel:
    """Two blocks; the tables and the last layer are large enough for pictures and text to tell."""
    concatenates = kind.takes_pictures and not kind.holds
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2 * kind.z_dim + 4 if concatenates else kind.z_dim,
        out_channels=kind.z_dim,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=IMAGE_DIM if kind.has_clip else None,
        added_kv_proj_dim=24 if kind.has_clip else None,
        pos_embed_seq_len=10 if kind.clip_pictures == 2 else None,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(1.5)
    return model


def tiny_vae(kind: Kind) -> AutoencoderKLWan:
    """8 x 8 x 4 pixels a latent cell; 16 x 16 x 4 with residual blocks for TI2V-5B."""
    shared: dict[str, Any] = {
        "base_dim": 4,
        "z_dim": kind.z_dim,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.1 * number for number in range(kind.z_dim)],
        "latents_std": [0.5 + 0.1 * number for number in range(kind.z_dim)],
    }
    if not kind.holds:
        return AutoencoderKLWan(**shared)
    return AutoencoderKLWan(
        **shared,
        decoder_base_dim=8,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words in place of pieces; like T5's it ends a text with one token and starts it with none."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


LAYERS = {
    f"{ours}.{layer}": f"{theirs}.{name}"
    for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for layer, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
WIDTHS = {"ffn.net.0.proj": (24, 32), "ffn.net.2": (32, 24)}


def write_lora(path: Path, style: str) -> Path:
    """The same LoRA of rank 2, as three programs name it."""
    weights, generator = {}, torch.Generator().manual_seed(9)
    for block in range(2):
        for layer, original in LAYERS.items():
            inputs, outputs = WIDTHS.get(layer, (24, 24))
            down = torch.randn(2, inputs, generator=generator)
            up = torch.randn(outputs, 2, generator=generator)
            if style == "diffusers":
                names = [f"transformer.blocks.{block}.{layer}.lora_{side}" for side in "AB"]
            elif style == "original":
                names = [f"diffusion_model.blocks.{block}.{original}.lora_{side}" for side in "AB"]
            else:
                flat = f"lora_unet_blocks_{block}_{original.replace('.', '_')}"
                names = [f"{flat}.lora_{side}" for side in ("down", "up")]
                weights[f"{flat}.alpha"] = torch.tensor(2.0)
            weights[f"{names[0]}.weight"], weights[f"{names[1]}.weight"] = down, up
    save_file(weights, path)
    return path
