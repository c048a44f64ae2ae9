"""How well a clip keeps to its pictures, measured once and beside everything else."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixeldance.errors import PixelDanceError
from pixeldance.jobs import JobService
from pixeldance.pictures import load_picture
from pixeldance.server.studio.markup import text
from pixeldance.video import decode_pictures, read_clip

__all__ = ["Fidelity", "FidelityBook", "badge_html", "measure"]

MAX_KEPT = 500
GOOD_DB = 30.0
"""Above it a frame looks like its picture at a glance; see the metric's use in image coding."""
POOR_DB = 22.0
EXACT_DB = 99.0
"""The metric gives equal pictures 100."""

JUMP = 2.5
"""A last step that is so much bigger than those before it is seen as a jump."""


class Fidelity(NamedTuple):
    """How close a clip is to its pictures."""

    first_db: float | None
    """PSNR of the first frame and the first picture; None without a picture."""
    last_db: float | None
    """PSNR of the last frame and the last picture; None without a picture."""
    end_jump: float | None
    """Last step between frames by the usual step before it; None for fewer than 3 frames."""


def measure(
    frames: npt.NDArray[np.uint8], last_frame: Image.Image, pictures: Mapping[str, Image.Image]
) -> Fidelity:
    """Compare a clip with its pictures.

    Args:
        frames: ``frames height width 3``.
        last_frame: Its last frame without loss.
        pictures: Pictures by role, fitted to the clip.

    Returns:
        The measures.
    """
    from pixeldance.evaluation.metrics import end_jump_ratio, psnr

    last = np.asarray(last_frame)
    shown = {"first_frame": frames[0], "last_frame": last}
    decibels = {
        role: psnr(frame[None], np.asarray(pictures[role])[None])
        for role, frame in shown.items()
        if role in pictures
    }
    whole = np.concatenate([frames[:-1], last[None]])
    return Fidelity(
        decibels.get("first_frame"),
        decibels.get("last_frame"),
        end_jump_ratio(whole) if len(frames) >= 3 else None,
    )


def badge_html(fidelity: Fidelity | None) -> str:
    """The measures as badges.

    Args:
        fidelity: The measures; None while they are not known.

    Returns:
        HTML.
    """
    if fidelity is None:
        return ""
    badges = [
        _badge(
            f"{name} frame {f'{decibels:.0f} dB' if decibels < EXACT_DB else 'exact'}",
            "good" if decibels >= GOOD_DB else "poor" if decibels < POOR_DB else "fair",
            f"How close the {name.lower()} frame is to the {name.lower()} picture: from "
            f"{GOOD_DB:.0f} dB hard to tell apart, below {POOR_DB:.0f} dB clearly different.",
        )
        for name, decibels in (("First", fidelity.first_db), ("Last", fidelity.last_db))
        if decibels is not None
    ]
    if fidelity.end_jump is not None and fidelity.last_db is not None:
        has_jump = fidelity.end_jump >= JUMP
        badges.append(
            _badge(
                f"End jump × {fidelity.end_jump:.1f}",  # noqa: RUF001 - the sign for it
                "poor" if has_jump else "good",
                "How big the last step between frames is by those before it; about 1 is smooth.",
            )
        )
    return f'<div class="st-badges">{"".join(badges)}</div>' if badges else ""


def _badge(label: str, kind: str, title: str) -> str:
    return f'<span class="st-badge st-{kind}" title="{text(title)}">{text(label)}</span>'


class FidelityBook:
    """Measures of finished clips; they are taken in a thread of its own.

    Args:
        service: The service.
    """

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], Fidelity | None] = OrderedDict()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fidelity")
        self._is_closed = False
        self.version = 0
        """Grows with each measure that was taken."""

    def get(self, job_id: str, number: int) -> Fidelity | None:
        """The measures of a clip.

        Args:
            job_id: Its job.
            number: Which of its clips, from 1.

        Returns:
            The measures; None while they are being taken or if they cannot be.
        """
        key = (job_id, number)
        with self._lock:
            if key not in self._known:
                self._known[key] = None
                if len(self._known) > MAX_KEPT:
                    self._known.popitem(last=False)
                if not self._is_closed:
                    self._pool.submit(self._take, key)
            return self._known[key]

    def close(self) -> None:
        """Wait for the measure that is being taken, and take no more."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown()

    def _take(self, key: tuple[str, int]) -> None:
        try:
            files = self._service.clip_files(*key)
            clip = read_clip(files.clip)
            pictures = decode_pictures(self._service.recipe(*key))
            found = measure(clip.frames, load_picture(files.last_frame), pictures)
        except (PixelDanceError, OSError):
            return  # removed meanwhile, or without its pictures
        with self._lock:
            self._known[key] = found
            self.version += 1
