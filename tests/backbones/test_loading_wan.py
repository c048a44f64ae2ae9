"""Loading: LoRAs, single files, the short way in, and nothing downloaded unasked."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import picture, seeded
from tiny_wan import write_lora
from typer.testing import CliRunner

from pixeldance import api
from pixeldance.backbones.lora import Lora, load_loras, parse_lora
from pixeldance.backbones.single_file import transformer_from_file
from pixeldance.cli import app
from pixeldance.errors import CheckpointError, InputError
from pixeldance.models.hub import is_complete
from pixeldance.models.loading import find_weights, weights_sha256
from pixeldance.pipeline import PixelDancePipeline
from pixeldance.video import read_recipe

Checkpoint = Callable[[str], Path]

REQUEST: dict[str, Any] = {
    "prompt": "a red fox jumps",
    "first_frame": picture(1, 64, 32),
    "height": 32,
    "width": 64,
    "num_frames": 5,
    "num_inference_steps": 2,
    "seed": 3,
}


def fresh(checkpoint: Checkpoint, kind: str) -> PixelDancePipeline:
    pipeline = PixelDancePipeline.from_pretrained(checkpoint(kind))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(pipeline: PixelDancePipeline) -> torch.Tensor:
    options = {key: value for key, value in REQUEST.items() if key != "seed"}
    result: torch.Tensor = pipeline(**options, generator=seeded(0), output_type="latent").frames
    return result


# ---- LoRAs


@pytest.mark.parametrize("style", ["diffusers", "original", "kohya"])
def test_a_lora_is_added_to_the_weights_whatever_its_format(
    checkpoint: Checkpoint, tmp_path: Path, style: str
) -> None:
    path = write_lora(tmp_path / "style.safetensors", style)
    reference = write_lora(tmp_path / "reference.safetensors", "diffusers")
    pipeline = fresh(checkpoint, "i2v-a14b")
    plain = latents_of(pipeline)
    for model in (pipeline.transformer, pipeline.transformer_2):
        for name, weight in load_file(reference).items():
            if ".lora_A." not in name:
                continue
            layer = model.get_submodule(name.split(".lora_")[0].removeprefix("transformer."))
            up = load_file(reference)[name.replace("lora_A", "lora_B")]
            layer.weight.data += 0.1 * up @ weight
    expected = latents_of(pipeline)
    loaded = fresh(checkpoint, "i2v-a14b")
    load_loras(loaded, [Lora(path, 0.1)])
    torch.testing.assert_close(latents_of(loaded), expected, rtol=0, atol=1e-3)
    assert (expected - plain).abs().max() > 0.1


def test_a_lora_for_one_expert_leaves_the_other_as_it_is(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = write_lora(tmp_path / "fox.safetensors", "original")
    pipeline = fresh(checkpoint, "i2v-a14b")
    load_loras(pipeline, [parse_lora(f"low:{path}:0.5")])
    assert not getattr(pipeline.transformer, "peft_config", None)
    assert list(pipeline.transformer_2.peft_config) == ["lora_0"]


def test_what_an_option_says(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "fox.safetensors", "original")
    assert parse_lora(str(path)) == Lora(path, 1.0, None)
    assert parse_lora(f"{path}:0.7") == Lora(path, 0.7, None)
    assert parse_lora(f"high:{path}:-1") == Lora(path, -1.0, "high")
    with pytest.raises(InputError, match="scale of a LoRA is a number, got 'strong'"):
        parse_lora(f"{path}:strong")
    with pytest.raises(InputError, match=r"is no \.safetensors file"):
        parse_lora(str(tmp_path / "missing.safetensors"))


def test_a_lora_of_another_model_is_refused_and_changes_nothing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    layer = "diffusion_model.blocks.7.self_attn.q.lora_"
    weights = {f"{layer}A.weight": torch.zeros(2, 24), f"{layer}B.weight": torch.zeros(24, 2)}
    save_file(weights, tmp_path / "large.safetensors")
    pipeline = fresh(checkpoint, "fun-inp")
    with pytest.raises(CheckpointError, match=r"large.safetensors is no LoRA .* blocks\.7"):
        load_loras(pipeline, [Lora(tmp_path / "large.safetensors")])
    assert not getattr(pipeline.transformer, "peft_config", None)
    path = write_lora(tmp_path / "fox.safetensors", "original")
    with pytest.raises(InputError, match="for the low expert, but this model has one"):
        load_loras(pipeline, [Lora(path, 1.0, "low")])


# ---- single files


ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn1.to_": "self_attn.",
    "attn2.to_": "cross_attn.",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}


def as_published(name: str) -> str:
    """A weight's name in the files of Wan's authors."""
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace("scale_shift_table", "modulation")


@pytest.mark.parametrize("is_original", [False, True])
def test_a_transformer_from_one_file(
    checkpoint: Checkpoint, tmp_path: Path, is_original: bool
) -> None:
    folder = checkpoint("fun-inp") / "transformer"
    weights = load_file(next(folder.glob("*.safetensors")))
    if is_original:
        weights = {f"model.diffusion_model.{as_published(name)}": w for name, w in weights.items()}
    save_file(weights, tmp_path / "fox.safetensors")
    loaded = transformer_from_file(tmp_path / "fox.safetensors", folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.scale_shift_table.dtype == torch.float32
    expected = fresh(checkpoint, "fun-inp").transformer.state_dict()
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, expected[name].to(weight.dtype), rtol=0, atol=0)


def test_a_file_of_another_kind_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = next((checkpoint("t2v-1.3b") / "transformer").glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"weights differ, patch_embedding\.weight is"):
        transformer_from_file(file, checkpoint("fun-inp") / "transformer")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"0123456789" * 9)
    with pytest.raises(CheckpointError, match="cannot be read as a Wan transformer"):
        transformer_from_file(damaged, checkpoint("fun-inp") / "transformer")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        transformer_from_file(tmp_path / "fox.ckpt", checkpoint("fun-inp") / "transformer")


# ---- the short way in


def test_the_same_request_runs_on_a_wan_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = api.load(checkpoint("i2v-a14b"), device="cpu", dtype="float32")
    assert model.name == "i2v-a14b"
    assert model.memory_plan is not None
    clip = model.generate(**REQUEST, last_frame=picture(2, 64, 32), last_frame_strength=0.5)
    assert clip.frames.shape == (5, 32, 64, 3)
    again = api.rerun(clip.recipe, model=model)
    np.testing.assert_array_equal(again.frames, clip.frames)
    clip.save(tmp_path / "clip.mp4")


def test_a_clip_with_a_lora_is_not_rerun_without_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "fox.safetensors", "kohya")
    folder = checkpoint("i2v-a14b")
    plain = api.load(folder, device="cpu", dtype="float32")
    styled = api.load(folder, device="cpu", dtype="float32", loras=[f"{path}:0.5"])
    clip = styled.generate(**REQUEST)
    assert (clip.frames != plain.generate(**REQUEST).frames).any()
    with pytest.raises(CheckpointError, match="its frames would differ"):
        api.rerun(clip.recipe, model=plain)
    assert plain.sha256 == weights_sha256(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "16gb"}, "memory must be one of auto, 24gb, 12gb, 8gb, got '16gb'"),
        ({"memory": "12gb"}, "runs on the CPU. Leave memory out"),
        ({"loras": ["fox.safetensors"]}, "'fox.safetensors' is no .safetensors file"),
    ],
)
def test_options_that_cannot_be_used(
    checkpoint: Checkpoint, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        api.load(checkpoint("fun-inp"), device="cpu", **options)


def test_memory_has_no_effect_on_the_embedded_model() -> None:
    with pytest.raises(InputError, match="memory 8gb is for Wan checkpoints"):
        api.load("pixeldance-mini", memory="8gb")


# ---- the hub


class Hub:
    """Stands in for the hub: a checkpoint of three files, none or all of them here."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.fetched: list[str] = []

    def snapshot_download(self, hub_id: str, **options: Any) -> Any:
        assert "*.bin" not in options["allow_patterns"]
        if options.get("dry_run"):
            return [SimpleNamespace(will_download=True, file_size=4_100_000_000)] * 20
        if options.get("local_files_only"):
            if self.folder is None:
                raise FileNotFoundError(hub_id)
            return str(self.folder)
        self.fetched.append(hub_id)
        return "fetched"

    def model_info(self, hub_id: str) -> Any:
        return SimpleNamespace(tags=["video", "license:apache-2.0"])

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Hub":
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)
        monkeypatch.setattr("huggingface_hub.model_info", self.model_info)
        return self


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub().install(monkeypatch)
    message = r"takes Wan-AI/Wan: 82.0 GB in 20 files, licence apache-2.0. Run: pixeldance fetch"
    with pytest.raises(CheckpointError, match=message):
        find_weights("Wan-AI/Wan")
    assert hub.fetched == []
    assert find_weights("Wan-AI/Wan", download=True) == Path("fetched")
    assert hub.fetched == ["Wan-AI/Wan"]


