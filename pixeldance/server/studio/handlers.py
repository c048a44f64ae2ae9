"""What happens on the page's events; all of it is done by the parts of the studio."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import gradio as gr
from PIL import Image

from pixeldance.errors import PixelDanceError
from pixeldance.geometry import Size
from pixeldance.pictures import load_picture
from pixeldance.request import GenerationRequest
from pixeldance.server.studio.actions import act, changes_between, running_job
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.form import (
    WIDGETS,
    FormPictures,
    clip_size,
    request_of,
    summary_of,
)
from pixeldance.server.studio.form_events import FormChange, FormEvents, example_request
from pixeldance.server.studio.layout import PageParts
from pixeldance.server.studio.markup import button, note, text
from pixeldance.server.studio.pad import decode_drawing, encode_picture
from pixeldance.server.studio.panels import BUSY_S, IDLE_S, Panels, Seen
from pixeldance.server.studio.presets import preset_named_by, presets_of
from pixeldance.server.studio.wells import keyframes_html, shape_warning, wells_html
from pixeldance.server.studio.widgets import advised_values, default_values, usable_draft

__all__ = ["Handlers"]

Update = dict[Any, Any]
"""New values by component."""


class Handlers:
    """The handlers of a page.

    Values of widgets come raw, since the request says best what is wrong with them.

    Args:
        context: The service and what goes with it.
        parts: The components of the page.
    """

    def __init__(self, context: StudioContext, parts: PageParts) -> None:
        self._context = context
        self._parts = parts
        self._panels = Panels(context)
        self._form_events = FormEvents(context)

    # ---- the form

    def load(self, pictures: Any, draft: Any) -> Update:
        """Show the draft that the browser has kept."""
        context = self._context
        values = usable_draft(draft, default_values(context.settings.model, context.facts()))
        if values["model"] not in context.models:
            values["model"] = context.settings.model
        raw = [values[name] for name in WIDGETS]
        update = self.hints(pictures, *raw)
        for name, value in values.items():
            widget = self._parts.widgets[name]
            update[widget] = {**update[widget], "value": value} if widget in update else value
        return update

    def hints(self, pictures: Any, *raw: Any) -> Update:
        """Show what the form means at the moment."""
        values, given = _named(raw), self._pictures(pictures)
        size = self._size(values, given)
        is_loop = bool(values["is_loop"])
        try:
            request = self._request(values, given)
        except PixelDanceError as error:
            summary = note(self._context.plain(error), kind="warning")
            num_frames = GenerationRequest().resolved_num_frames
        else:
            summary = note(summary_of(request, size))
            num_frames = request.resolved_num_frames
        fit: Literal["cover", "contain"] = "contain" if values["fit"] == "contain" else "cover"
        url_of = self._context.urls.picture
        wells = wells_html(given, size, fit=fit, is_loop=is_loop, url_of=url_of)
        has_last = given.last_of(is_loop=is_loop) is not None
        facts = self._context.facts(values["model"])
        has_two_experts = facts is not None and facts.abilities.has_two_experts
        return {
            self._parts.wells: wells + shape_warning(given, is_loop=is_loop),
            self._parts.keyframes: keyframes_html(given, num_frames, url_of),
            self._parts.summary: summary,
            self._parts.widgets["last_frame_strength"]: gr.update(interactive=has_last),
            self._parts.widgets["guidance_scale_2"]: gr.update(visible=has_two_experts),
        }

    def form(self, event: gr.EventData, pictures: Any, view: View, *raw: Any) -> Update:
        """Carry out what a button does to the form."""
        given, values = self._pictures(pictures), _named(raw)
        num_frames = self._num_frames(values, given)
        try:
            change = self._form_events.handle(_data(event), given, view, num_frames=num_frames)
        except PixelDanceError as error:
            return {self._parts.message: note(self._context.plain(error), kind="problem")}
        return self._changed(change)

    def show_preset(self, steps: Any, guidance: Any, model: Any) -> Any:
        """Show the qualities of a model, and the one that steps and guidance stand for."""
        presets = presets_of(self._context.facts(model))
        return gr.Radio(list(presets), value=preset_named_by(presets, steps, guidance))

    def take_model(self, model: Any) -> Update:
        """Set what the authors of a model advise, when it is chosen."""
        facts = self._context.facts(model)
        values = {} if facts is None else advised_values(facts)
        return {self._parts.widgets[name]: value for name, value in values.items()}

    def take_preset(self, preset: Any, model: Any) -> Update:
        """Set steps and guidance for a quality."""
        presets = presets_of(self._context.facts(model))
        chosen = presets.get(str(preset), presets["Standard"])
        return {self._parts.widgets[name]: value for name, value in chosen._asdict().items()}

    def roll_dice(self) -> Update:
        """Draw a seed and keep it."""
        widgets = self._parts.widgets
        return {widgets["seed"]: str(secrets.randbits(32)), widgets["is_seed_locked"]: True}

    def open_pad(self, pictures: Any, *raw: Any) -> Update:
        """Open the drawing pad on the first picture, the last one, or an empty sheet."""
        given = self._pictures(pictures)
        chosen = given.first_frame or given.last_frame
        size = self._size(_named(raw), given)
        picture = Image.new("RGB", (2 * size.width, 2 * size.height), "white")
        try:
            if chosen is not None:
                picture = load_picture(self._context.drafts.path(chosen))
            source = encode_picture(picture)
        except PixelDanceError as error:
            return {self._parts.message: note(self._context.plain(error), kind="problem")}
        return {self._parts.pad_area: gr.Group(visible=True), self._parts.pad.source: source}

    def take_drawing(self, drawing: Any, pictures: Any) -> Update:
        """Take the drawing as last picture."""
        try:
            picture = decode_drawing(str(drawing or ""))
            kept = self._context.drafts.add(picture, name="drawing.png")
        except PixelDanceError as error:
            return {self._parts.message: note(self._context.plain(error), kind="problem")}
        changed = self._pictures(pictures).with_picture("last_frame", kept)
        return {
            self._parts.pictures: changed.to_json(),
            self._parts.widgets["is_loop"]: False,
            self._parts.pad_area: gr.Group(visible=False),
            self._parts.message: "",
        }

    # ---- the jobs

    def generate(self, pictures: Any, view: View, *raw: Any) -> Update:
        """Add a job, or save the one that is edited."""
        service, values = self._context.service, _named(raw)
        try:
            request = self._request(values, self._pictures(pictures))
            if view.editing is not None:
                job = service.get(view.editing)
                job = service.edit(job.id, changes_between(job, request))
            else:
                self._context.check_room()
                job = service.add(request)
        except PixelDanceError as error:
            return {self._parts.message: note(self._context.plain(error), kind="problem")}
        view = replace(view, clip=None, editing=None)
        return {**self._editing(view), self._parts.widgets["seed"]: str(job.seed)}

    def stop(self) -> None:
        """Stop the running job."""
        job = running_job(self._context.service)
        if job is not None:
            with self._told():
                self._context.service.stop(job.id)

    def act(self, event: gr.EventData) -> None:
        """Carry out what a button does to a job."""
        data = _data(event)
        with self._told():
            if data.get("do") == "run_example":
                self._context.check_room()
                self._context.service.add(example_request())
            else:
                act(self._context.service, data)

    def show(self, event: gr.EventData, view: View) -> View:
        """Look at something else."""
        return view.after(_data(event))

    def search(self, search: Any, view: View) -> View:
        """Search the gallery."""
        return replace(view, search=str(search or "")[:200])

    def refresh(self, view: View, seen: Seen) -> Update:
        """Draw what has changed."""
        news, now = self._panels.news(view, seen)
        update: Update = {self._parts.seen: now}
        update |= {self._parts.panels[name]: html for name, html in news.items()}
        if now.is_running != seen.is_running:
            update[self._parts.stop] = gr.Button(interactive=now.is_running)
            update[self._parts.timer] = gr.Timer(BUSY_S if now.is_running else IDLE_S)
        return update

    # ---- parts of these

    def _pictures(self, pictures: Any) -> FormPictures:
        return FormPictures.from_json(pictures, self._context.drafts)

    def _request(self, values: Mapping[str, Any], pictures: FormPictures) -> GenerationRequest:
        context = self._context
        facts = context.facts(values.get("model"))
        return request_of(values, pictures, context.drafts, models=context.models, facts=facts)

    def _num_frames(self, values: Mapping[str, Any], pictures: FormPictures) -> int:
        try:
            return self._request(values, pictures).resolved_num_frames
        except PixelDanceError:
            return GenerationRequest().resolved_num_frames

    def _size(self, values: Mapping[str, Any], pictures: FormPictures) -> Size:
        try:
            return clip_size(values, pictures, self._context.facts(values.get("model")))
        except PixelDanceError:
            return clip_size({}, pictures)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Show an error as a message that goes away."""
        try:
            yield
        except PixelDanceError as error:
            # Gradio shows messages as HTML.
            raise gr.Error(text(self._context.plain(error)), print_exception=False) from None

    def _changed(self, change: FormChange) -> Update:
        widgets = self._parts.widgets
        return {
            **{widgets[name]: value for name, value in change.values.items()},
            **self._editing(change.view, change.message),
            self._parts.pictures: change.pictures.to_json(),
        }

    def _editing(self, view: View, message: str = "") -> Update:
        """What differs while a job is edited."""
        html = note(message)
        if view.editing is not None:
            stop = button("Leave it as it was", "form", "stop_editing")
            html += f'<div class="st-note st-hint">You edit a job of the queue. {stop}</div>'
        label = "Generate" if view.editing is None else "Save changes"
        return {
            self._parts.view: view,
            self._parts.message: html,
            self._parts.generate: gr.Button(label),
        }


def _named(raw: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(WIDGETS, raw, strict=True))


def _data(event: gr.EventData) -> Mapping[str, Any]:
    return event._data if isinstance(event._data, Mapping) else {}
