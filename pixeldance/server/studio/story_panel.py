"""The storyboard as HTML: a frame, and a card that ``story.js`` copies for each shot."""

from collections.abc import Sequence

from pixeldance.request import GenerationRequest
from pixeldance.server.studio.markup import icon, text
from pixeldance.server.studio.wells import ACCEPTED_FILES
from pixeldance.stories import Story

__all__ = ["STORY_CONNECT", "story_html"]

STORY_CONNECT = "studioStory.connect(element, upload);"
"""Makes the storyboard live."""

_SHAPES = GenerationRequest.model_json_schema()["properties"]["aspect_ratio"]["enum"]
_TRANSITIONS = {"continue": "Continue", "cut": "Cut", "morph": "Morph"}
_TRANSITIONS_HELP = (
    "Continue: goes on where the shot before ends. Cut: starts anew. Morph: goes on and arrives at "
    "its last picture, whose colours it takes over."
)


def story_html(models: Sequence[str], *, has_two_experts: bool = False) -> str:
    """The storyboard without any shots.

    Args:
        models: Names of the models that are here, the default first.
        has_two_experts: Whether one of them has two experts, with a guidance for each.

    Returns:
        HTML.
    """
    add = f'<button type="button" class="st-button" data-do="add">{icon("plus")}Add a shot</button>'
    return (
        f'<template>{_card()}</template><ol class="sy-strip" aria-label="Shots"></ol>'
        f'<div class="st-buttons sy-tools">{add}'
        '<label class="st-file st-button"><input type="file" accept=".yaml,.yml,.json" '
        'data-import aria-label="Open a story">Open a story</label>'
        '<button type="button" class="st-button" data-do="export">Save the story</button>'
        '<button type="button" class="st-button" data-do="clear">Begin anew</button></div>'
        f"{_settings(models, has_two_experts=has_two_experts)}"
        '<div class="sy-bar"><p class="st-note st-problem" role="alert" data-problem hidden></p>'
        '<p class="st-note st-warning" role="alert" data-notice hidden></p>'
        '<p class="st-note" data-summary></p>'
        '<div class="sy-progress st-live" hidden>'
        '<progress max="1" value="0" aria-label="Steps done"></progress>'
        '<p class="st-meta" role="status" data-progress></p></div>'
        '<div class="st-buttons"><button type="button" class="st-button st-main" id="make-film" '
        'data-do="make" disabled>Make film</button>'
        '<button type="button" class="st-button" data-do="stop" disabled>Stop</button></div></div>'
        '<section class="sy-film" aria-label="Film" hidden><h3>Film</h3>'
        '<p class="st-note st-warning" data-stale hidden>The story has changed since this film '
        "was made.</p>"
        '<video controls playsinline preload="metadata" aria-label="The film"></video>'
        '<div class="st-buttons st-downloads" role="group" aria-label="Download the film"></div>'
        "</section>"
    )


def _card() -> str:
    transitions = "".join(
        f'<option value="{v}">{label}</option>' for v, label in _TRANSITIONS.items()
    )
    buttons = "".join(
        f'<button type="button" class="st-button" data-do="{do}" aria-label="{title}" '
        f'title="{title}">{icon(sign)}</button>'
        for do, sign, title in (
            ("left", "back", "Move it left"),
            ("right", "on", "Move it right"),
            ("duplicate", "copy", "Duplicate it"),
            ("remove", "close", "Remove it"),
        )
    )
    return (
        '<li class="sy-shot"><div class="sy-head"><h3 data-title></h3>'
        f'<div class="st-buttons">{buttons}</div></div>'
        '<div class="sy-poster"><img alt="" hidden><span data-place></span>'
        '<b class="sy-state" data-state></b></div>'
        '<textarea rows="3" data-field="prompt" placeholder="What happens in this shot" '
        'aria-label="What happens in this shot"></textarea>'
        '<div class="sy-fields"><label>Transition'
        f'<select data-field="transition" title="{_TRANSITIONS_HELP}">'
        f'{transitions}</select><span class="sy-fixed">Starts the film</span></label>'
        '<label>Seconds<input data-field="duration" inputmode="decimal" placeholder="about 2">'
        "</label></div>"
        f'<div class="sy-pictures">{_well("first_frame", "First picture")}'
        f"{_well('last_frame', 'Last picture')}</div>"
        '<label class="sy-strength" hidden>Strength of the last picture <output></output>'
        '<input type="range" min="0" max="1" step="0.05" data-field="last_frame_strength"></label>'
        '<p class="st-note" data-keyframes hidden><span></span> <button type="button" '
        'class="st-button" data-do="drop_keyframes">Leave them out</button></p>'
        '<p class="st-note st-problem" role="alert" data-problem hidden></p>'
        '<div class="st-buttons sy-foot"><button type="button" class="st-button" data-do="redo" '
        'title="Make this shot again with another seed, and those that go on from it">'
        f'{icon("retry")}Redo</button><span class="st-meta" data-facts></span></div></li>'
    )


def _well(role: str, title: str) -> str:
    return (
        f'<div class="sy-well" data-well="{role}"><img alt="" hidden>'
        f'<label class="st-file"><input type="file" accept="{ACCEPTED_FILES}" data-file="{role}" '
        f'aria-label="{title}"><span>{title}</span></label>'
        f'<button type="button" class="st-button" data-do="clear_picture" data-role="{role}" '
        f'aria-label="Take the {title.lower()} out" hidden>{icon("close")}</button></div>'
    )


def _settings(models: Sequence[str], *, has_two_experts: bool) -> str:
    fields = Story.model_fields
    second = [("guidance_scale_2", "Guidance, second expert", "decimal")] * has_two_experts
    numbers = "".join(
        f'<label>{label}<input data-film="{name}" inputmode="{mode}" '
        f'placeholder="{text(fields[name].default if fields[name].default is not None else "")}">'
        "</label>"
        for name, label, mode in (
            ("width", "Width", "numeric"),
            ("height", "Height", "numeric"),
            ("fps", "Frames per second", "numeric"),
            ("num_inference_steps", "Steps", "numeric"),
            ("guidance_scale", "Guidance", "decimal"),
            *second,
            ("seed", "Seed", "numeric"),
        )
    )
    return (
        '<details class="sy-settings"><summary>Film settings</summary><div class="sy-fields">'
        f'<label>Shape<select data-film="aspect_ratio">{_options(_SHAPES)}</select></label>'
        f"{numbers}"
        f'<label>Model<select data-film="model">{_options(models)}</select></label>'
        '<label class="sy-wide">Not wanted<input data-film="negative_prompt"></label>'
        '<label class="sy-check"><input type="checkbox" data-film="loop"> Loop: it ends as it '
        "starts</label></div></details>"
    )


def _options(values: Sequence[str]) -> str:
    return "".join(f'<option value="{text(value)}">{text(value)}</option>' for value in values)
