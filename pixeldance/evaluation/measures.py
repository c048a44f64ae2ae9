"""What is measured on one clip: a table of measures, and all of them at once.

Measures that compare with the truth look at the frames in between; how well the pictures given are
met is measured apart, on the first and the last frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pixeldance.evaluation.lpips import Lpips
from pixeldance.evaluation.metrics import (
    colour_drift,
    end_jump_ratio,
    loop_seam,
    psnr,
    ssim,
    start_jump_ratio,
    stillness,
)
from pixeldance.evaluation.peers import Frames

__all__ = ["MEASURES", "Measure", "Scores", "TruthFeatures", "compare_clip", "describe_clip"]

Scores = dict[str, float]
"""Value by key of a measure."""

TruthFeatures = list[Tensor]
"""What LPIPS sees in the true frames."""


@dataclass(frozen=True)
class Measure:
    """How a number is shown.

    Attributes:
        key: Its name in files.
        title: Its name for readers, with the unit.
        decimals: How many are shown.
        better: ``"low"``, ``"high"``, or ``"truth"``: as near to the truth's as possible.
        explanation: What it means, in a sentence.
    """

    key: str
    title: str
    decimals: int
    better: str
    explanation: str


MEASURES: Mapping[str, Measure] = {
    measure.key: measure
    for measure in (
        Measure("lpips", "LPIPS", 4, "low", "Perceptual distance of the inner frames."),
        Measure("psnr", "PSNR, dB", 2, "high", "Of the inner frames."),
        Measure("ssim", "SSIM", 3, "high", "Structural similarity of the inner frames."),
        Measure("first_psnr", "first frame, dB", 1, "high", "PSNR to the first picture given."),
        Measure("last_psnr", "last frame, dB", 1, "high", "PSNR to the last picture given."),
        Measure("first_lpips", "first frame, LPIPS", 4, "low", "To the first picture given."),
        Measure("last_lpips", "last frame, LPIPS", 4, "low", "To the last picture given."),
        Measure("start_jump", "start jump", 2, "low", "First step / steps after it; 1 = none."),
        Measure("end_jump", "end jump", 2, "low", "Last step / steps before it; 1 = none."),
        Measure(
            "colour_drift",
            "colour drift, ΔE",
            2,
            "low",
            "Mean colour of a frame against the truth.",
        ),
        Measure("stillness", "stillness", 3, "truth", "Share of steps in which nothing changes."),
        Measure("loop_seam", "loop seam", 2, "truth", "Last frame to first / typical step."),
        Measure("seconds", "s per clip", 1, "low", "Time that the method took."),
    )
}


def compare_clip(
    truth: Frames, made: Frames, *, lpips: Lpips, truth_features: TruthFeatures
) -> Scores:
    """All measures of a clip but the time.

    Args:
        truth: The true clip.
        made: What a method made of its ends, of the same shape.
        lpips: The perceptual metric.
        truth_features: ``lpips.features(truth)``.

    Returns:
        Value by key.
    """
    inner = slice(1, -1)
    distances = lpips.distances(truth_features, lpips.features(made))
    return {
        "lpips": float(distances[inner].mean()),
        "psnr": psnr(truth[inner], made[inner]),
        "ssim": ssim(truth[inner], made[inner]),
        "first_psnr": psnr(truth[:1], made[:1]),
        "last_psnr": psnr(truth[-1:], made[-1:]),
        "first_lpips": float(distances[0]),
        "last_lpips": float(distances[-1]),
        "colour_drift": colour_drift(made, truth),
        **describe_clip(made),
    }


def describe_clip(frames: Frames) -> Scores:
    """The measures that need no truth.

    Args:
        frames: A clip.

    Returns:
        Value by key.
    """
    return {
        "start_jump": start_jump_ratio(frames),
        "end_jump": end_jump_ratio(frames),
        "stillness": stillness(frames),
        "loop_seam": loop_seam(frames),
    }
