"""Where everything is on the page."""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from pixeldance.request import GenerationRequest
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.form import WIDGETS, FormPictures, clip_size, summary_of
from pixeldance.server.studio.markup import button, note
from pixeldance.server.studio.pad import Pad, build_pad
from pixeldance.server.studio.panels import PANELS, Seen
from pixeldance.server.studio.story_panel import STORY_CONNECT, story_html
from pixeldance.server.studio.wells import wells_html
from pixeldance.server.studio.widgets import (
    advanced_widgets,
    main_widgets,
    shape_widgets,
)

__all__ = ["PageParts", "build_layout"]

CONNECT = (
    "studio.connect(element, upload, watch, {act: (data) => trigger('act', data), "
    "form: (data) => trigger('form', data), show: (data) => trigger('show', data)});"
)
"""Has the buttons of a panel trigger its events."""

STORAGE_KEY = "pixeldance-studio"
# Gradio encrypts what the browser keeps, with a key that is in the page anyway; a fixed one lets
# drafts outlive the server.
STORAGE_SECRET = "pixeldance-draft"


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """The components of the page.

    Attributes:
        widgets: Widgets of the form by name.
        preset: Choice of a quality.
        dice: Draws a seed.
        wells: First and last picture.
        keyframes: List of key frames.
        draw: Opens the drawing pad.
        pad: The drawing pad.
        pad_area: Around the pad; hidden at first.
        close_pad: Hides it again.
        message: What went wrong or should be known.
        summary: What the form comes to.
        generate: Adds a job, or saves the one that is edited.
        stop: Stops the running job.
        panels: The views of the jobs by name.
        examples: Offers the example.
        search: What the gallery is searched for.
        pictures: Pictures of the form, kept by the browser.
        draft: Values of the widgets, kept by the browser.
        view: What the tab looks at.
        seen: What it shows already.
        timer: Has it look for news.
    """

    widgets: Mapping[str, gr.Component]
    preset: gr.Radio
    dice: gr.Button
    wells: gr.HTML
    keyframes: gr.HTML
    draw: gr.Button
    pad: Pad
    pad_area: gr.Group
    close_pad: gr.Button
    message: gr.HTML
    summary: gr.HTML
    generate: gr.Button
    stop: gr.Button
    panels: Mapping[str, gr.HTML]
    examples: gr.HTML
    search: gr.Textbox
    pictures: gr.BrowserState
    draft: gr.BrowserState
    view: gr.State
    seen: gr.State
    timer: gr.Timer


def build_layout(context: StudioContext) -> PageParts:
    """Lay the page out inside the current ``gr.Blocks``.

    Args:
        context: The service and what goes with it.

    Returns:
        Its components.
    """
    parts: dict[str, object] = {
        "pictures": gr.BrowserState(
            None, storage_key=f"{STORAGE_KEY}-pictures", secret=STORAGE_SECRET
        ),
        "draft": gr.BrowserState(None, storage_key=STORAGE_KEY, secret=STORAGE_SECRET),
        "view": gr.State(View()),
        "seen": gr.State(Seen()),
        "timer": gr.Timer(1.0),
    }
    gr.HTML(
        "<h1>pixeldance</h1><p>First picture, last picture, a sentence: a clip.</p>",
        elem_id="masthead",
    )
    panels = {"model": _panel("model")}
    with gr.Tabs(elem_id="modes"):
        with gr.Tab("Clip"), gr.Row(elem_id="studio"):
            with gr.Column(scale=6, min_width=320, elem_id="form"):
                parts |= _form(context)
            with gr.Column(scale=5, min_width=320, elem_id="stage"):
                for name in ("preview", "live", "viewer"):
                    panels[name] = _panel(name)
                parts["examples"] = _panel("examples", _examples())
        with gr.Tab("Story", render_children=True):
            gr.HTML(
                story_html(context.models, has_two_experts=_has_two_experts(context)),
                elem_id="story",
                elem_classes="studio-panel",
                js_on_load=STORY_CONNECT,
                padding=False,
            )
    gr.HTML("<h2>Queue</h2>", elem_classes="studio-heading")
    panels["queue"] = _panel("queue")
    with gr.Row(elem_id="clips-head"):
        gr.HTML("<h2>Clips</h2>", min_width=100, elem_classes="studio-heading")
        parts["search"] = gr.Textbox(
            label="Search clips",
            show_label=False,
            placeholder="Search prompts",
            container=False,
            max_lines=1,
            min_width=160,
            elem_id="search",
        )
    panels["compare"] = _panel("compare")
    panels["gallery"] = _panel("gallery")
    assert panels.keys() == set(PANELS)
    return PageParts(panels=panels, **parts)  # type: ignore[arg-type]


def _form(context: StudioContext) -> dict[str, object]:
    empty, facts = FormPictures(), context.facts()
    size = clip_size({}, empty, facts)
    url_of = context.urls.picture
    wells = wells_html(empty, size, fit="cover", is_loop=False, url_of=url_of)
    parts: dict[str, object] = {"wells": _panel("wells", wells)}
    widgets = shape_widgets()
    parts["draw"] = gr.Button("Draw the last picture", size="sm", elem_id="draw")
    with gr.Group(visible=False, elem_id="pad-area") as pad_area:
        parts["pad"] = build_pad()
        parts["close_pad"] = gr.Button("Close the pad", size="sm", elem_id="close-pad")
    parts["pad_area"] = pad_area
    main, parts["preset"], parts["dice"] = main_widgets(facts)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        widgets |= main | advanced_widgets(context.models, context.settings.model, facts)
        parts["keyframes"] = _panel("keyframes")
    with gr.Column(elem_id="bar"):
        parts["message"] = _panel("message")
        parts["summary"] = _panel("summary", note(summary_of(GenerationRequest(), size)))
        with gr.Row():
            parts["generate"] = gr.Button(
                "Generate", variant="primary", scale=3, min_width=140, elem_id="generate"
            )
            parts["stop"] = gr.Button(
                "Stop", interactive=False, scale=1, min_width=80, elem_id="stop"
            )
    parts["widgets"] = {name: widgets[name] for name in WIDGETS}
    return parts


def _has_two_experts(context: StudioContext) -> bool:
    """Whether any of the models has."""
    known = [context.facts(model) for model in context.models]
    return any(facts is not None and facts.abilities.has_two_experts for facts in known)


def _panel(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(
        value, elem_id=name, elem_classes="studio-panel", js_on_load=CONNECT, padding=False
    )


def _examples() -> str:
    run = button("Run the example", "act", "run_example", classes="st-main")
    load = button("Put it into the form", "form", "example")
    return (
        '<div class="st-example"><p>New here? A star moves through the desert, from one picture '
        f'to another.</p><div class="st-buttons">{run}{load}</div><p class="st-note">Have a clip '
        "made here? Drop it anywhere on the page and its settings come back.</p></div>"
    )
