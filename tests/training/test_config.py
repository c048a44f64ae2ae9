"""Training files: differences from typed defaults; every mistake is named with its remedy."""

from pathlib import Path

import pytest

import pixeldance
from pixeldance.errors import ConfigError
from pixeldance.training.config import BucketConfig, TrainConfig, load_config


def load(folder: Path, text: str) -> TrainConfig:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == TrainConfig()


def test_only_what_is_written_differs(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        part: refiner
        initial: null
        shift: 3
        buckets:
          - {height: 64, weight: 2}
          - {width: 64, num_frames: 9}
        refiner: {channels: [8, 16, 24]}
        optimizer: {use_muon: false, learning_rate: 1.0e-4}
        recipe: {tasks: {first: 1, text: 0.5}}
        """,
    )
    assert (config.part, config.initial, config.seed) == ("refiner", None, TrainConfig().seed)
    assert (config.shift, type(config.shift)) == (3.0, float)
    assert config.buckets == (
        BucketConfig(height=64, weight=2.0),
        BucketConfig(width=64, num_frames=9),
    )
    assert config.refiner.channels == (8, 16, 24)
    assert config.optimizer.learning_rate == pytest.approx(1e-4)
    assert config.optimizer.ema_decay == TrainConfig().optimizer.ema_decay
    assert config.recipe.tasks == {"first": 1.0, "text": 0.5}


def test_a_text_may_stand_where_none_is_allowed(tmp_path: Path) -> None:
    assert load(tmp_path, "initial: runs/first/export").initial == "runs/first/export"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 5", r"Unknown key 'max_step'\. Did you mean 'max_steps'\?"),
        (
            "optimizer: {learning_rte: 1.0}",
            r"Unknown key 'optimizer\.learning_rte'\. Did you mean 'learning_rate'\?",
        ),
        ("recipe: {window: 3}", r"Unknown key 'recipe\.window'\. Known: .*last_frame_window"),
        ("buckets: [{hight: 64}]", r"Unknown key 'buckets\[0\]\.hight'\. Did you mean 'height'\?"),
        ("7: seven", r"Unknown key '7'\. Known: part, codec,"),
        ("max_steps: many", r"'max_steps' must be int, got 'many'"),
        ("max_steps: 1.5", r"'max_steps' must be int, got 1\.5"),
        ("max_steps: true", r"'max_steps' must be int, got True"),
        ("max_steps: null", r"'max_steps' must be int, got None"),
        # YAML 1.1 reads a number without a point before the exponent as text.
        (
            "optimizer: {learning_rate: 1e-4}",
            r"'optimizer\.learning_rate' must be float, got '1e-4'",
        ),
        ("shift: true", r"'shift' must be float, got True"),
        ("compile_blocks: 1", r"'compile_blocks' must be bool, got 1"),
        ("initial: 3", r"'initial' must be str, got 3"),
        ("codec: null", r"'codec' must be str, got None"),
        (
            "part: vae",
            r"'part' must be 'transformer' or .* or 'reader', got 'vae'",
        ),
        ("optimizer: 3", r"optimizer\.? must be a mapping of names to values"),
        ("buckets: {height: 64}", r"'buckets' must be .*got \{'height': 64\}"),
        ("buckets: [64]", r"buckets\[0\]\.? must be a mapping"),
        ("refiner: {channels: [8, 16]}", r"'refiner\.channels' must be .*got \[8, 16\]"),
        ("refiner: {channels: [8, 16, x]}", r"'refiner\.channels\[2\]' must be int, got 'x'"),
        ("recipe: {tasks: {middle: 1}}", r"'recipe\.tasks' must be .*'first_last'.*got 'middle'"),
        ("recipe: {tasks: {first: yes}}", r"'recipe\.tasks\.first' must be float, got True"),
        ("recipe: {text_drop: 2}", r"text_drop must be in \[0, 1\], got 2\.0"),
        ("- a list", "the config must be a mapping"),
        ("part: [unclosed", "is not valid YAML"),
        ("strategy: fsdp", r"'strategy' must be 'auto' or 'ddp' or 'fsdp2', got 'fsdp'"),
        ("mixed_precision: fp16", r"'mixed_precision' must be 'bf16' or 'no', got 'fp16'"),
        ("{part: refiner, strategy: fsdp2}", r"the other parts are small .*Use 'ddp'"),
        ("{part: motion, validation_steps: 5}", r"validation_steps shows clips"),
        ("{part: refiner, gradient_checkpointing: true}", r"the other parts have none"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_bare_no_is_a_word(tmp_path: Path) -> None:
    # YAML 1.1 reads it as False
    assert load(tmp_path, "mixed_precision: no").mixed_precision == "no"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No training config .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


CONFIGS = Path(pixeldance.__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_files_load(path: Path) -> None:
    config = load_config(path)
    assert config.part == path.stem.split("_")[1]
    for bucket in config.buckets:
        assert bucket.height % 16 == bucket.width % 16 == (bucket.num_frames - 1) % 4 == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("buckets: []", "buckets"),
        ("log_steps: 0", "log_steps"),
        ("max_steps: 0", "max_steps"),
        ("keep_checkpoints: 0", "keep_checkpoints"),
        ("checkpoint_steps: 0", "checkpoint_steps"),
        ("checkpoint_minutes: -1", "checkpoint_minutes"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps"),
        ("num_workers: -1", "num_workers"),
        ("peak_tflops: 0.0", "peak_tflops"),
        ("validation_steps: 0", "validation_steps"),
        ("validation_clips: 0", "validation_clips"),
        ("optimizer: {ema_decay: 1.0}", "ema_decay"),
        ("optimizer: {learning_rate: 0.0}", "learning_rate"),
        ("optimizer: {decay_fraction: 1.5}", "decay_fraction"),
        ("optimizer: {warmup_steps: -1}", "warmup_steps"),
        ("buckets: [{height: 32}]", "sides"),
        ("buckets: [{width: 100}]", "sides"),
        ("buckets: [{num_frames: 5}]", "num_frames"),
        ("buckets: [{num_frames: 16}]", "num_frames"),
        ("buckets: [{batch_size: 0}]", "batch_size"),
    ],
)
def test_values_out_of_range_are_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config(path)
