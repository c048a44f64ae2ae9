"""The studio page: a view of the jobs of a service, which goes on without it.

All of its state is the service's, but for the form, which the browser keeps: a reload or a second
tab shows what runs. Pictures and clips come by routes of their own, see ``page_routes``.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import gradio as gr
from fastapi import APIRouter

from pixeldance.jobs import JobService
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.context import StudioContext, draft_pictures
from pixeldance.server.studio.handlers import Handlers
from pixeldance.server.studio.layout import PageParts, build_layout
from pixeldance.server.studio.media import media_router
from pixeldance.server.studio.pad import pad_css, pad_js
from pixeldance.server.studio.story_routes import story_router

__all__ = ["PageAssets", "build_page", "page_assets", "page_routes"]

UNUSED_FILES_S = (3600, 86400)
"""How often Gradio looks for uploads to remove, and from what age on."""

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
SYSTEM_MONOSPACE_FONTS = ("ui-monospace", "Menlo", "Consolas", "monospace")


@dataclass(frozen=True, kw_only=True)
class PageAssets:
    """What Gradio must be given where the page is mounted.

    Attributes:
        css: Style sheet.
        head: HTML for the head of the document.
        theme: Colours and fonts; nothing of it is fetched from anywhere.
    """

    css: str
    head: str
    theme: gr.themes.Base


def page_assets() -> PageAssets:
    """The page's script, style and theme, for ``gr.mount_gradio_app`` or ``launch``."""
    scripts = "\n".join([pad_js(), _read("studio.js"), _read("story.js")])
    theme = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=SYSTEM_FONTS,
        font_mono=SYSTEM_MONOSPACE_FONTS,
    ).set(
        # Gradio's own subdued greys are too pale to read.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return PageAssets(
        css="\n".join([_read("studio.css"), _read("story.css"), pad_css()]),
        head=f"<style>{_read('studio_frame.css')}</style><script>{scripts}</script>",
        theme=theme,
    )


def page_routes(service: JobService, settings: ServerSettings) -> APIRouter:
    """Routes that the page takes pictures and clips from, and those of its storyboard.

    Args:
        service: The jobs.
        settings: How the server is run.

    Returns:
        Routes for the application that the page is mounted in; they go before it.
    """
    router = APIRouter()
    router.include_router(media_router(service, draft_pictures(service)))
    router.include_router(story_router(StudioContext(service, settings)))
    return router


def build_page(service: JobService, settings: ServerSettings) -> gr.Blocks:
    """Build the page.

    Args:
        service: The jobs.
        settings: How the server is run.

    Returns:
        The page. Where it is mounted, ``page_assets`` and ``page_routes`` are needed as well.
    """
    context = StudioContext(service, settings)
    with gr.Blocks(
        title="pixeldance", analytics_enabled=False, delete_cache=UNUSED_FILES_S, fill_width=True
    ) as page:
        parts = build_layout(context)
        _connect(page, parts, Handlers(context, parts))
    return page


def _connect(page: gr.Blocks, parts: PageParts, handlers: Handlers) -> None:
    """Say what happens on which event."""
    # Nothing waits for anything else, and no event may be called by its name.
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    raw: dict[str, Any] = {**quiet, "preprocess": False}
    widgets = parts.widgets
    values = list(widgets.values())
    form = [parts.pictures, *values]
    hints = [parts.wells, parts.keyframes, parts.summary]
    shown = [*hints, widgets["last_frame_strength"], widgets["guidance_scale_2"]]
    editing = [parts.view, parts.message, parts.generate]
    views = [parts.seen, parts.stop, parts.timer, *parts.panels.values()]

    def look_again(event: Any) -> None:
        event.then(handlers.refresh, [parts.view, parts.seen], views, **quiet)

    page.load(handlers.load, [parts.pictures, parts.draft], [*values, *hints], **raw)
    page.load(handlers.refresh, [parts.view, parts.seen], views, **quiet)
    parts.timer.tick(
        handlers.refresh, [parts.view, parts.seen], views, trigger_mode="once", **quiet
    )

    changes = [widget.change for widget in values]
    gr.on(changes, handlers.hints, form, shown, trigger_mode="always_last", **raw)
    gr.on(changes, None, values, parts.draft, js="(...values) => [values]", **quiet)

    sampling = [widgets["num_inference_steps"], widgets["guidance_scale"]]
    model = widgets["model"]
    chosen = [*sampling, model]
    gr.on([one.change for one in chosen], handlers.show_preset, chosen, parts.preset, **raw)
    parts.preset.input(handlers.take_preset, [parts.preset, model], sampling, **raw)
    advised = [*sampling, widgets["guidance_scale_2"], widgets["fps"], widgets["duration"]]
    model.input(handlers.take_model, model, advised, **raw)
    seed = [widgets["seed"], widgets["is_seed_locked"]]
    parts.dice.click(handlers.roll_dice, None, seed, **quiet)
    widgets["seed"].input(lambda: True, None, widgets["is_seed_locked"], **quiet)

    for panel in (
        parts.wells,
        parts.keyframes,
        parts.message,
        parts.examples,
        *parts.panels.values(),
    ):
        panel.form(
            handlers.form,
            [parts.pictures, parts.view, *values],
            [parts.pictures, *editing, *values],
            **raw,
        ).then(handlers.hints, form, shown, **raw)
        look_again(panel.act(handlers.act, None, None, **quiet))
        look_again(panel.show(handlers.show, parts.view, parts.view, **quiet))
    look_again(
        parts.search.change(handlers.search, [parts.search, parts.view], parts.view, **quiet)
    )

    generated = parts.generate.click(
        handlers.generate,
        [parts.pictures, parts.view, *values],
        [*editing, widgets["seed"]],
        trigger_mode="multiple",
        **raw,
    )
    look_again(generated)
    look_again(parts.stop.click(handlers.stop, None, None, trigger_mode="multiple", **quiet))

    # Draw it: the last picture comes from the drawing pad.
    opened = [parts.pad_area, parts.pad.source, parts.message]
    parts.draw.click(handlers.open_pad, form, opened, **raw)
    parts.close_pad.click(lambda: gr.Group(visible=False), None, parts.pad_area, **quiet)
    parts.pad.used.then(
        handlers.take_drawing,
        [parts.pad.result, parts.pictures],
        [parts.pictures, parts.message, parts.pad_area, widgets["is_loop"]],
        **raw,
    ).then(handlers.hints, form, shown, **raw)


def _read(name: str) -> str:
    return files("pixeldance.server.studio").joinpath(name).read_text(encoding="utf-8")
