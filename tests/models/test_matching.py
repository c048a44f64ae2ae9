"""Matching: motions that are known are found, whatever part of the matches is wrong."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from pixeldance.models.matching import (
    PATCH_VALUES,
    Matches,
    Similarity,
    best_match,
    described,
    matches_of,
    patches,
    places,
    similarities,
    whitening,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similarity(scale: float, angle: float, shift: complex) -> Similarity:
    return Similarity(
        torch.tensor([cmath.rect(scale, angle)], dtype=torch.complex64),
        torch.tensor([shift], dtype=torch.complex64),
    )


MOTIONS = [
    similarity(1.0, 0.0, 12 - 7j),
    similarity(1.6, 0.0, -20 + 5j),
    similarity(0.7, math.pi / 5, 30 + 30j),
]


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_way_back_undoes_the_way_there(motion: Similarity) -> None:
    there = motion.factor * (3 + 4j) + motion.shift
    back = motion.inverse()
    assert complex(back.factor * there + back.shift) == pytest.approx(3 + 4j, abs=1e-4)


@pytest.mark.parametrize("motion", [*MOTIONS, similarity(1.0, 1e-5, 9 - 2j)])
def test_parts_of_the_way_are_the_way(motion: Similarity) -> None:
    place = torch.tensor(3 + 4j)
    half = motion.part(0.5)
    for whole in (moved(half, moved(half, place)), moved(motion.part(1.0), place)):
        assert complex(whole) == pytest.approx(complex(moved(motion, place)), abs=1e-3)
    assert complex(moved(motion.part(0.0), place)) == pytest.approx(3 + 4j)


def test_at_a_constant_pace_scale_and_turn_grow_evenly() -> None:
    part = similarity(4.0, math.pi / 2, 0j).part(0.5)
    assert complex(part.factor) == pytest.approx(cmath.rect(2.0, math.pi / 4), abs=1e-5)
    assert complex(similarity(1.0, 0.0, 8 - 4j).part(0.25).shift) == pytest.approx(2 - 1j)


def test_displacements_of_places() -> None:
    flow = similarity(2.0, math.pi / 2, 0j).flow(places(2, 3, 4, torch.device("cpu")))
    # the second place of the first row is at 6 + 2i; turned and doubled it is at -4 + 12i
    torch.testing.assert_close(flow[0, :, 0, 1], torch.tensor([-10.0, 10.0]))


def moved(motion: Similarity, here: Tensor) -> Tensor:
    return motion.factor * here + motion.shift


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("wrong", [0.0, 0.6])
def test_one_motion_is_found_among_wrong_matches(motion: Similarity, wrong: float) -> None:
    here = torch.complex(*(100 * noise(2, 400, seed=1)))
    there = moved(motion, here) + torch.complex(*(0.3 * noise(2, 400, seed=2)))
    strays = torch.complex(*(100 * noise(2, 400, seed=3)))
    is_wrong = torch.arange(400) < 400 * wrong
    matches = Matches(here[None], torch.where(is_wrong, strays, there)[None], torch.ones(1, 400))
    (found,) = similarities(matches, 1)
    assert float((moved(found, here) - moved(motion, here)).abs().max()) < 1.5
    again = similarities(matches, 1)[0]
    assert torch.equal(found.factor, again.factor), "not the same twice"


def test_the_strongest_motion_comes_first_then_what_is_left() -> None:
    here = torch.complex(*(100 * noise(2, 300, seed=1)))
    first = torch.arange(300) < 200
    there = torch.where(first, moved(MOTIONS[0], here), moved(MOTIONS[2], here))
    found = similarities(Matches(here[None], there[None], torch.ones(1, 300)), 2)
    for motion, expected in zip(found, (MOTIONS[0], MOTIONS[2]), strict=True):
        assert complex(motion.factor) == pytest.approx(complex(expected.factor), abs=0.01)
        assert complex(motion.shift) == pytest.approx(complex(expected.shift), abs=0.5)


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    here = torch.complex(*(100 * noise(2, 300, seed=1)))
    there = torch.stack([moved(MOTIONS[0], here), moved(MOTIONS[1], here)])
    both = Matches(here.expand(2, -1), there, torch.ones(2, 300))
    together = similarities(both, 2)
    alone = similarities(Matches(*(part[1:] for part in both)), 2)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.shift[1:], other.shift, atol=1e-3, rtol=1e-3)


def test_a_picture_all_of_one_colour_gives_some_motion_and_no_nan() -> None:
    descriptors = described(torch.zeros(2, 3, 32, 32), torch.eye(PATCH_VALUES))
    assert not descriptors.any()
    flow, trust = best_match(descriptors[:1], descriptors[1:])
    found = similarities(
        matches_of(torch.stack([flow, flow], 1), torch.stack([trust, trust], 1)), 3
    )
    for motion in found:
        assert torch.isfinite(torch.view_as_real(motion.factor)).all()
        assert torch.isfinite(torch.view_as_real(motion.inverse().shift)).all()


def test_patches_have_no_mean_and_are_where_they_should_be() -> None:
    picture = noise(1, 3, 32, 32)
    found = patches(picture)
    assert found.shape == (1, PATCH_VALUES, 16, 16)
    small = torch.nn.functional.avg_pool2d(picture, 2)
    around = small[0, 1, 3:11, 4:12]  # the patch of row 5, column 6 starts two before it
    torch.testing.assert_close(found[0, 64:128, 5, 6], (around - around.mean()).flatten())


def test_whitening_makes_components_equally_strong_and_independent() -> None:
    mixed = noise(4000, PATCH_VALUES) * torch.linspace(1, 20, PATCH_VALUES)
    seen = mixed @ whitening(mixed, 8, power=0.5).T
    covariance = seen.T @ seen / len(seen)
    covariance = covariance / covariance[0, 0]
    torch.testing.assert_close(covariance, torch.eye(8), atol=0.02, rtol=0)
