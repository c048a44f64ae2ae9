"""The drawing pad in a real browser, on a bare page: what it does to the pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Page, expect

from pixeldance.pictures import load_picture
from pixeldance.server.studio.pad import (
    build_pad,
    decode_drawing,
    encode_picture,
    pad_css,
    pad_js,
)

pytestmark = pytest.mark.slow

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 64, 48
HTML = f"""<!doctype html><meta name="viewport" content="width=device-width">
<style>body {{ margin: 8px; font-family: sans-serif }} {pad_css()}</style>
<div id="holder"></div>
<script>{pad_js()}; PixelDancePad.mount(document.getElementById("holder"));
window.escapes = 0;
addEventListener("keydown", (event) => {{ if (event.key === "Escape") window.escapes++; }});
</script>"""
RED = (224, 49, 49)  # what the brush starts with


class Pad:
    """The pad as a user's hands see it; points are pixels of the picture."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.view = page.locator("canvas[data-pad=view]")

    def start_from(self, picture: Pixels) -> None:
        uri = encode_picture(Image.fromarray(picture))
        self.page.evaluate("uri => PixelDancePad.open(uri)", uri)
        self.view.scroll_into_view_if_needed()

    def tool(self, label: str) -> None:
        self.page.get_by_role("button", name=label, exact=True).click()

    def set_range(self, name: str, value: int) -> None:
        self.page.locator(f"input[data-pad={name}]").fill(str(value))

    def drag(self, *points: tuple[float, float]) -> None:
        box = self.view.bounding_box()
        assert box is not None
        zoom = box["width"] / self.page.evaluate(
            "document.querySelector('canvas[data-pad=view]').width"
        )
        shown = [(box["x"] + x * zoom, box["y"] + y * zoom) for x, y in points]
        mouse = self.page.mouse
        mouse.move(*shown[0])
        mouse.down()
        for x, y in shown[1:]:
            mouse.move(x, y)
        mouse.up()

    def result(self) -> Pixels:
        return np.asarray(decode_drawing(self.page.evaluate("PixelDancePad.result()")))

    @property
    def status(self) -> str:
        return self.page.get_by_role("status").inner_text()


@pytest.fixture
def pad(browser: Browser) -> Iterator[Pad]:
    page = browser.new_page(viewport={"width": 900, "height": 1000})
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.set_content(HTML)
    yield Pad(page)
    page.close()
    assert errors == []


