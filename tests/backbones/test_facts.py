"""What is known of a checkpoint before it is loaded agrees with what is true afterwards."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import picture
from tiny_wan import KINDS

from pixeldance import api
from pixeldance.backbones.facts import Abilities, Advice, ModelFacts, installed_facts
from pixeldance.backbones.lora import parse_lora
from pixeldance.backbones.options import ModelOptions
from pixeldance.errors import CheckpointError, InputError
from pixeldance.geometry import Size
from pixeldance.models.loading import weights_sha256
from pixeldance.pipeline import PixelDancePipeline
from pixeldance.request import GenerationRequest
from pixeldance.stories import Target

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_says_what_the_loaded_checkpoint_can_do(
    checkpoint: Checkpoint, ours: Callable[[str], PixelDancePipeline], kind: str
) -> None:
    facts, backbone = ModelFacts.read(str(checkpoint(kind))), ours(kind).backbone
    assert facts.is_released
    assert facts.abilities == backbone.abilities
    assert facts.pixel_budget == backbone.pixel_budget
    assert facts.size_multiple == backbone.size_multiple
    sizes = [facts.size_for("9:16", None), facts.size_for("auto", Size(100, 300))]
    shown = {0: picture(1, 300, 100)}
    assert sizes == [ours(kind).size_for("9:16", {}), ours(kind).size_for("auto", shown)]


def test_the_plan_of_a_film_has_the_same_facts(checkpoint: Checkpoint) -> None:
    folder = checkpoint("ti2v-5b")
    found = Target.find(str(folder))
    assert found == Target.of(api.load(folder, device="cpu", dtype="float32"))
    assert (found.size_multiple, found.pixel_budget) == (32, 704 * 1280)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("fun-inp", {"guidance_scale_2": 3.0}, "for models with two experts; this one has one"),
        ("t2v-1.3b", {"first_frame": picture(1)}, "takes no pictures"),
        ("ti2v-5b", {"height": 48, "width": 64}, "height must be a multiple of 32 pixels"),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_is_loaded(
    checkpoint: Checkpoint, kind: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ModelFacts.read(str(checkpoint(kind))).check(GenerationRequest(**fields))


def test_two_experts_have_two_guidance_scales(checkpoint: Checkpoint) -> None:
    facts = ModelFacts.read(str(checkpoint("i2v-a14b")))
    assert facts.abilities == Abilities(takes_pictures=True, has_two_experts=True)
    facts.check(GenerationRequest(guidance_scale_2=3.0, first_frame=picture(1)))


def test_the_authors_advice(checkpoint: Checkpoint) -> None:
    advice = {kind: ModelFacts.read(str(checkpoint(kind))).advice for kind in KINDS}
    assert advice["i2v-a14b"] == Advice(40, 3.5, 16)
    assert advice["ti2v-5b"] == Advice(50, 5.0, 24)
    assert advice["flf2v-14b"] == Advice(50, 5.0, 16)
    assert ModelFacts.read("pixeldance-mini").advice == Advice(8, 1.0, 12)


def test_the_licence_is_that_of_the_card(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    folder.symlink_to(checkpoint("fun-inp"))
    assert ModelFacts.read(str(folder)).licence is None
    copied = tmp_path / "copied"
    copied.mkdir()
    for part in checkpoint("fun-inp").iterdir():
        (copied / part.name).symlink_to(part)
    (copied / "README.md").write_text("---\nlicense: apache-2.0\ntags: [video]\n---\n# Wan\n")
    assert ModelFacts.read(str(copied)).licence == "apache-2.0"


def test_the_fingerprint_follows_weights_and_loras(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = str(checkpoint("i2v-a14b"))
    lora = tmp_path / "fox.safetensors"
    lora.write_bytes(b"one")
    prints = [ModelFacts.read(folder).sha256]
    assert prints == [weights_sha256(folder)]
    for loras in ((f"{lora}",), (f"{lora}:0.5",), (f"low:{lora}:0.5",)):
        prints.append(ModelFacts.read(folder, loras=loras).sha256)
    assert len(set(prints)) == 4
    pipeline = PixelDancePipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "changing")
    changing = str(tmp_path / "changing")
    before = ModelFacts.read(changing).sha256
    (tmp_path / "changing" / "scheduler" / "scheduler_config.json").write_text("{}")
    assert ModelFacts.read(changing).sha256 != before


def test_a_damaged_configuration_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for part in checkpoint("fun-inp").iterdir():
        if part.name != "transformer":
            (tmp_path / part.name).symlink_to(part)
    with pytest.raises(CheckpointError, match=r"config\.json of the model cannot be read"):
        ModelFacts.read(str(tmp_path))
    assert installed_facts(str(tmp_path)) is None, "whoever loads it will say it"


def test_what_is_not_here_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hub_id: str, **options: Any) -> str:
        assert options["local_files_only"]
        raise FileNotFoundError(hub_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert installed_facts("Wan-AI/Wan") is None
    assert installed_facts("no such model") is None
    assert installed_facts("pixeldance-mini") is not None


# ---- options


def test_options_that_have_no_effect_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lora = tmp_path / "fox.safetensors"
    lora.touch()
    mini, wan = ModelFacts.read("pixeldance-mini"), ModelFacts.read(str(checkpoint("fun-inp")))
    with pytest.raises(InputError, match="memory must be one of auto, 24gb, 12gb, 8gb, got '1tb'"):
        ModelOptions(memory="1tb")
    with pytest.raises(InputError, match=r"'no\.safetensors' is no \.safetensors file"):
        ModelOptions(loras=("no.safetensors",))
    with pytest.raises(InputError, match="memory 8gb is for Wan checkpoints and has no effect on"):
        ModelOptions(memory="8gb").check(mini)
    with pytest.raises(InputError, match="is for the low expert, but this model has one"):
        ModelOptions(loras=(f"low:{lora}",)).check(wan)
    ModelOptions(memory="8gb", loras=(str(lora),)).check(wan)


def test_loras_are_for_one_of_several_models(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lora = tmp_path / "fox.safetensors"
    lora.touch()
    options = ModelOptions(device="cpu", memory="12gb", loras=(str(lora),))
    main = str(checkpoint("fun-inp"))
    assert options.of_model(ModelFacts.read(main), main=main) == options
    other = options.of_model(ModelFacts.read(str(checkpoint("i2v-14b"))), main=main)
    assert other == ModelOptions(device="cpu", memory="12gb")
    mini = options.of_model(ModelFacts.read("pixeldance-mini"), main=main)
    assert mini == ModelOptions(device="cpu")


def test_options_survive_the_way_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    options = ModelOptions(dtype="float32", loras=("high:a b.safetensors:0.125",))
    (_, dtype, _, lora) = options.with_whole_paths().arguments()
    assert dtype == "--dtype=float32"
    assert parse_lora(lora.removeprefix("--lora=")) == (tmp_path / "a b.safetensors", 0.125, "high")


def test_facts_and_options_need_no_torch() -> None:
    code = "import sys, pixeldance.backbones.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
