"""The form: a widget per field of the request that the page offers."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import gradio as gr

from pixeldance.geometry import duration_of
from pixeldance.request import GenerationRequest

__all__ = ["PICTURES", "request_of", "request_widgets"]

PICTURES = ("first_frame", "last_frame")


def request_widgets() -> dict[str, gr.Component]:
    """A widget per field that can be set; defaults, limits and help are the request's own."""
    with gr.Row():
        widgets = {
            name: gr.Image(label=_options(name)["info"], sources=["upload", "clipboard"])
            for name in PICTURES
        }
    widgets["prompt"] = gr.Textbox(**_options("prompt"), lines=2)
    default = GenerationRequest()
    seconds = f"{duration_of(default.resolved_num_frames, default.fps):.2f}"
    with gr.Row():
        widgets["duration"] = gr.Number(**_options("duration"), placeholder=seconds)
        # Text, because a browser rounds numbers above 2**53.
        widgets["seed"] = gr.Textbox(**_options("seed"), placeholder="random")
    with gr.Row():
        strength = gr.Slider(**_options("last_frame_strength"), step=0.05)
        widgets["last_frame_strength"] = strength
        widgets["num_inference_steps"] = gr.Slider(**_options("num_inference_steps"), step=1)
        widgets["guidance_scale"] = gr.Number(**_options("guidance_scale"), step=0.5)
    return widgets


def _options(name: str) -> dict[str, Any]:
    field = GenerationRequest.model_json_schema()["properties"][name]
    return {
        "label": name.replace("_", " ").capitalize(),
        "info": field["description"],
        "value": field["default"],
        **{limit: field[limit] for limit in ("minimum", "maximum") if limit in field},
    }


def request_of(values: Mapping[str, Any]) -> GenerationRequest:
    """The request of the widgets' values; what is left empty keeps its default."""
    fields = {name: value for name, value in values.items() if value not in (None, "")}
    for name in fields.keys() & set(PICTURES):
        fields[name] = fields[name]["path"]
    if "seed" in fields:
        with suppress(ValueError):  # what is not a number is for the request to refuse
            fields["seed"] = int(fields["seed"])
    return GenerationRequest.parse(fields)
