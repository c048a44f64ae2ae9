"""Training configuration: typed defaults here, YAML files hold only what differs."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from pixeldance.errors import ConfigError
from pixeldance.instructions import TrainingRecipe

T = TypeVar("T")

_POSITIVE = (
    "max_steps",
    "log_steps",
    "keep_checkpoints",
    "gradient_accumulation_steps",
    "checkpoint_steps",
    "validation_steps",
    "validation_clips",
)
_NOT_NEGATIVE = ("num_workers", "checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer (names of ``PixelDanceTransformer3DModel``).

    Attributes:
        num_attention_heads: Heads of 128 channels.
        attention_head_dim: Channels per head.
        num_layers: Blocks.
        ffn_dim: Inner width of the feed-forward layers.
        text_dim: Channels of the text tokens.
        text_tokens: Text tokens per caption, padding included.
    """

    num_attention_heads: int = 3
    attention_head_dim: int = 128
    num_layers: int = 8
    ffn_dim: int = 1536
    text_dim: int = 384
    text_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """One clip shape and how often it is drawn.

    Attributes:
        height: Pixels, a multiple of 16.
        width: Pixels, a multiple of 16.
        num_frames: ``4k + 1``.
        weight: Relative frequency.
        batch_size: Clips per step.
    """

    height: int = 128
    width: int = 128
    num_frames: int = 17
    weight: float = 1.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 48 or self.height % 16 or self.width % 16:
            raise ConfigError(
                "a bucket's sides must be multiples of 16 and at least 48, "
                f"got {self.height} x {self.width}."
            )
        if self.num_frames < 9 or self.num_frames % 4 != 1:
            raise ConfigError(
                f"a bucket's num_frames must be 4k + 1 and at least 9, got {self.num_frames}."
            )
        if self.batch_size < 1 or self.weight < 0:
            raise ConfigError("a bucket needs batch_size >= 1 and weight >= 0.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    Attributes:
        learning_rate: Peak of AdamW; Muon uses the same, its update being scaled to AdamW's size.
        use_muon: Whether Muon is used at all.
        weight_decay: Decoupled weight decay of the matrices.
        warmup_steps: Steps of linear warm-up.
        decay_fraction: Last part of the run over which the rate falls linearly to zero.
        max_grad_norm: Gradients are clipped to this norm.
        ema_decay: Largest decay of the averaged weights.
    """

    learning_rate: float = 1.0e-3
    use_muon: bool = True
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ConfigError(
                "learning_rate and max_grad_norm must be greater than 0, "
                f"got {self.learning_rate} and {self.max_grad_norm}."
            )
        if min(self.weight_decay, self.warmup_steps) < 0:
            raise ConfigError(
                "weight_decay and warmup_steps must be at least 0, "
                f"got {self.weight_decay} and {self.warmup_steps}."
            )
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction must be in [0, 1], got {self.decay_fraction}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """Training of the codec's refiner.

    Attributes:
        channels: Widths of its U-Net.
        groups_per_clip: Latent frames taken from each clip.
        max_latent_noise: Coarse frames come from latents with noise up to this level, so that the
            refiner forgives what a transformer gets wrong.
        aligned_weight: Weight of the loss on the warped references.
        gradient_weight: Weight of the loss on picture gradients, which keeps edges sharp.
        perceptual_weight: Weight of LPIPS (on one frame per group); needs ``make eval-peers``.
        transformer: Folder of an exported transformer whose own estimates are refined in a part of
            the steps, or None.
        estimated_share: That part.
    """

    channels: tuple[int, int, int] = (80, 112, 160)
    groups_per_clip: int = 2
    max_latent_noise: float = 0.6
    aligned_weight: float = 0.3
    gradient_weight: float = 0.5
    perceptual_weight: float = 0.0
    transformer: str | None = None
    estimated_share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        part: What is trained: the transformer, the codec's refiner, the motion in a clip that
            the refiner builds on, or what a text says of it (the reader: the first of them).
        codec: Folder of the codec (its projection is fixed).
        output_dir: Checkpoints, logs and the exported part go here.
        initial: Folder of exported weights to start from, or None.
        seed: Decides the data and the noise of every step.
        max_steps: Optimizer steps.
        logit_mean: Mean of the normal whose sigmoid is the noise level.
        logit_std: Its standard deviation.
        shift: Timestep shift applied to that level.
        fps: Frames per second of the rendered clips.
        simple_share: Share of the clips that show one actor and a camera that stands still; the
            others are drawn from the whole world, simple ones among them.
        buckets: Clip shapes; every step uses one of them.
        model: The transformer.
        refiner: The refiner.
        recipe: Instructions.
        optimizer: Optimizer and averaging.
        strategy: How several processes share the model: ``ddp`` gives each a copy, ``fsdp2`` a
            shard of every weight; ``auto`` shards only what would fill a GPU (see
            ``distributed.py``). One process always holds the whole model.
        mixed_precision: ``bf16`` computes under autocast, ``no`` in float32. Weights, their
            averages and the optimizers' state are float32 in both.
        gradient_accumulation_steps: Parts into which each process cuts its share of a batch, one
            after the other, to save memory. The batch is the bucket's whatever this is.
        gradient_checkpointing: Whether activations of the blocks are computed again in the
            backward pass instead of kept.
        compile_blocks: Whether the repeated blocks are compiled.
        num_workers: Processes that render clips, for each training process; 0 renders in it.
        checkpoint_steps: Steps between checkpoints, or None.
        checkpoint_minutes: Minutes between checkpoints (0: after every step), or None. A run is
            also saved at its end and when it is told to stop (SIGTERM).
        keep_checkpoints: How many are kept.
        log_steps: Steps between log lines.
        tensorboard: Whether the log also goes to TensorBoard.
        peak_tflops: Dense bf16 peak of one device in TFLOP/s, for the utilisation in the log of
            devices that are not known by name.
        validation_steps: Steps between sheets of held-out clips, or None for none.
        validation_clips: Clips on such a sheet.
    """

    part: Literal["transformer", "refiner", "motion", "reader"] = "transformer"
    codec: str = "weights/pixeldance-mini/vae"
    output_dir: str = "runs/transformer"
    initial: str | None = None
    seed: int = 0
    max_steps: int = 10000
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 2.0
    fps: int = 12
    simple_share: float = 0.0
    buckets: tuple[BucketConfig, ...] = (BucketConfig(),)
    model: ModelConfig = field(default_factory=ModelConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    mixed_precision: Literal["bf16", "no"] = "bf16"
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    compile_blocks: bool = True
    num_workers: int = 1
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 5.0
    keep_checkpoints: int = 2
    log_steps: int = 50
    tensorboard: bool = False
    peak_tflops: float | None = None
    validation_steps: int | None = None
    validation_clips: int = 4

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ConfigError(
                "buckets must name at least one clip shape. Leave it out for 128x128."
            )
        for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
            for name in names:
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ConfigError(f"{name} must be at least {least}, got {value}.")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ConfigError(f"peak_tflops must be greater than 0, got {self.peak_tflops}.")
        if self.part != "transformer":
            self._check_small_part()
        if self.part in ("motion", "reader") and self.validation_steps is not None:
            raise ConfigError(
                f"validation_steps shows clips, and the {self.part} makes none. Leave it out."
            )

    def _check_small_part(self) -> None:
        """Refuse what is made for the transformer's blocks."""
        if self.strategy == "fsdp2":
            raise ConfigError(
                "strategy 'fsdp2' shards transformer blocks; the other parts are small and have "
                "scalar weights, which cannot be sharded. Use 'ddp' or 'auto'."
            )
        if self.gradient_checkpointing:
            raise ConfigError(
                "gradient_checkpointing is for the transformer's blocks; the other parts have "
                "none. Leave it out, or raise gradient_accumulation_steps to save memory."
            )


def load_config(path: str | Path) -> TrainConfig:
    """Read a YAML file of differences from the defaults.

    Args:
        path: The file; an empty one gives the defaults.

    Returns:
        The whole configuration.

    Raises:
        ConfigError: If the file is missing, a key is unknown or a value has the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No training config {path}. Those of the project are in configs/.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return build(TrainConfig, values, where="")


def build(kind: type[T], values: Any, *, where: str) -> T:
    """A dataclass from a mapping; unknown keys and wrong types are errors."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the config'} must be a mapping of names to values.")
    types_of = typing.get_type_hints(kind)
    for key in values:
        if key not in types_of:
            close = difflib.get_close_matches(str(key), types_of, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(types_of)}."
            raise ConfigError(f"Unknown key '{where}{key}'.{hint}")
    return kind(**{k: _convert(types_of[k], v, f"{where}{k}") for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, where=f"{where}.")
    if origin is tuple and isinstance(value, list):
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = (arguments[0],) * len(value) if repeated else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(pairs))
    if origin is Literal:
        if value is False and "no" in arguments:  # YAML 1.1 reads a bare `no` as False
            return "no"
        if value in arguments:
            return value
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if is_mapping and isinstance(value, Mapping):
        return {
            _convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}.{k}")
            for k, v in value.items()
        }
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    expected = (
        " or ".join(map(repr, arguments)) if origin is Literal else getattr(kind, "__name__", kind)
    )
    raise ConfigError(f"'{where}' must be {expected}, got {value!r}.")
