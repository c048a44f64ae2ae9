"""The widgets of the form that are Gradio's own; defaults and limits are the request's."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from pixeldance.backbones.facts import ModelFacts
from pixeldance.geometry import duration_of
from pixeldance.request import GenerationRequest
from pixeldance.server.studio.form import WIDGETS
from pixeldance.server.studio.presets import presets_of

__all__ = [
    "advanced_widgets",
    "advised_values",
    "default_values",
    "main_widgets",
    "shape_widgets",
    "usable_draft",
]

_PROPERTIES = GenerationRequest.model_json_schema()["properties"]


def default_values(model: str, facts: ModelFacts | None = None) -> dict[str, Any]:
    """Values of a form that nobody has touched.

    Args:
        model: Name of the model.
        facts: What is known of it; its authors' advice takes the place of the defaults.

    Returns:
        Values by name.
    """
    request = GenerationRequest()
    return {
        **{name: getattr(request, name) for name in WIDGETS if name in _PROPERTIES},
        "duration": round(duration_of(request.resolved_num_frames, request.fps), 2),
        "seed": "",
        "is_seed_locked": False,
        "is_loop": False,
        "model": model,
        **({} if facts is None else advised_values(facts)),
    }


def advised_values(facts: ModelFacts) -> dict[str, Any]:
    """Values that suit a model.

    Args:
        facts: The model.

    Returns:
        Values by name, and the length that the default number of frames then has.
    """
    frames = GenerationRequest().resolved_num_frames
    return {
        **facts.advice._asdict(),
        "duration": round(duration_of(frames, facts.advice.fps), 2),
        "guidance_scale_2": None,
    }


def shape_widgets() -> dict[str, gr.Component]:
    """Loop, shape and fitting: what belongs to the pictures."""
    with gr.Row():
        return {
            "is_loop": gr.Checkbox(
                label="Loop", info="It ends as it starts.", min_width=90, elem_id="loop"
            ),
            "aspect_ratio": gr.Dropdown(
                _PROPERTIES["aspect_ratio"]["enum"],
                label="Shape",
                info="auto: as the first picture",
                value="auto",
                min_width=110,
                elem_id="aspect-ratio",
            ),
            "fit": gr.Radio(
                [("Crop", "cover"), ("Borders", "contain")],
                label="Pictures of other shapes",
                value="cover",
                min_width=140,
                elem_id="fit",
            ),
        }


def main_widgets(
    facts: ModelFacts | None = None,
) -> tuple[dict[str, gr.Component], gr.Radio, gr.Button]:
    """Prompt, last frame, length, quality and seed.

    Args:
        facts: What is known of the model that is chosen at first.

    Returns:
        Widgets by name, the choice of a preset, and the dice.
    """
    values = default_values("", facts)
    widgets: dict[str, gr.Component] = {
        "prompt": gr.Textbox(
            label="What happens",
            placeholder="a glowing star moves to the right, in the desert at dawn",
            lines=2,
            max_lines=6,
            elem_id="prompt",
        ),
        "last_frame_strength": gr.Slider(
            **_limits("last_frame_strength"),
            step=0.05,
            label="Last picture: loose ↔ exact",
            info="1 ends exactly on it. Lower values use it only for that part of the steps, so "
            "that the clip drifts towards it.",
            value=1.0,
            buttons=[],
            elem_id="strength",
        ),
    }
    with gr.Row():
        widgets["duration"] = gr.Number(
            label="Seconds", value=values["duration"], step=0.1, min_width=100, elem_id="duration"
        )
        preset = gr.Radio(
            list(presets_of(facts)),
            label="Quality",
            value="Standard",
            min_width=240,
            elem_id="preset",
        )
    with gr.Row(elem_id="seed-row"):
        widgets["seed"] = gr.Textbox(
            label="Seed", placeholder="random", min_width=120, scale=3, elem_id="seed"
        )
        widgets["is_seed_locked"] = gr.Checkbox(
            label="Keep it", info="Same seed again", min_width=110, scale=2, elem_id="seed-lock"
        )
        dice = gr.Button("New seed", size="sm", min_width=90, scale=1, elem_id="dice")
    return widgets, preset, dice


def advanced_widgets(
    models: Sequence[str], model: str, facts: ModelFacts | None = None
) -> dict[str, gr.Component]:
    """What most people leave alone.

    Args:
        models: Models to choose from.
        model: The one that is chosen at first.
        facts: What is known of that one.

    Returns:
        Widgets by name.
    """
    values = default_values(model, facts)
    with gr.Row():
        steps = gr.Slider(
            **_limits("num_inference_steps"),
            step=1,
            label="Steps",
            value=values["num_inference_steps"],
            buttons=[],
            min_width=200,
            elem_id="steps",
        )
        guidance = gr.Number(
            label="Guidance",
            info="1 is off; above 1 takes twice as long",
            value=values["guidance_scale"],
            step=0.5,
            min_width=140,
            elem_id="guidance",
        )
        guidance_2 = gr.Number(
            label="Guidance of the second expert",
            info="as the first one's if empty",
            value=None,
            step=0.5,
            min_width=140,
            visible=facts is not None and facts.abilities.has_two_experts,
            elem_id="guidance-2",
        )
    negative = gr.Textbox(
        label="Negative prompt",
        info="What the clip should not show; needs a guidance above 1.",
        elem_id="negative-prompt",
    )
    with gr.Row():
        width = gr.Number(label="Width", placeholder="auto", min_width=90, elem_id="width")
        height = gr.Number(label="Height", placeholder="auto", min_width=90, elem_id="height")
        fps = gr.Number(label="Frames per second", value=values["fps"], min_width=90, elem_id="fps")
        count = gr.Number(
            label="Variations", value=values["num_videos"], min_width=90, elem_id="variations"
        )
    chosen = gr.Dropdown(list(models), label="Model", value=model, elem_id="model")
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_scale_2": guidance_2,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "fps": fps,
        "num_videos": count,
        "model": chosen,
    }


def usable_draft(draft: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a browser has kept, as far as widgets can show them.

    Args:
        draft: Values in the order of ``WIDGETS``, or anything else: it comes from a browser.
        defaults: Values for those that cannot be shown.

    Returns:
        Values by name.
    """
    if not isinstance(draft, list) or len(draft) != len(WIDGETS):
        return dict(defaults)
    kept = dict(defaults)
    for name, value in zip(WIDGETS, draft, strict=True):
        default = defaults[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, str | bool):
            is_fit = type(value) is type(default)
        else:
            is_fit = is_number or value is None
        if is_fit:
            kept[name] = value
    choices = {"aspect_ratio": _PROPERTIES["aspect_ratio"]["enum"], "fit": ["cover", "contain"]}
    for name, allowed in choices.items():
        if kept[name] not in allowed:
            kept[name] = defaults[name]
    return kept


def _limits(name: str) -> dict[str, Any]:
    field = _PROPERTIES[name]
    return {limit: field[limit] for limit in ("minimum", "maximum") if limit in field}
