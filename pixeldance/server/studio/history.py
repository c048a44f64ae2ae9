"""Finished clips as HTML: a gallery, a viewer, and two of them side by side."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pixeldance.jobs import Job, JobClip
from pixeldance.server.studio.markup import button, icon, text

__all__ = [
    "FILM_DOWNLOADS",
    "ClipFile",
    "ClipKey",
    "ShownClip",
    "compare_html",
    "gallery_html",
    "viewer_html",
]

ClipKey = tuple[str, int]
"""A job and the number of its clip."""

ClipFile = Literal[
    "clip.mp4", "clip.webm", "clip.gif", "frames.zip", "last.png", "thumbnail.jpg", "clip.json"
]

DOWNLOADS: tuple[tuple[str, ClipFile], ...] = (
    ("MP4", "clip.mp4"),
    ("WebM", "clip.webm"),
    ("GIF", "clip.gif"),
    ("PNG sequence", "frames.zip"),
    ("Last frame", "last.png"),
    ("Settings", "clip.json"),
)

FILM_DOWNLOADS = tuple(pair for pair in DOWNLOADS if pair[0] in {"MP4", "Last frame", "Settings"})
"""The other forms need all frames in memory, and a film may be long."""


class ShownClip(NamedTuple):
    """A finished clip and where a browser gets its files."""

    job: Job
    clip: JobClip
    url_of: Callable[[ClipFile], str]
    badge: str
    """HTML of its measures."""

    @property
    def data(self) -> dict[str, Any]:
        """What its buttons' events carry."""
        return {"job": self.job.id, "clip": self.clip.number}

    @property
    def prompt(self) -> str:
        """Its prompt, escaped."""
        return text(self.job.request.get("prompt") or "No prompt")

    @property
    def facts(self) -> str:
        """Seed, length and steps, escaped."""
        clip = self.clip
        parts = [
            f"seed {clip.seed}",
            f"{clip.num_frames / clip.fps:.1f} s",
            f"{clip.width} × {clip.height}",  # noqa: RUF001 - the sign for it
            f"{clip.num_steps_done} steps",
        ]
        return text(" · ".join(parts))


def gallery_html(
    clips: Sequence[ShownClip],
    *,
    search: str,
    has_more: bool,
    selected: ClipKey | None,
    compared: Sequence[ClipKey],
) -> str:
    """Cards of finished clips.

    Args:
        clips: The clips, latest first.
        search: What was looked for.
        has_more: Whether there are others.
        selected: The clip in the viewer.
        compared: Clips chosen for comparing.

    Returns:
        HTML.
    """
    if not clips:
        message = f"Nothing found for “{search}”." if search else "Finished clips appear here."
        return f'<p class="st-empty">{text(message)}</p>'
    cards = "".join(_card(one, selected=selected, compared=compared) for one in clips)
    more = button("Show more", "show", "more") if has_more else ""
    return f'<ul class="st-gallery">{cards}</ul><div class="st-buttons">{more}</div>'


def _card(clip: ShownClip, *, selected: ClipKey | None, compared: Sequence[ClipKey]) -> str:
    key = (clip.job.id, clip.clip.number)
    data = "".join(f' data-{name}="{text(value)}"' for name, value in clip.data.items())
    when = time.strftime("%d %b, %H:%M", time.localtime(clip.job.finished_at))
    current = ' aria-current="true"' if key == selected else ""
    return (
        f'<li class="st-card"{current}><button type="button" class="st-thumb" data-show="select" '
        f'data-key="select-{key[0]}-{key[1]}"{data} aria-label="Show {clip.prompt}">'
        f'<img src="{text(clip.url_of("thumbnail.jpg"))}" alt="" loading="lazy"></button>'
        f'<p class="st-prompt" title="{clip.prompt}">{clip.prompt}</p>'
        f'<p class="st-meta">{text(when)} · seed {clip.clip.seed}</p><div class="st-buttons">'
        + ("" if clip.job.is_film else button("Use settings", "form", "settings", **clip.data))
        + button(
            "Compare",
            "show",
            "compare",
            title="Compare it with another clip",
            is_pressed=key in compared,
            **clip.data,
        )
        + button(
            "",
            "act",
            "remove",
            sign="close",
            title="Remove this clip",
            confirm="Remove this clip for good?",
            job=clip.job.id,
        )
        + "</div></li>"
    )


