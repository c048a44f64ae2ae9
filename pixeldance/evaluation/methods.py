"""The methods that are compared: the model and its peers, by name.

Every method is given the first and the last frame of a clip; the model is given the prompt and a
seed too.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from pixeldance.errors import InputError
from pixeldance.evaluation.peers import PEERS, Frames, Interpolator
from pixeldance.evaluation.settings import OURS, EvalSettings, Sampling
from pixeldance.evaluation.suite import EvalClip
from pixeldance.geometry import Size

if TYPE_CHECKING:
    from pixeldance.api import Model
    from pixeldance.request import GenerationRequest

__all__ = [
    "METHODS",
    "TRUTH",
    "Method",
    "check_methods",
    "generate_quietly",
    "our_method",
    "peer_method",
]

TRUTH = "truth"
"""Name of the clips themselves, beside the methods: what they measure where nothing is compared."""


METHODS = (OURS, *PEERS)

Method = Callable[[EvalClip, Frames], Frames]
"""``method(clip, truth)``: a clip of the truth's shape. It may look at the prompt, the seed and at
the truth's first and last frames only."""


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Check names of methods.

    Args:
        names: Some of ``METHODS``.

    Returns:
        The names.

    Raises:
        InputError: If there are none, one is unknown or one is there twice.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) < len(names):
        raise InputError(
            f"methods must be some of {', '.join(METHODS)}, each once, got "
            f"{', '.join(names) or 'none'}."
        )
    return tuple(names)


def our_method(model: "Model", settings: EvalSettings, sampling: Sampling) -> Method:
    """The model: given the prompt and both pictures, the clip's seed for the noise.

    Args:
        model: A loaded model.
        settings: Length of the clips.
        sampling: How the model samples.

    Returns:
        The method.
    """

    def generate(clip: EvalClip, truth: Frames) -> Frames:
        request = settings.request(
            Size(*truth.shape[1:3]),
            sampling,
            prompt=clip.prompt,
            first_frame=Image.fromarray(truth[0]),
            last_frame=Image.fromarray(truth[-1]),
            seed=clip.seed,
        )
        return generate_quietly(model, request)

    return generate


def generate_quietly(model: "Model", request: "GenerationRequest") -> Frames:
    """Make a clip without a progress bar.

    Args:
        model: A loaded model.
        request: What to make.

    Returns:
        Its frames.
    """
    # A listener, even one that does nothing, takes the place of the bar.
    return model.generate(request, on_step=lambda _: None).frames


def peer_method(interpolate: Interpolator) -> Method:
    """An interpolator as a method: it is given both pictures and nothing else.

    Args:
        interpolate: Fills in the frames between two pictures.

    Returns:
        The method.
    """
    return lambda _, truth: interpolate(truth[0], truth[-1], len(truth))