def noise() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def scene() -> Pixels:
    """A black block of 10 x 8 at (20, 16) before a gradient that is linear in x and y."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([40 + 2 * x, 60 + 3 * y, 100 + x + y], axis=-1).astype(np.uint8)
    picture[16:24, 20:30] = 0
    return picture


def gradient() -> Pixels:
    picture = scene()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture[...] = np.stack([40 + 2 * x, 60 + 3 * y, 100 + x + y], axis=-1)
    return picture


def largest_difference(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_untouched_picture_comes_back_exactly(pad: Pad) -> None:
    assert pad.page.evaluate("PixelDancePad.result()") == ""
    pad.start_from(noise())
    assert np.array_equal(pad.result(), noise())


def test_stored_values_count_not_the_colour_profile(pad: Pad, tmp_path: Path) -> None:
    gamma = PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))  # linear light: a browser would convert it
    Image.fromarray(noise()).save(tmp_path / "linear.png", pnginfo=gamma)
    with pad.page.expect_file_chooser() as chooser:
        pad.tool("choose a picture")
    chooser.value.set_files(tmp_path / "linear.png")
    pad.page.wait_for_function("PixelDancePad.result() !== ''")
    assert np.array_equal(pad.result(), np.asarray(load_picture(tmp_path / "linear.png")))
    assert np.array_equal(pad.result(), noise())


def test_stroke_paints_what_it_covers_and_nothing_else(pad: Pad) -> None:
    pad.start_from(noise())
    pad.set_range("diameter", 8)
    pad.drag((10, 24), (30, 24), (50, 24))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(x - np.clip(x, 10, 50), y - 24)
    painted = pad.result()
    # The pointer's place on the screen is rounded: a tenth of a pixel is left open.
    assert (painted[distance < 3.4] == RED).all()
    assert np.array_equal(painted[distance > 4.6], noise()[distance > 4.6])
    assert (distance < 3.4).sum() > 250


def test_eraser_brings_the_original_back(pad: Pad) -> None:
    pad.start_from(noise())
    pad.set_range("diameter", 10)
    pad.drag((10, 24), (50, 24))
    assert not np.array_equal(pad.result(), noise())
    pad.tool("Eraser")
    pad.set_range("diameter", 16)
    pad.drag((8, 24), (52, 24))
    assert np.array_equal(pad.result(), noise())


def test_colour_is_taken_from_the_picture(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Pick colour")
    pad.drag((25, 20))
    assert pad.page.locator("input[type=color]").input_value() == "#000000"
    assert pad.page.get_by_role("button", name="Brush").get_attribute("aria-pressed") == "true"
    assert np.array_equal(pad.result(), scene())


@pytest.mark.parametrize(
    ("tool", "outline"),
    [
        ("Box select", [(20.2, 16.2), (29.8, 23.8)]),
        ("Box select", [(29.8, 23.8), (24, 20), (20.2, 16.2)]),
        ("Lasso", [(19.9, 15.9), (30.1, 15.9), (30.1, 24.1), (19.9, 24.1)]),
    ],
    ids=["box", "box drawn backwards", "lasso"],
)
def test_moved_piece_keeps_its_pixels_and_its_hole_is_filled(
    pad: Pad, tool: str, outline: list[tuple[float, float]]
) -> None:
    picture = scene()
    picture[16:24, 20:30] = noise()[16:24, 20:30]
    pad.start_from(picture)
    pad.tool(tool)
    pad.drag(*outline)
    assert "selected" in pad.status
    pad.drag((25.3, 20.2), (35.1, 32.8))  # by 9.8 and 12.6: whole pixels, 10 and 13
    moved = pad.result()
    assert np.array_equal(moved[29:37, 30:40], picture[16:24, 20:30])
    # A linear gradient solves Laplace's equation, so the filling is the gradient itself.
    assert largest_difference(moved[16:24, 20:30], gradient()[16:24, 20:30]) <= 2
    elsewhere = np.ones((HEIGHT, WIDTH), bool)
    elsewhere[16:24, 20:30] = elsewhere[29:37, 30:40] = False
    assert np.array_equal(moved[elsewhere], picture[elsewhere])


def test_large_hole_is_closed_too(pad: Pad) -> None:
    picture = gradient()
    picture[6:42, 8:56] = 0
    pad.start_from(picture)
    pad.tool("Box select")
    pad.drag((8.2, 6.2), (55.8, 41.8))
    pad.tool("Delete")
    assert largest_difference(pad.result(), gradient()) <= 4


def test_hole_at_the_border_and_whole_picture(pad: Pad) -> None:
    picture = np.full((HEIGHT, WIDTH, 3), (10, 120, 230), np.uint8)
    picture[:20, :20] = 0
    pad.start_from(picture)
    pad.tool("Box select")
    pad.drag((0.2, 0.2), (19.8, 19.8))
    pad.tool("Delete")
    assert largest_difference(pad.result(), np.full_like(picture, (10, 120, 230))) <= 1
    pad.drag((0.2, 0.2), (WIDTH - 0.2, HEIGHT - 0.2))
    pad.tool("Delete")
    assert (pad.result() == 255).all()


def test_selecting_alone_changes_nothing(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Lasso")
    pad.drag((18, 14), (32, 14), (25, 30))
    assert np.array_equal(pad.result(), scene())
    pad.drag((5, 5))
    assert pad.status == "Nothing selected."


def test_duplicate_leaves_the_first_where_it_is(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    pad.tool("Duplicate")
    pad.drag((28, 23), (48, 23))
    drawn = pad.result()
    assert np.array_equal(drawn[16:24, 20:30], scene()[16:24, 20:30])
    # Three pixels (a sixteenth of the height) to the lower right, then dragged by 20.
    assert (drawn[19:27, 43:53] == 0).all()


def test_flip_mirrors_exactly(pad: Pad) -> None:
    pad.start_from(noise())
    pad.tool("Box select")
    pad.drag((10.2, 10.2), (20.8, 16.8))  # 11 x 7: odd sides
    pad.tool("Mirror")
    expected = noise()
    expected[10:17, 10:21] = expected[10:17, 10:21][:, ::-1]
    assert np.array_equal(pad.result(), expected)
    pad.drag((10.2, 10.2), (20.8, 16.8))
    pad.tool("Upside down")
    expected[10:17, 10:21] = expected[10:17, 10:21][::-1]
    assert np.array_equal(pad.result(), expected)


def test_piece_is_scaled_and_turned_about_its_centre(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    pad.set_range("scale", 200)
    pad.set_range("turn", 90)
    is_black = (pad.result() < 8).all(axis=-1)
    # 10 x 8 about (25, 20), twice as large and upright: 16 wide, 20 high.
    assert is_black[11:29, 18:32].all()
    outside = is_black.copy()
    outside[10:30, 17:33] = False
    assert not outside.any()


def test_handles_scale_and_turn(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    pad.drag((30, 24), (35, 28))  # the corner, to twice its distance from the centre
    assert pad.page.locator("span[data-pad=scale-value]").inner_text() == "200 %"
    zoom = pad.page.evaluate("document.querySelector('canvas').clientWidth") / WIDTH
    pad.drag((25, 12 - 26 / zoom), (45, 20))  # from above the centre to its right
    assert pad.page.locator("span[data-pad=turn-value]").inner_text() == "90°"


def test_undo_and_redo_are_exact(pad: Pad) -> None:
    states = [noise()]
    pad.start_from(noise())
    pad.drag((5, 5), (40, 30))
    states.append(pad.result())
    pad.tool("Lasso")
    pad.drag((10, 10), (30, 10), (30, 30), (10, 30))
    pad.set_range("turn", 30)
    states.append(pad.result())
    pad.tool("Clear")
    states.append(pad.result())
    assert np.array_equal(states[3], noise())
    pad.view.focus()
    for expected in reversed(states[:-1]):
        pad.page.keyboard.press("Control+z")
        assert np.array_equal(pad.result(), expected)
    pad.page.keyboard.press("Control+z")
    assert pad.status == "Nothing to undo."
    for expected in states[1:]:
        pad.page.keyboard.press("Control+Shift+Z")
        assert np.array_equal(pad.result(), expected)


def test_escape_cancels_the_selection_and_only_then_reaches_the_page(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    pad.drag((25, 20), (45, 30))
    pad.page.evaluate("document.activeElement.blur()")  # wherever the focus is
    pad.page.keyboard.press("Escape")
    assert pad.page.evaluate("window.escapes") == 0
    assert np.array_equal(pad.result(), scene())
    assert not pad.page.get_by_role("group", name="Piece in hand").is_visible()
    pad.page.keyboard.press("Escape")
    assert pad.page.evaluate("window.escapes") == 1


def test_everything_works_from_the_keyboard(pad: Pad) -> None:
    pad.start_from(scene())
    press = pad.page.keyboard.press
    pad.set_range("diameter", 1)
    pad.view.focus()
    press("ArrowRight")  # from the middle (32, 24)
    press("Space")
    for _ in range(4):
        press("ArrowDown")
    press("Space")
    expected = scene()
    expected[24:29, 33] = RED
    assert np.array_equal(pad.result(), expected)

    press("r")  # box select
    for key in ["ArrowLeft"] * 4 + ["ArrowUp"] * 5:
        press(key)  # to (29, 23), the last pixel of the block
    press("Space")
    for key in ["ArrowLeft"] * 9 + ["ArrowUp"] * 7:
        press(key)  # to (20, 16), its first
    press("Space")
    press("Shift+ArrowRight")
    press("Enter")
    drawn = pad.result()
    assert (drawn[16:24, 30:40] == 0).all()
    assert largest_difference(drawn[16:24, 20:30], gradient()[16:24, 20:30]) <= 2
    assert pad.view.evaluate("view => view === document.activeElement")


def test_every_control_has_a_name_and_can_be_reached(pad: Pad) -> None:
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    names = pad.page.evaluate(
        """[...document.querySelectorAll(".pd-pad :is(button, input, canvas):not([hidden])")]
        .filter((control) => control.checkVisibility() && !control.ariaHidden)
        .map((control) => control.ariaLabel ?? control.labels?.[0]?.innerText ?? control.innerText)
        """
    )
    assert len(names) == 21
    assert all(name.strip() for name in names)


def test_pasted_picture_becomes_a_piece(pad: Pad) -> None:
    pad.start_from(scene())
    pad.view.focus()
    piece = np.full((20, 16, 3), (1, 200, 3), np.uint8)
    pad.page.evaluate(
        """async (uri) => {
          const data = new DataTransfer();
          const blob = await (await fetch(uri)).blob();
          data.items.add(new File([blob], "piece.png", { type: "image/png" }));
          document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
        }""",
        encode_picture(Image.fromarray(piece)),
    )
    pad.page.get_by_role("group", name="Piece in hand").wait_for()
    pad.page.keyboard.press("ArrowLeft")
    drawn = pad.result()
    expected = scene()
    expected[14:34, 23:39] = piece  # in the middle, then one to the left
    assert np.array_equal(drawn, expected)


def test_dropped_picture_is_opened_and_a_clip_is_left_to_the_page(pad: Pad) -> None:
    drop = """async ([uri, type]) => {
      const data = new DataTransfer();
      const blob = await (await fetch(uri)).blob();
      data.items.add(new File([blob], "file", { type }));
      window.drops ??= 0;
      window.onDrop ??= document.addEventListener("drop", () => window.drops++) ?? true;
      const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector("[data-pad=stage]").dispatchEvent(event);
      return window.drops;
    }"""
    uri = encode_picture(Image.fromarray(noise()))
    assert pad.page.evaluate(drop, [uri, "video/mp4"]) == 1
    assert pad.page.evaluate("PixelDancePad.result()") == ""
    assert pad.page.evaluate(drop, [uri, "image/png"]) == 1
    pad.page.wait_for_function("PixelDancePad.result() !== ''")
    assert np.array_equal(pad.result(), noise())


def test_large_piece_is_scaled_to_fit(pad: Pad, tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), (9, 8, 7)).save(tmp_path / "wide.png")
    pad.start_from(scene())
    with pad.page.expect_file_chooser() as chooser:
        pad.tool("Add a picture as a piece…")
    chooser.value.set_files(tmp_path / "wide.png")
    pad.page.get_by_role("group", name="Piece in hand").wait_for()
    assert (pad.result()[16:32] == (9, 8, 7)).all()


def test_what_is_no_picture_is_refused_and_the_drawing_stays(pad: Pad, tmp_path: Path) -> None:
    pad.start_from(scene())
    (tmp_path / "text.png").write_text("not a picture")
    with pad.page.expect_file_chooser() as chooser:
        pad.tool("Start from a file…")
    chooser.value.set_files(tmp_path / "text.png")
    pad.page.get_by_text("not a picture that the browser can read").wait_for()
    pad.page.evaluate("PixelDancePad.open('data:text/html,<b>')")
    assert pad.status == "The pad opens PNG data URIs only."
    assert np.array_equal(pad.result(), scene())


def test_finger_paints(browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    pad = Pad(context.new_page())
    pad.page.set_content(HTML)
    pad.start_from(scene())
    box = pad.view.bounding_box()
    assert box is not None
    pad.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    drawn = pad.result()
    context.close()
    assert tuple(drawn[24, 32]) == RED
    assert np.array_equal(drawn[:12], scene()[:12])


def test_nothing_sticks_out_at_390_pixels(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.set_content(HTML)
    pad = Pad(page)
    pad.start_from(scene())
    pad.tool("Box select")
    pad.drag((20.2, 16.2), (29.8, 23.8))
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.pd-pad *')]"
        ".map((part) => part.getBoundingClientRect().right))"
    )
    page.close()
    assert overflow <= 0
    assert widest <= 390


def test_pad_inside_gradio(browser: Browser) -> None:
    first, drawings = noise(), []
    with gr.Blocks(analytics_enabled=False) as blocks:
        start = gr.Button("Start from the first frame")
        pad = build_pad()
        taken = gr.Textbox(label="Taken")
        start.click(lambda: encode_picture(Image.fromarray(first)), None, pad.source)

        def take(drawing: str) -> str:
            drawings.append(np.asarray(decode_drawing(drawing)))
            return f"{len(drawings)} taken"

        pad.used.then(take, pad.result, taken)
    head = f"<script>{pad_js()}</script><style>{pad_css()}</style>"
    _, address, _ = blocks.launch(
        head=head, prevent_thread_lock=True, quiet=True, ssr_mode=False, share=False
    )
    page = browser.new_page(viewport={"width": 900, "height": 1000})
    try:
        page.goto(address)
        for turn in (1, 2):  # the same picture can be sent again
            page.get_by_role("button", name="Start from the first frame").click()
            page.get_by_text("Picture of 64 by 48 pixels.").wait_for()
            editor = Pad(page)
            editor.view.scroll_into_view_if_needed()
            if turn == 1:
                editor.drag((10, 24), (50, 24))
            page.get_by_role("button", name="Use as last frame").click()
            expect(page.get_by_label("Taken")).to_have_value(f"{turn} taken")
            page.evaluate("document.querySelector('[data-pad=status]').textContent = ''")
    finally:
        page.close()
        blocks.close()
    assert tuple(drawings[0][24, 30]) == RED
    assert np.array_equal(drawings[0][:10], first[:10])
    assert np.array_equal(drawings[1], first)
