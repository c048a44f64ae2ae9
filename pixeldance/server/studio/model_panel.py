"""What the page says of the model of the server: what it is, what is loaded, and how it fits."""

from pathlib import Path

from pixeldance.backbones.facts import ModelFacts
from pixeldance.backbones.lora import parse_lora
from pixeldance.jobs import ResidentModel
from pixeldance.server.studio.markup import text

__all__ = ["model_html"]


def model_html(model: str, facts: ModelFacts | None, resident: ResidentModel | None) -> str:
    """The model that clips are made with unless another one is chosen.

    Args:
        model: As requests name it.
        facts: What its configuration says; None if it is not on this machine.
        resident: The model that the worker has loaded, if any.

    Returns:
        HTML.
    """
    if facts is None:
        what = f"<b>{text(model)}</b> is not on this machine. Run: pixeldance fetch {text(model)}"
        return _paragraph(what)
    parts = [f"<b>{text(facts.name)}</b>", *map(text, _properties(facts))]
    return _paragraph(" · ".join(parts)) + _paragraph(_loaded(model, resident))


def _properties(facts: ModelFacts) -> list[str]:
    words = []
    if facts.is_released:
        words.append(f"licence {facts.licence or 'not stated in its folder: see its page'}")
    elif facts.licence:
        words.append(f"licence {facts.licence}")
    if facts.abilities.has_two_experts:
        words.append("two experts")
    if not facts.abilities.takes_pictures:
        words.append("makes clips from words alone")
    if facts.loras:
        words.append(f"LoRA {', '.join(parse_lora(lora).label for lora in facts.loras)}")
    return words


def _loaded(model: str, resident: ResidentModel | None) -> str:
    if resident is None:
        return "It is loaded with the next clip."
    given = resident.facts
    where = f"on {given['device']} in {given['dtype']}" if "device" in given else ""
    if resident.model != model:
        return f"{text(Path(resident.model).name)} is loaded {text(where)} at the moment."
    memory = "" if resident.memory is None else f" Memory: {resident.memory}"
    return text(f"Loaded {where}.{memory}")


def _paragraph(html: str) -> str:
    return f'<p class="st-meta">{html}</p>'