def viewer_html(clip: ShownClip | None) -> str:
    """A clip to look at, and what can be done with it.

    Args:
        clip: The clip, if there is one.

    Returns:
        HTML.
    """
    if clip is None:
        return ""
    facts = clip.clip
    data = {**clip.data, "fps": facts.fps, "frames": facts.num_frames}
    buttons = [
        button("Continue from the last frame", "form", "continue", classes="st-main", **clip.data),
        *(
            []
            if clip.job.is_film
            else [button("Use these settings", "form", "settings", **clip.data)]
        ),
        button("Use this frame as first", "form", "use_frame", role="first_frame", **data),
        button("Use this frame as last", "form", "use_frame", role="last_frame", **data),
    ]
    downloads = "".join(
        f'<a class="st-button" download href="{text(clip.url_of(name))}?download=1">{label}</a>'
        for label, name in (FILM_DOWNLOADS if clip.job.is_film else DOWNLOADS)
    )
    return (
        f'<div class="st-viewer">{_video(clip, "controls autoplay")}{clip.badge}'
        f'<p class="st-prompt">{clip.prompt}</p><p class="st-meta">{clip.facts}</p>'
        f'<div class="st-buttons">{"".join(buttons)}</div>'
        f'<div class="st-buttons st-downloads" role="group" aria-label="Download">'
        f'<span aria-hidden="true">Download</span>{downloads}</div></div>'
    )


def compare_html(clips: Sequence[ShownClip]) -> str:
    """Two clips that play in step.

    Args:
        clips: The clips chosen, at most two.

    Returns:
        HTML; with one clip a word on how to choose the other, without any nothing.
    """
    stop = button("Stop comparing", "show", "compare_none")
    if len(clips) == 1:
        return (
            f'<div class="st-compare"><p class="st-note">Comparing {clips[0].prompt} (seed '
            f"{clips[0].clip.seed}). Choose another clip with Compare.</p>"
            f'<div class="st-buttons">{stop}</div></div>'
        )
    if not clips:
        return ""
    figures = "".join(
        f"<figure>{_video(clip, '')}<figcaption>{name}: {clip.prompt}<br>{clip.facts}</figcaption>"
        f"{clip.badge}</figure>"
        for name, clip in zip("AB", clips, strict=True)
    )
    frames = max(clip.clip.num_frames for clip in clips)
    return (
        f'<div class="st-compare" data-compare><div class="st-sides">{figures}</div>'
        '<div class="st-buttons">'
        '<button type="button" class="st-button" data-sync="play" data-key="sync-play" '
        'aria-label="Play or pause both">'
        f"{icon('play')}</button>"
        '<button type="button" class="st-button" data-sync="back" aria-label="One frame back">'
        f"{icon('back')}</button>"
        '<button type="button" class="st-button" data-sync="on" aria-label="One frame on">'
        f"{icon('on')}</button>"
        f'<input type="range" min="0" max="{frames - 1}" value="0" step="1" data-sync="seek" '
        f'data-fps="{clips[0].clip.fps}" aria-label="Frame of both clips">'
        '<label class="st-check"><input type="checkbox" data-sync="difference"> Difference</label>'
        f"{stop}</div></div>"
    )


def _video(clip: ShownClip, attributes: str) -> str:
    facts = clip.clip
    return (
        f'<video src="{text(clip.url_of("clip.mp4"))}" {attributes} loop muted playsinline '
        f'preload="auto" poster="{text(clip.url_of("thumbnail.jpg"))}" '
        f'style="aspect-ratio:{facts.width}/{facts.height}" aria-label="{clip.prompt}"></video>'
    )
