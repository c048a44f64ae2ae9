"""The drawing pad: a rough picture of where a clip should end, drawn over the first frame.

The paper's users make the last frame this way: they take a frame, paint on it, cut pieces out and
move them, and the model takes the result as an instruction ("Make Pixels Dance", Zeng et al. 2023,
https://arxiv.org/abs/2311.10982). The editor is plain JavaScript and runs in the browser alone;
pictures cross to Python and back as PNG data URIs, exact to the pixel.
"""

import base64
import binascii
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Any

import gradio as gr
from PIL import Image

from pixeldance.errors import InputError
from pixeldance.pictures import load_picture

__all__ = ["Pad", "build_pad", "decode_drawing", "encode_picture", "pad_css", "pad_js"]

MAX_PIXELS = 16_000_000
"""Largest picture the pad takes or gives, as in ``pad_drawing.js``."""

MAX_BYTES = 48 * 2**20
"""Largest PNG file of a drawing: that many pixels of noise, with room to spare."""

_PREFIX = "data:image/png;base64,"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SCRIPTS = ("pad_pixels.js", "pad_drawing.js", "pad_overlay.js", "pad_controls.js", "pad.js")


@dataclass(frozen=True)
class Pad:
    """The components of a drawing pad; ``build_pad`` makes them.

    Attributes:
        canvas: Holds the editor.
        source: Set its value to ``encode_picture(picture)`` and the pad starts from that picture;
            it empties itself when the pad has taken it, so the same picture can be sent again.
        result: The drawing as a data URI for ``decode_drawing``, once ``used`` has happened.
        use: The button "Use as last frame".
        used: Event of the button after which ``result`` is set; chain on it with
            ``used.then(handler, pad.result, ...)``.
    """

    canvas: gr.HTML
    source: gr.Textbox
    result: gr.Textbox
    use: gr.Button
    used: Any


def build_pad() -> Pad:
    """Build the pad inside the current ``gr.Blocks``; one per page.

    The page must carry ``pad_js()`` in a ``<script>`` and ``pad_css()`` in a ``<style>`` of its
    head.

    Returns:
        The components to connect.
    """
    canvas = gr.HTML(
        html_template="<div></div>",
        apply_default_css=False,
        elem_id="drawing-pad",
        js_on_load="PixelDancePad.mount(element)",
    )
    # Hidden, not invisible: Gradio keeps no element, and so fires no event, for what is invisible.
    source = gr.Textbox(visible="hidden", elem_id="drawing-pad-source", show_label=False)
    result = gr.Textbox(visible="hidden", elem_id="drawing-pad-result", show_label=False)
    use = gr.Button("Use as last frame", variant="primary", elem_id="drawing-pad-use")
    hidden: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    source.change(
        None,
        source,
        source,
        js="(picture) => { if (picture) PixelDancePad.open(picture); return ''; }",
        **hidden,
    )
    used = use.click(None, None, result, js="() => PixelDancePad.result()", **hidden)
    return Pad(canvas=canvas, source=source, result=result, use=use, used=used)


def pad_js() -> str:
    """The pad's script, to run before the page's components appear.

    Returns:
        JavaScript that defines ``window.PixelDancePad`` and nothing else.
    """
    return "\n".join(["(() => {", '"use strict";', *map(_read, _SCRIPTS), "})();"])


def pad_css() -> str:
    """The pad's style sheet.

    Returns:
        CSS whose every rule is about ``.pd-pad``.
    """
    return _read("pad.css")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def encode_picture(picture: Image.Image) -> str:
    """Encode a picture for the pad.

    Args:
        picture: Any picture that ``load_picture`` takes, of at most 16 million pixels.

    Returns:
        The picture, upright and RGB, as a ``data:image/png;base64`` URI without metadata.

    Raises:
        InputError: If the picture cannot be used or is too large.
    """
    stream = BytesIO()
    load_picture(picture, max_pixels=MAX_PIXELS).save(stream, "PNG")
    return _PREFIX + base64.b64encode(stream.getvalue()).decode("ascii")


def decode_drawing(data_uri: str) -> Image.Image:
    """Decode what the pad returned; the text is not trusted.

    Args:
        data_uri: Value of ``Pad.result``: ``data:image/png;base64`` and nothing else.

    Returns:
        The drawing in mode RGB.

    Raises:
        InputError: If there is no drawing, or it is no PNG data URI, damaged, too large or too
            small.
    """
    if not data_uri:
        raise InputError(
            "The drawing pad is empty. Start from the first frame or drop a picture on the pad."
        )
    if not data_uri.startswith(_PREFIX):
        raise InputError(
            f"The drawing starts with {data_uri[:30]!r}; only {_PREFIX!r} is read. "
            "Use the drawing pad."
        )
    num_bytes = (len(data_uri) - len(_PREFIX)) * 3 // 4
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"The drawing has {num_bytes / 2**20:.1f} MiB; at most {MAX_BYTES // 2**20} MiB are "
            "read. Start from a smaller picture."
        )
    try:
        data = base64.b64decode(data_uri[len(_PREFIX) :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"The drawing is not valid base64 ({error}). Use the drawing pad again."
        ) from error
    if not data.startswith(_PNG_SIGNATURE):
        raise InputError("The drawing is not a PNG file, whatever it says. Use the drawing pad.")
    return load_picture(data, max_pixels=MAX_PIXELS)