def test_what_is_here_is_used_without_asking_the_network(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(checkpoint("fun-inp")).install(monkeypatch)
    assert find_weights("Wan-AI/Wan") == checkpoint("fun-inp")
    assert hub.fetched == []


def test_fetch_tells_the_size_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub().install(monkeypatch)
    refused = CliRunner().invoke(app, ["fetch", "Wan-AI/Wan"], input="n\n")
    assert refused.exit_code == 1
    assert "Wan-AI/Wan: 82.0 GB in 20 files, licence apache-2.0" in refused.stderr
    assert hub.fetched == []
    done = CliRunner().invoke(app, ["fetch", "Wan-AI/Wan", "--yes"])
    assert (done.exit_code, done.stdout) == (0, "fetched\n")
    assert "82.0 GB" in done.stderr


def test_generate_takes_memory_and_loras(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "fox.safetensors", "kohya")
    sizes = ["--height", "32", "--width", "64", "--num-frames", "5", "--steps", "1", "--seed", "1"]
    command = ["generate", "--model", str(checkpoint("fun-inp")), *sizes]
    clips = [str(tmp_path / name) for name in ("plain.mp4", "styled.mp4")]
    plain = CliRunner().invoke(app, [*command, "--output", clips[0]])
    assert plain.exit_code == 0
    assert "Memory: all parts stay on the device; about" in plain.stderr
    styled = CliRunner().invoke(app, [*command, "--output", clips[1], "--lora", f"{path}:0.5"])
    assert styled.exit_code == 0
    recipes = [read_recipe(clip) for clip in clips]
    assert recipes[0]["model"]["sha256"] != recipes[1]["model"]["sha256"]
    assert recipes[0]["frames"]["sha256"] != recipes[1]["frames"]["sha256"]


def test_a_download_that_was_cut_off_is_not_complete(tmp_path: Path) -> None:
    index = {"_class_name": "X", "vae": ["diffusers", "V"], "image_encoder": [None, None]}
    (tmp_path / "vae").mkdir()
    assert not is_complete(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert not is_complete(tmp_path)
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert is_complete(tmp_path)
    shards = {"weight_map": {"a": "v-1.safetensors", "b": "v-2.safetensors"}}
    (tmp_path / "vae" / "v.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "vae" / "v-1.safetensors").touch()
    assert not is_complete(tmp_path)
    (tmp_path / "vae" / "v-2.safetensors").touch()
    assert is_complete(tmp_path)


def test_files_of_the_hub_s_cache_are_not_read_again(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"one")
    model = tmp_path / "snapshot"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    (model / "weights.safetensors").symlink_to(blob)
    before = weights_sha256(model)
    blob.write_bytes(b"two")
    assert weights_sha256(model) == before
