"""The two pictures of the form and the key frames, as HTML."""

from collections.abc import Callable
from typing import Literal

from pixeldance.geometry import Size
from pixeldance.server.studio.drafts import DraftPicture
from pixeldance.server.studio.form import FormPictures, Role
from pixeldance.server.studio.markup import button, note, text
from pixeldance.server.studio.overlay import Frame, aspects_differ, picture_and_frame

__all__ = ["ACCEPTED_FILES", "keyframes_html", "shape_warning", "wells_html"]

ACCEPTED_FILES = "image/*,.avif,.jp2,.tif,.tiff,.ppm,video/mp4,video/quicktime,.mp4,.mov,.m4v"

TITLES: dict[Role, str] = {"first_frame": "First picture", "last_frame": "Last picture"}


def wells_html(
    pictures: FormPictures,
    clip: Size,
    *,
    fit: Literal["cover", "contain"],
    is_loop: bool,
    url_of: Callable[[str], str],
) -> str:
    """The wells for the first and the last picture, with what the model will see of each.

    Args:
        pictures: The pictures.
        clip: Size of the clip.
        fit: How pictures of another shape are fitted.
        is_loop: Whether the first picture is the last one too.
        url_of: Address of the small copy of a picture, by its fingerprint.

    Returns:
        HTML.
    """
    last = pictures.last_of(is_loop=is_loop)
    shown: dict[Role, DraftPicture | None] = {
        "first_frame": pictures.first_frame,
        "last_frame": last,
    }
    wells = []
    for role, picture in shown.items():
        is_fixed = is_loop and role == "last_frame"
        if picture is None:
            inside = _empty(role, is_fixed=is_fixed)
        else:
            drawing = _drawing(picture, clip, fit, pictures.focus, url_of)
            inside = drawing + _tools(role, picture, is_fixed=is_fixed)
        wells.append(
            f'<section class="st-well" data-well="{"" if is_fixed else role}" '
            f'aria-label="{TITLES[role]}"><h3>{TITLES[role]}</h3>{inside}</section>'
        )
    can_swap = not is_loop and (pictures.first_frame or pictures.last_frame) is not None
    swap = button(
        "", "form", "swap", sign="swap", title="Swap the two pictures", is_enabled=can_swap
    )
    return f'<div class="st-wells">{wells[0]}<div class="st-swap">{swap}</div>{wells[1]}</div>'


def shape_warning(pictures: FormPictures, *, is_loop: bool) -> str:
    """A warning for pictures of different shapes.

    Args:
        pictures: The pictures.
        is_loop: Whether the first picture is the last one too.

    Returns:
        HTML; empty if there is nothing to warn of.
    """
    first, last = pictures.first_frame, pictures.last_of(is_loop=is_loop)
    if first is None or last is None or not aspects_differ(first.size, last.size):
        return ""
    ratios = " and ".join(f"{one.width / one.height:.2f}" for one in (first, last))
    return note(
        f"The two pictures have different shapes ({ratios} to 1), so things may jump where they "
        "meet. The frames drawn above show what is used of each.",
        kind="warning",
    )


def keyframes_html(pictures: FormPictures, num_frames: int, url_of: Callable[[str], str]) -> str:
    """The list of key frames: pictures with the numbers of their frames.

    Args:
        pictures: The pictures.
        num_frames: Frames of the clip.
        url_of: Address of the small copy of a picture, by its fingerprint.

    Returns:
        HTML.
    """
    rows = [
        f'<li><img src="{text(url_of(picture.sha256))}" alt="">'
        f'<label>Frame <input type="number" min="-1" max="{num_frames - 1}" step="1" '
        f'value="{frame}" data-form="keyframe_move" data-index="{index}" '
        f'data-key="keyframe-{index}" aria-label="Frame of {text(picture.name)}"></label>'
        f'<span class="st-name">{text(picture.name)}</span>'
        + button(
            "", "form", "keyframe_remove", sign="close", title=f"Remove {picture.name}", index=index
        )
        + "</li>"
        for index, (frame, picture) in enumerate(pictures.keyframes)
    ]
    return (
        '<div class="st-keyframes" data-well="keyframe"><h3>Key frames</h3>'
        f'<p class="st-note">Pictures in between, each at a frame from 0 to {num_frames - 1}; '
        "-1 is the last one.</p>"
        f"<ul>{''.join(rows)}</ul>{_file_input('keyframe', 'Add a picture or clip')}</div>"
    )


def _empty(role: Role, *, is_fixed: bool) -> str:
    if is_fixed:
        return '<p class="st-drop">Same as the first picture</p>'
    return (
        f'<div class="st-drop">{_file_input(role, "Choose a file")}'
        "<p>or drop a picture or a clip here</p></div>"
    )


def _file_input(role: str, label: str) -> str:
    return (
        f'<label class="st-file st-button"><input type="file" accept="{ACCEPTED_FILES}" '
        f'data-file="{role}" aria-label="{text(label)}: {text(role.replace("_", " "))}">'
        f"{text(label)}</label>"
    )


def _drawing(
    picture: DraftPicture,
    clip: Size,
    fit: Literal["cover", "contain"],
    focus: tuple[float, float],
    url_of: Callable[[str], str],
) -> str:
    """A picture under a frame; clicking it moves the point that cropping keeps."""
    ratio, place, seen = picture_and_frame(picture.size, clip, fit=fit, focus=focus)
    frame = ""
    is_cropped = min(seen.width, seen.height) < 0.999
    hint, focusing = "The whole picture is used.", ""
    if is_cropped:
        frame = f'<div class="st-seen" style="{_box(seen)}"></div>'
        hint = "The bright part is used. Click, or use the arrow keys, to move it."
        focusing = (
            f' tabindex="0" role="group" data-focus="{focus[0]:.4f},{focus[1]:.4f}" '
            f'data-key="focus" aria-label="{hint}"'
        )
    elif min(place.width, place.height) < 0.999:
        hint = "The whole picture is used, with borders."
    return (
        f'<div class="st-view" style="aspect-ratio:{ratio:.4f};max-width:{260 * ratio:.0f}px" '
        f'title="{hint}"{focusing}>'
        f'<img src="{text(url_of(picture.sha256))}" alt="{text(picture.name)}" '
        f'style="{_box(place)}" draggable="false">{frame}</div>'
    )


def _box(frame: Frame) -> str:
    names = ("left", "top", "width", "height")
    return ";".join(f"{n}:{100 * v:.2f}%" for n, v in zip(names, frame, strict=True))


def _tools(role: Role, picture: DraftPicture, *, is_fixed: bool) -> str:
    if is_fixed:
        return '<p class="st-name">Same as the first picture</p>'
    picker = ""
    if picture.num_frames is not None and picture.num_frames > 1:
        last = picture.num_frames - 1
        picker = (
            f'<label class="st-pick">Frame <output>{picture.frame}</output> of {last}'
            f'<input type="range" min="0" max="{last}" value="{picture.frame}" '
            f'data-form="pick" data-role="{role}" data-key="pick-{role}"></label>'
        )
    title = f"Take the {TITLES[role].lower()} out"
    clear = button("", "form", "clear", sign="close", title=title, role=role)
    name = f'<span class="st-name" title="{text(picture.name)}">{text(picture.name)}</span>'
    size = f"{picture.width} × {picture.height}"  # noqa: RUF001 - the sign for it
    return (
        f'{picker}<div class="st-tools">{name}<span class="st-size">{size}</span>'
        f"{_file_input(role, 'Change')}{clear}</div>"
    )
