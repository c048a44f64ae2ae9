"""Colours as a browser shows them: clips written by us, read back from Chromium's canvas.

Players guess the colour matrix of untagged files from the height, so both sides of the usual border
(720 lines) are tested.
"""

import base64
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser

from pixeldance.video import export_clip

pytestmark = pytest.mark.slow

MAX_ERROR = 8  # of 255: 8-bit YUV with half the colour resolution
# Chromium's own conversion limits the factor of U in blue to 2 (BT.709: 2.112), so that a pure blue
# of any clip comes back as 255 - 0.112 x 112.
MAX_ERROR_BLUE = 13

READ_MIDDLE = """async uri => {
    const video = document.createElement("video");
    video.muted = true;
    video.src = uri;
    await new Promise((resolve, reject) => {
        // on a busy machine a frame may be shown only after the seek has ended
        const shown = (now, frame) =>
            frame.mediaTime > 0 ? resolve() : video.requestVideoFrameCallback(shown);
        video.requestVideoFrameCallback(shown);
        video.onerror = () => reject(video.error.message);
        video.onloadeddata = () => { video.currentTime = video.duration / 2; };
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    return Array.from(context.getImageData(0, canvas.height / 2, canvas.width, 1).data);
}"""


def shown_row(browser: Browser, clip: Path) -> npt.NDArray[np.uint8]:
    """The middle row of a clip's middle frame on a canvas, ``(width, 3)``."""
    uri = f"data:video/{clip.suffix[1:]};base64," + base64.b64encode(clip.read_bytes()).decode()
    page = browser.new_page()
    values = page.evaluate(READ_MIDDLE, uri)
    page.close()
    return np.array(values, np.uint8).reshape(-1, 4)[:, :3]


@pytest.mark.parametrize(
    ("name", "clip_format", "width", "height"),
    [
        ("clip.mp4", "mp4", 832, 480),
        ("clip.mp4", "mp4", 1280, 720),
        ("clip.webm", "webm", 832, 480),
        ("clip.webm", "av1", 832, 480),
        ("clip.mp4", "av1", 832, 480),
    ],
)
def test_colours_are_shown_as_they_were(
    browser: Browser, tmp_path: Path, name: str, clip_format: str, width: int, height: int
) -> None:
    colours = np.array(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (255, 255, 0)]
        + [(grey, grey, grey) for grey in range(16, 256, 24)],
        np.uint8,
    )
    block = width // len(colours)
    row = np.zeros((width, 3), np.uint8)
    row[: block * len(colours)] = np.repeat(colours, block, axis=0)
    frames = np.broadcast_to(row, (12, height, width, 3)).copy()
    clip = export_clip(tmp_path / name, frames, fps=12, clip_format=clip_format)
    shown = shown_row(browser, clip)
    assert len(shown) == width
    middles = np.arange(len(colours)) * block + block // 2
    errors = np.abs(shown[middles].astype(int) - colours)
    named = dict(zip(map(tuple, colours.tolist()), errors.tolist(), strict=True))
    assert errors[:, :2].max() <= MAX_ERROR, named
    assert errors[:, 2].max() <= MAX_ERROR_BLUE, named
    greys = (colours == colours[:, :1]).all(axis=1)
    assert errors[greys].max() <= 2, named
