"""What runs at the moment: a moving preview, steps and remaining time."""

import io
import threading
import time

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.jobs import Job, JobEvent, Phase, Preview
from pixeldance.server.studio.markup import button, data_uri, text

__all__ = ["PreviewStrips", "duration_text", "live_html"]

MAX_FRAMES = 25
MAX_SIDE = 256
SECONDS_PER_FRAME = 1 / 12

PHASES = {
    Phase.QUEUED: "Waiting",
    Phase.LOADING: "Loading the model",
    Phase.ENCODING: "Reading prompt and pictures",
    Phase.DENOISING: "Making the clip",
    Phase.DECODING: "Decoding",
    Phase.SAVING: "Saving",
    Phase.FINISHED: "Finished",
}


def live_html(
    job: Job | None, event: JobEvent | None, *, num_waiting: int, has_clip: bool = False
) -> str:
    """How far the running job is, and buttons to pause it or have it finish early.

    Args:
        job: The running job, if there is one.
        event: Its latest event.
        num_waiting: Jobs that wait.
        has_clip: Whether a clip is shown beside it; whoever made one knows how to begin.

    Returns:
        HTML; empty if there is nothing to tell.
    """
    if job is None or event is None:
        if has_clip and not num_waiting:
            return ""
        waiting = (
            f"{num_waiting} in the queue; the next one starts as soon as the worker is ready."
            if num_waiting
            else "Give two pictures and a sentence, then press Generate (Ctrl+Enter)."
        )
        return f'<div class="st-live"><p class="st-empty">{waiting}</p></div>'
    prompt = text(job.request.get("prompt") or "No prompt")
    pause = (
        button("Resume", "act", "resume", sign="play", title="Go on with this clip", job=job.id)
        if job.is_paused
        else button("Pause", "act", "pause", sign="pause", title="Wait after this step", job=job.id)
    )
    finish = (
        ""
        if job.is_film
        else button(
            "Finish early",
            "act",
            "finish",
            sign="finish",
            title="Decode what is there after this step",
            job=job.id,
            is_enabled=event.phase is Phase.DENOISING and not job.is_finishing,
        )
    )
    return (
        f'<div class="st-live" data-running="{text(job.id)}"><p class="st-prompt">{prompt}</p>'
        f'<progress max="{event.num_steps}" value="{event.step}" aria-label="Steps done">'
        f"</progress><p class='st-status'>{text(_status(job, event))}</p>"
        f'<div class="st-buttons">{pause}{finish}</div></div>'
    )


def duration_text(seconds: float) -> str:
    """Seconds as people say them.

    Args:
        seconds: At least 0.

    Returns:
        Such as "0.4 s", "12 s" or "3 min 05 s".
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _status(job: Job, event: JobEvent) -> str:
    if job.is_stopping:
        return "Stopping after this step"
    parts = [PHASES[event.phase]]
    if job.is_finishing:
        parts = ["Finishing early"]
    elif event.is_paused:
        parts = ["Paused"]
    if event.num_clips > 1:
        parts.append(f"clip {max(event.clip, 1)} of {event.num_clips}")
    parts.append(f"step {event.step} of {event.num_steps}")
    if event.seconds_per_step is not None:
        parts.append(f"{duration_text(event.seconds_per_step)} per step")
    is_stepping = event.phase is Phase.DENOISING and not event.is_paused
    if event.remaining_s is not None and is_stepping:
        parts.append(f"{duration_text(event.remaining_s)} left")
    return " · ".join(parts)


class PreviewStrips:
    """Previews as HTML without a file: one JPEG with all frames side by side, moved by CSS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[tuple[str, int], str] | None = None

    def html(self, job_id: str, preview: Preview | None) -> str:
        """The preview; made once for all tabs.

        Args:
            job_id: The job.
            preview: Its preview, if there is one.

        Returns:
            HTML; empty without a preview.
        """
        if preview is None:
            return ""
        key = (job_id, preview.number)
        with self._lock:
            if self._latest is None or self._latest[0] != key:
                self._latest = (key, _strip_html(preview.frames))
            return self._latest[1]


def _strip_html(frames: npt.NDArray[np.uint8]) -> str:
    count = min(len(frames), MAX_FRAMES)
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    height, width = frames.shape[1:3]
    scale = min(1.0, MAX_SIDE / max(height, width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    strip = Image.new("RGB", (tile[0] * count, tile[1]))
    for place, number in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(frames[number]))
        strip.paste(picture.resize(tile, Image.Resampling.BILINEAR), (place * tile[0], 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=80)
    seconds = max(len(frames), 2) * SECONDS_PER_FRAME
    # Every new strip goes on where the one before it would be by now.
    offset = time.time() % seconds
    return (
        f'<div class="st-strip" role="img" aria-label="Preview of the clip being made" '
        f'style="aspect-ratio:{width}/{height};background-image:url({_uri(buffer)});'
        f"background-size:{count * 100}% 100%;animation-duration:{seconds:.2f}s;"
        f'animation-delay:-{offset:.2f}s;animation-timing-function:steps({count},jump-none)"></div>'
    )


def _uri(jpeg: io.BytesIO) -> str:
    return data_uri(jpeg.getvalue(), "image/jpeg")
