"""Skips the transformer's blocks at steps where they would add what they added a step before.

What all blocks together add to the tokens (the residual) changes slowly between neighbouring steps,
and the growth of its magnitude from step to step hardly depends on prompt, pictures and seed.
MagCache adds up how far it strays and skips until that exceeds a threshold. The growth is measured
here, on the weights that are loaded and with their solver, by one small clip before the first one.

References:
    MagCache, https://arxiv.org/abs/2506.09045
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline, MagCacheConfig
from torch import Tensor

from pixeldance.errors import InputError
from pixeldance.geometry import resolve_size
from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.parallel import suspended

__all__ = [
    "MIN_STEPS",
    "StepCache",
    "cached_steps",
    "calibrate",
    "forget_steps",
    "recorded_threshold",
]

MIN_STEPS = 10
"""With fewer steps, neighbouring ones are too far apart."""
MAX_SKIPPED = 3
"""Steps in a row that may be skipped."""
FIRST_SHARE = 0.2
"""Share of the steps, from the first, that are never skipped: they decide on the composition."""
CALIBRATION_FRAMES = 9
CALIBRATION_SHARE = 0.25
"""Pixels of the calibration clip's frames, as a share of the model's budget."""

_HEAD_HOOK = "mag_cache_leader_block_hook"


class StepCache:
    """MagCache for a pipeline, calibrated on its own weights.

    Args:
        threshold: How far the magnitude may stray, as a sum of relative errors, before the blocks
            are computed again; in (0, 1]. More skips more steps and changes the clip more.

    Raises:
        InputError: If the threshold is out of range.
    """

    def __init__(self, threshold: float) -> None:
        if not 0.0 < threshold <= 1.0:
            raise InputError(
                f"step_cache must be greater than 0 and at most 1, got {threshold}. Try 0.1."
            )
        self.threshold = threshold
        self._growth: dict[int, dict[str, list[float]]] = {}

    def calibrate(self, pipeline: DiffusionPipeline, num_steps: int) -> None:
        """Measure the growth of the residual, unless it is known for this number of steps.

        The clip for it has no prompt and no pictures, so that what is measured does not depend on
        which request comes first.

        Args:
            pipeline: A ``PixelDancePipeline``.
            num_steps: Steps of the solver.

        Raises:
            InputError: If there are too few steps.
        """
        if num_steps < MIN_STEPS:
            raise InputError(
                f"step_cache needs at least {MIN_STEPS} steps, got {num_steps}: with so few, none "
                "can be left out. Leave step_cache out, or take more steps."
            )
        if num_steps in self._growth:
            return
        growth: dict[str, list[float]] = {}
        with ExitStack() as stack:
            stack.enter_context(_alone(pipeline))
            for name, transformer in _transformers(pipeline).items():
                stack.enter_context(suspended(transformer))
                growth[name] = stack.enter_context(_measuring(transformer))
            backbone = pipeline.backbone
            size = resolve_size(
                "16:9",
                pixel_budget=int(backbone.pixel_budget * CALIBRATION_SHARE),
                multiple=backbone.size_multiple,
                first_frame=None,
            )
            words: dict[str, Any] = {"prompt": ""}
            if pipeline.text_encoder is None:
                width = int(pipeline.transformer.config.text_dim)
                words = {"prompt_embeds": torch.zeros(1, 1, width)}
            pipeline(
                **words,
                height=size.height,
                width=size.width,
                num_frames=CALIBRATION_FRAMES,
                num_inference_steps=num_steps,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
        if pipeline.parallel is not None:  # processes that skip different steps would wait forever
            growth = {
                name: pipeline.parallel.broadcast(torch.tensor(values)).tolist()
                for name, values in growth.items()
            }
        self._growth[num_steps] = growth

    @contextmanager
    def skipping(self, pipeline: DiffusionPipeline, num_steps: int) -> Iterator[None]:
        """Skip steps of the transformers meanwhile.

        Args:
            pipeline: The pipeline that was calibrated.
            num_steps: Steps of the solver.

        Yields:
            Nothing.
        """
        cached = []
        try:
            for name, transformer in _transformers(pipeline).items():
                growth = self._growth[num_steps][name]
                if len(growth) < 2:
                    continue
                with suspended(transformer):
                    transformer.enable_cache(
                        MagCacheConfig(
                            threshold=self.threshold,
                            max_skip_steps=MAX_SKIPPED,
                            retention_ratio=FIRST_SHARE,
                            num_inference_steps=len(growth),
                            mag_ratios=growth,
                        )
                    )
                cached.append(transformer)
            yield
        finally:
            for transformer in cached:
                transformer.disable_cache()


def calibrate(pipeline: DiffusionPipeline, num_steps: int) -> None:
    """Calibrate the step cache of a pipeline that has one, see :meth:`StepCache.calibrate`.

    Args:
        pipeline: A ``PixelDancePipeline``.
        num_steps: Steps of the solver.
    """
    if pipeline.step_cache is not None:
        pipeline.step_cache.calibrate(pipeline, num_steps)


def forget_steps(pipeline: DiffusionPipeline) -> None:
    """Have the next step computed: what the transformers are given has changed.

    Args:
        pipeline: The pipeline, while it samples.
    """
    for transformer in _transformers(pipeline).values():
        if transformer.is_cache_enabled:
            first_block: Any = transformer.blocks[0]
            hook = first_block._diffusers_hook.get_hook(_HEAD_HOOK)
            for state in hook.state_manager._state_cache.values():
                state.previous_residual = None


def cached_steps(pipeline: DiffusionPipeline, num_steps: int) -> AbstractContextManager[None]:
    """Skip steps meanwhile, if the pipeline has a step cache.

    Args:
        pipeline: A ``PixelDancePipeline``, calibrated if it has one.
        num_steps: Steps of the solver.

    Returns:
        What to sample in.
    """
    cache: StepCache | None = pipeline.step_cache
    return nullcontext() if cache is None else cache.skipping(pipeline, num_steps)


def recorded_threshold(model: Mapping[str, Any]) -> float | None:
    """The threshold that a clip was made with.

    Args:
        model: What its recipe says of the model.

    Returns:
        The number, not checked, or None for none.

    Raises:
        InputError: If it is no number.
    """
    text = model.get("step_cache")
    try:
        return None if text is None else float(text)
    except (TypeError, ValueError):
        raise InputError(
            f"The recipe is damaged: its step_cache is {text!r}. Make a new request instead."
        ) from None


def _transformers(pipeline: DiffusionPipeline) -> dict[str, PixelDanceTransformer3DModel]:
    named = {name: getattr(pipeline, name) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in named.items() if model is not None}


@contextmanager
def _alone(pipeline: DiffusionPipeline) -> Iterator[None]:
    """A pipeline without cache, and without the other processes."""
    parallel, step_cache = pipeline.parallel, pipeline.step_cache
    pipeline.parallel = pipeline.step_cache = None
    try:
        yield
    finally:
        pipeline.parallel, pipeline.step_cache = parallel, step_cache


@contextmanager
def _measuring(transformer: PixelDanceTransformer3DModel) -> Iterator[list[float]]:
    """Growth of the residual's magnitude from call to call (MagCache, equation 6), from 1.0."""
    growth: list[float] = []
    magnitude: Tensor | None = None
    entered: Tensor | None = None

    def enter(_block: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal entered
        entered = arguments[0]

    def leave(_block: Any, _arguments: tuple[Any, ...], output: Tensor) -> None:
        nonlocal magnitude
        assert entered is not None, "the first block comes before the last"
        now = torch.linalg.vector_norm((output - entered).float(), dim=-1)
        growth.append(1.0 if magnitude is None else float((now / (magnitude + 1e-8)).mean()))
        magnitude = now

    handles = [
        transformer.blocks[0].register_forward_pre_hook(enter),
        transformer.blocks[-1].register_forward_hook(leave),
    ]
    try:
        yield growth
    finally:
        for handle in handles:
            handle.remove()
