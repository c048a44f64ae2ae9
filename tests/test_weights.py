"""The shipped weights: listed, loadable by stock diffusers, and able to follow pictures."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import pixeldance
from pixeldance.models.transformer import PixelDanceTransformer3DModel

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"
MODEL = WEIGHTS / "pixeldance-mini"
EXAMPLES = ROOT / "pixeldance" / "examples"


def test_all_files_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 45e6


def test_the_readme_lists_every_file_with_its_sha256() -> None:
    text = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    for path in sorted(MODEL.rglob("*.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"{digest}  {path.relative_to(WEIGHTS).as_posix()}" in text


def test_stock_diffusers_gives_the_same_velocity() -> None:
    folder = MODEL / "transformer"
    ours = PixelDanceTransformer3DModel.from_pretrained(folder, dtype=torch.float32).eval()
    stock = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, ours.config.in_channels, 2, 4, 6, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, ours.config.text_dim, generator=generator),
        "return_dict": False,
    }
    with torch.no_grad():
        expected, velocity = stock(**inputs)[0], ours(**inputs)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> pixeldance.Model:
    return pixeldance.load()


def test_the_first_and_last_frame_are_followed(model: pixeldance.Model) -> None:
    clip = model.generate(
        prompt=(EXAMPLES / "prompt.txt").read_text(encoding="utf-8").strip(),
        first_frame=EXAMPLES / "first.png",
        last_frame=EXAMPLES / "last.png",
        num_frames=9,
        num_inference_steps=2,
        seed=0,
    )
    assert clip.frames.shape == (9, 144, 256, 3)
    for name, frame in (("first", clip.frames[0]), ("last", clip.frames[-1])):
        given = pixeldance_picture(EXAMPLES / f"{name}.png")
        assert psnr(frame, given) > 28, name


def pixeldance_picture(path: Path) -> np.ndarray:
    from pixeldance.geometry import Size, fit_picture
    from pixeldance.pictures import load_picture

    return np.asarray(fit_picture(load_picture(path), Size(144, 256)))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error))
