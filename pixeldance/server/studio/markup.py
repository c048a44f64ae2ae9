"""Pieces of HTML. Whatever may come from a person or a file goes through ``text``."""

import base64
import html
from typing import Literal

__all__ = ["Event", "button", "data_uri", "icon", "note", "text"]

_ICONS = {
    "back": "M10 3 5 8l5 5",
    "close": "M4 4l8 8M12 4l-8 8",
    "copy": "M6 6h7v7H6zM3 10V3h7",
    "down": "M3 6l5 5 5-5",
    "edit": "M3 13l1-3 7-7 2 2-7 7z",
    "finish": "M3 3l6 5-6 5zM12 3v10",
    "on": "M6 3l5 5-5 5",
    "pause": "M5 3v10M11 3v10",
    "play": "M4 3l9 5-9 5z",
    "plus": "M8 3v10M3 8h10",
    "retry": "M13 8a5 5 0 1 1-2-4M11 1v3h-3",
    "swap": "M2 5h11l-3-3M14 11H3l3 3",
    "top": "M3 2h10M8 14V5M4 9l4-4 4 4",
    "up": "M3 10l5-5 5 5",
}
"""Strokes on a square of 16; drawn, because fonts differ in the signs they have."""

Event = Literal["act", "form", "show"]
"""What a button asks for: something done to a job, a change of the form, another view."""


def text(value: object) -> str:
    """A value as text that may stand in HTML, inside quotes as well.

    Args:
        value: Anything.

    Returns:
        Its text, escaped.
    """
    return html.escape(str(value), quote=True)


def icon(name: str) -> str:
    """A small drawing in the colour of the text around it.

    Args:
        name: Which one.

    Returns:
        The element; it says nothing to those who cannot see it.
    """
    path = f'<path d="{_ICONS[name]}"/>'
    return f'<svg class="st-icon" viewBox="0 0 16 16" aria-hidden="true">{path}</svg>'


def button(
    label: str,
    event: Event,
    do: str,
    *,
    sign: str = "",
    title: str = "",
    classes: str = "",
    confirm: str = "",
    is_pressed: bool | None = None,
    is_enabled: bool = True,
    **data: object,
) -> str:
    """A button that ``studio.js`` turns into an event of the component around it.

    Args:
        label: What stands on it, plain text.
        event: Which of the component's events it triggers.
        do: The name of what shall happen.
        sign: Name of an icon before the label, or in place of it.
        title: Says more than the label; also for those who cannot see it.
        classes: Further CSS classes.
        confirm: A question that must be answered with yes first.
        is_pressed: For a button that stays down: whether it is.
        is_enabled: Whether it can be used.
        **data: What else the event carries, as texts.

    Returns:
        The element.
    """
    # The key lets the keyboard's focus come back after the panel was drawn anew.
    key = "-".join([do, *(str(value) for value in data.values())])
    attributes = {f"data-{event}": do, "data-key": key, "class": f"st-button {classes}".strip()}
    attributes |= {f"data-{name.replace('_', '-')}": str(value) for name, value in data.items()}
    if title:
        attributes["title"] = title
        if not label:
            attributes["aria-label"] = title
    if confirm:
        attributes["data-confirm"] = confirm
    if is_pressed is not None:
        attributes["aria-pressed"] = "true" if is_pressed else "false"
    given = " ".join(f'{name}="{text(value)}"' for name, value in attributes.items())
    inside = (icon(sign) if sign else "") + text(label)
    return f'<button type="button" {given}{"" if is_enabled else " disabled"}>{inside}</button>'


def note(message: str, *, kind: Literal["hint", "warning", "problem"] = "hint") -> str:
    """A sentence beside the form.

    Args:
        message: Plain text.
        kind: How grave it is.

    Returns:
        The element; nothing for an empty message.
    """
    role = ' role="alert"' if kind == "problem" else ""
    return f'<p class="st-note st-{kind}"{role}>{text(message)}</p>' if message else ""


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as an address that needs no request.

    Args:
        content: The file.
        media_type: Such as ``image/jpeg``.

    Returns:
        A ``data:`` address.
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
