"""The page: two pictures and a sentence in, a clip out.

Uploads and clips lie in Gradio's temporary folder (``GRADIO_TEMP_DIR``). One clip is made at a
time, and a run ends with its tab: whoever wants to keep a clip downloads it.
"""

import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from pixeldance.errors import GenerationCancelled, InputError, PixelDanceError
from pixeldance.pictures import load_picture
from pixeldance.server.form import PICTURES, request_of, request_widgets

if TYPE_CHECKING:
    from pixeldance.api import Model, StepEvent

__all__ = ["build_app"]

EXAMPLES = Path(__file__).parents[1] / "examples"


def build_app(load_model: Callable[[], "Model"]) -> gr.Blocks:
    """Build the page.

    Args:
        load_model: Called once, when the first clip is made.

    Returns:
        The page, for ``launch.serve``.
    """
    with gr.Blocks(title="pixeldance", analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column():
                widgets = request_widgets()
                with gr.Row():
                    start = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop", interactive=False)
            with gr.Column():
                clip = gr.Video(label="Clip", buttons=["download"], autoplay=True, loop=True)
                seed = gr.Textbox(label="Seed of this clip", interactive=False, buttons=["copy"])
        example = [
            *(EXAMPLES / f"{name}.png" for name in ("first", "last")),
            EXAMPLES / "prompt.txt",
        ]
        if all(path.is_file() for path in example):
            prompt = example.pop().read_text(encoding="utf-8").strip()
            inputs = [widgets[name] for name in (*PICTURES, "prompt")]
            gr.Examples([[*map(str, example), prompt]], inputs)
        runs = _Runs(load_model, widgets, Path(clip.GRADIO_CACHE))
        hidden: dict[str, Any] = {"api_visibility": "private"}
        start.click(runs.begin, None, [start, stop], queue=False, **hidden).then(
            # Raw values: the request checks them, and says better what is wrong than the widgets.
            runs.generate,
            set(widgets.values()),
            [clip, seed],
            preprocess=False,
            concurrency_limit=1,
            **hidden,
        ).then(runs.end, None, [start, stop], queue=False, **hidden)
        stop.click(runs.stop, queue=False, **hidden)
        page.unload(runs.stop)
    return page


class _Runs:
    """The runs of all tabs: each is stopped through an event of its own."""

    def __init__(
        self, load_model: Callable[[], "Model"], widgets: Mapping[str, gr.Component], folder: Path
    ) -> None:
        self._load_model = cache(load_model)
        self._widgets = widgets
        self._folder = folder
        self._stops: dict[str | None, threading.Event] = {}

    def begin(self, tab: gr.Request) -> tuple[gr.Button, gr.Button]:
        self._stops[tab.session_hash] = threading.Event()
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def stop(self, tab: gr.Request) -> None:
        if tab.session_hash in self._stops:
            self._stops[tab.session_hash].set()

    def end(self) -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def generate(
        self,
        values: Mapping[gr.Component, Any],
        tab: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for it there
    ) -> tuple[str, str]:
        is_stopped = self._stops.setdefault(tab.session_hash, threading.Event())

        def check() -> None:
            if is_stopped.is_set():
                raise GenerationCancelled("Stopped. No clip was made.")

        def on_step(event: "StepEvent") -> None:
            check()
            progress((event.step, event.num_steps), unit="steps")

        try:
            request = request_of({name: values[item] for name, item in self._widgets.items()})
            for path in request.pictures.values():
                self._check_picture(str(path))  # before anything slow
            check()  # it may have waited for others
            progress(0, "Loading")
            clip = self._load_model().generate(request, on_step=on_step)
            self._folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            path = clip.save(folder / f"pixeldance-{clip.seed}.mp4", sidecar=False)
        except PixelDanceError as error:
            raise gr.Error(self._without_folders(str(error)), print_exception=False) from None
        finally:
            self._stops.pop(tab.session_hash, None)
        return str(path), str(clip.seed)

    def _check_picture(self, path: str) -> None:
        # Gradio lets any path pass that comes without the mark of an upload.
        if not Path(path).resolve().is_relative_to(self._folder.resolve()):
            raise InputError("A picture was not uploaded to this page. Choose it again.")
        load_picture(path)

    def _without_folders(self, message: str) -> str:
        """People know their files by name; an upload lies in a folder of its own."""
        folder = re.escape(repr(str(self._folder))[1:-1])
        return re.sub(folder + r"[\\/]+\w+[\\/]+", "", message)
