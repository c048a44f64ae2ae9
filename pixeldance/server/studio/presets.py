"""Qualities that can be chosen by name."""

from collections.abc import Mapping
from typing import NamedTuple

from pixeldance.backbones.facts import ModelFacts
from pixeldance.request import GenerationRequest

__all__ = ["PRESETS", "Preset", "preset_named_by", "presets_of"]


class Preset(NamedTuple):
    """The settings that stand behind a quality."""

    num_inference_steps: int
    guidance_scale: float


_FIELDS = GenerationRequest.model_fields

PRESETS = {
    "Draft": Preset(4, 1.0),
    "Standard": Preset(_FIELDS["num_inference_steps"].default, _FIELDS["guidance_scale"].default),
    "Best": Preset(24, 1.0),
}
"""Presets by name, the fastest first."""


def presets_of(facts: ModelFacts | None) -> dict[str, Preset]:
    """The presets of a model.

    Args:
        facts: The model, if it is known.

    Returns:
        ``PRESETS``; for a Wan checkpoint what its authors advise, and half as many steps.
    """
    if facts is None or not facts.is_released:
        return PRESETS
    steps, scale, _ = facts.advice
    return {"Draft": Preset(steps // 2, scale), "Standard": Preset(steps, scale)}


def preset_named_by(
    presets: Mapping[str, Preset], num_inference_steps: object, guidance_scale: object
) -> str | None:
    """The preset that has just these settings.

    Args:
        presets: Presets by name.
        num_inference_steps: Sampling steps.
        guidance_scale: Guidance.

    Returns:
        Its name; None for settings of one's own.
    """
    given = (num_inference_steps, guidance_scale)
    return next((name for name, preset in presets.items() if preset == given), None)
