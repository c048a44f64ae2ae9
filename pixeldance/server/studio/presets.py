"""Qualities that can be chosen by name."""

from typing import NamedTuple

from pixeldance.request import GenerationRequest

__all__ = ["PRESETS", "Preset", "preset_named_by"]


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


def preset_named_by(num_inference_steps: object, guidance_scale: object) -> str | None:
    """The preset that has just these settings.

    Args:
        num_inference_steps: Sampling steps.
        guidance_scale: Guidance.

    Returns:
        Its name; None for settings of one's own.
    """
    given = (num_inference_steps, guidance_scale)
    return next((name for name, preset in PRESETS.items() if preset == given), None)
