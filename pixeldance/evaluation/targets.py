"""What the model is meant to reach, and whether it does: the one place with these numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MIN_CLIPS", "TARGETS", "Target", "judged"]

MIN_CLIPS = 256
"""Fewer clips give an indication, not a result."""


@dataclass(frozen=True)
class Target:
    """A limit for one of the report's figures.

    Attributes:
        figure: Key of the figure, see ``report.figures``.
        measure: What it is, for readers.
        limit: The worst value allowed.
        is_ceiling: Whether smaller is better.
        decimals: How many are shown.
        is_share: Whether it is shown in percent.
    """

    figure: str
    measure: str
    limit: float
    is_ceiling: bool = True
    decimals: int = 2
    is_share: bool = False


TARGETS: Sequence[Target] = (
    Target("ratio/lpips/rife", "inner LPIPS / RIFE's", 0.75, decimals=3),
    Target("ratio/lpips/crossfade", "inner LPIPS / crossfade's", 0.65, decimals=3),
    Target("fvd/rife", "FVD / RIFE's", 0.6, decimals=3),
    Target("mean/first_psnr", "first frame to the picture given, dB", 32, False, 1),
    Target("mean/last_psnr", "last frame to the picture given, dB", 30, False, 1),
    Target("mean/end_jump", "end-jump ratio", 1.2),
    Target("adherence/direction", "direction of the character as asked", 0.95, False, 1, True),
    Target("adherence/camera", "camera as asked", 0.95, False, 1, True),
    Target("adherence/order", "two actions in order", 0.85, False, 1, True),
    Target("reference/lpips", "LPIPS / the reference setting's", 1.03, decimals=3),
    Target("reference/direction", "direction lost to the reference", 0.02, True, 1, True),
    Target("reference/camera", "camera lost to the reference", 0.02, True, 1, True),
    Target("mean/seconds", "seconds for a clip", 5, decimals=1),
)


def judged(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hold figures against the targets.

    Args:
        figures: ``mean`` and, where known, ``low``, ``high`` by key.

    Returns:
        One entry a target, JSON values; ``ours`` and ``met`` are None where nothing was measured.
    """
    rows = []
    for target in TARGETS:
        ours = figures.get(target.figure)
        met = None
        if ours is not None:
            value = ours["mean"]
            met = value <= target.limit if target.is_ceiling else value >= target.limit
        rows.append(
            {
                "figure": target.figure,
                "measure": target.measure,
                "limit": target.limit,
                "is_ceiling": target.is_ceiling,
                "decimals": target.decimals,
                "is_share": target.is_share,
                "ours": None if ours is None else dict(ours),
                "met": met,
            }
        )
    return rows
