"""Make the picture of pictures-and-strength.md: ``python docs/strength_sheet.py``."""

from pathlib import Path

import numpy as np
from PIL import Image

import pixeldance

STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)
FRAMES = (0, 6, 12, 18, 24)
EXAMPLES = Path(pixeldance.__file__).parent / "examples"
OUTPUT = Path(__file__).parent / "pictures" / "strength.webp"


def main() -> None:
    """Make the example's clip at every strength and lay frames of all out in rows."""
    model = pixeldance.load()
    rows = []
    for strength in STRENGTHS:
        clip = model.generate(
            prompt="a glowing star moves to the right, in the desert at dawn",
            first_frame=EXAMPLES / "first.png",
            last_frame=EXAMPLES / "last.png",
            last_frame_strength=strength,
            seed=3,
        )
        rows.append(np.hstack([clip.frames[frame] for frame in FRAMES]))
    OUTPUT.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(OUTPUT, quality=85, method=6)
    print(OUTPUT)  # noqa: T201


if __name__ == "__main__":
    main()
