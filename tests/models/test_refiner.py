"""The refiner: a known answer before training, and nothing leaks between samples."""

import pytest
import torch
from torch import Tensor

from pixeldance.models.matching import PATCH_VALUES
from pixeldance.models.refiner import ReferenceRefiner

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_refiner(*, is_random: bool) -> ReferenceRefiner:
    """As training starts; or with every weight random, so that all inputs matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        refiner = ReferenceRefiner((8, 16, 8), match_channels=16, align_channels=8)
        filters = refiner.aligner.motion.filters
        filters.data[:] = torch.eye(PATCH_VALUES)[: len(filters)]
        if is_random:
            for parameter in refiner.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return refiner


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_inputs(present: list[list[bool]], height: int = 16, width: int = 32) -> Inputs:
    count = len(present)
    return (
        noise(count, 2, 4, 3, height, width, seed=1),
        noise(count, 2, 3, height, width, seed=2),
        noise(count, 2, 3, height, width, seed=3),
        torch.tensor([[-4, 12], [-8, 8]]).expand(count, 2, 2),
        torch.tensor(present),
    )


def test_an_untrained_refiner_returns_the_coarse_frames_if_nothing_is_given() -> None:
    inputs = make_inputs([[False, False]])
    refined, _ = make_refiner(is_random=False)(*inputs)
    assert torch.equal(refined, inputs[0])


@pytest.mark.parametrize("present", [[True, False], [False, True], [True, True]])
def test_an_untrained_refiner_averages_its_sources(present: list[bool]) -> None:
    inputs = make_inputs([present])
    refined, aligned = make_refiner(is_random=False)(*inputs)
    assert aligned.pictures.shape == (1, 2, 8, 3, 16, 32)
    assert aligned.confidence.shape == (1, 2, 8, 1, 2, 4)
    given = aligned.pictures[:, torch.tensor(present)].unflatten(2, (2, 4))
    mean = torch.cat([inputs[0][:, None], given], dim=1).mean(1)
    torch.testing.assert_close(refined, mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("present", [[True, False], [True, True], [False, False]])
def test_what_the_references_make_by_themselves_is_one_more_source(present: list[bool]) -> None:
    inputs, draft = make_inputs([present]), noise(1, 2, 4, 3, 16, 32, seed=4)
    without, _ = make_refiner(is_random=False)(*inputs)
    refined, _ = make_refiner(is_random=False)(*inputs, draft=draft)
    sources = 1 + sum(present)
    mean = (sources * without + draft) / (sources + 1) if any(present) else inputs[0]
    torch.testing.assert_close(refined, mean, atol=1e-5, rtol=0)


def test_drafts_of_clips_without_a_reference_are_not_looked_at() -> None:
    inputs, draft = make_inputs([[False, False], [True, True]]), noise(2, 2, 4, 3, 16, 32, seed=4)
    refiner = make_refiner(is_random=True)
    before, _ = refiner(*inputs, draft=draft)
    other, _ = refiner(*inputs, draft=torch.full_like(draft, torch.nan))
    assert torch.equal(other[0], before[0])
    changed, _ = refiner(*inputs, draft=draft + 1)
    assert (changed[1] - before[1]).abs().max() > 0.01


def test_a_reference_equal_to_the_frames_is_matched_in_place() -> None:
    coarse, _, _, offsets, present = make_inputs([[True, True]], height=32, width=32)
    still = coarse[:, :1, :1].expand(-1, 2, 4, -1, -1, -1)
    references = still[:, 0, :2]
    refiner = make_refiner(is_random=False)
    refiner.aligner.log_temperature.data.fill_(6.0)  # certain of every match
    refined, aligned = refiner(still, references, references, offsets, present)
    assert aligned.confidence.min() > 0.99
    torch.testing.assert_close(refined, still, atol=0.05, rtol=0)


def test_the_content_of_absent_references_changes_nothing() -> None:
    coarse, references, coarse_references, offsets, present = make_inputs([[True, False]])
    refiner = make_refiner(is_random=True)
    before, _ = refiner(coarse, references, coarse_references, offsets, present)
    for picture in (references, coarse_references):
        picture[:, 1] = 100.0
    after, _ = refiner(coarse, references, coarse_references, offsets, present)
    assert torch.equal(before, after)


def test_every_input_of_a_present_reference_counts() -> None:
    inputs = make_inputs([[True, True]])
    refiner = make_refiner(is_random=True)
    before, _ = refiner(*inputs)
    for changed in range(5):
        other = list(inputs)
        if changed == 4:
            other[4] = torch.tensor([[True, False]])
        else:
            other[changed] = inputs[changed] + (8 if changed == 3 else 0.5 * noise(16, 32, seed=7))
        assert (refiner(*other)[0] - before).abs().max() > 1e-4, f"input {changed}"


def test_samples_do_not_see_each_other() -> None:
    inputs = make_inputs([[True, True], [True, False], [False, False]])
    refiner = make_refiner(is_random=True)
    together, _ = refiner(*inputs)
    for row in range(3):
        alone, _ = refiner(*(part[row : row + 1] for part in inputs))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-3, rtol=0)


def names_with_gradient(refiner: ReferenceRefiner) -> set[str]:
    inputs = make_inputs([[True, True]], height=32, width=32)
    _, references, _, _, present = inputs
    with torch.no_grad():
        motion = refiner.motion_between(references, present, torch.zeros(1, 0, 384))
    refined, _ = refiner(*inputs, motion)
    (refined - noise(*refined.shape, seed=8)).square().mean().backward()
    return {
        name
        for name, parameter in refiner.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }


def test_gradient_reaches_every_weight_once_none_is_zero() -> None:
    refiner = make_refiner(is_random=True)
    # the motion is a part of its own
    trained = {name for name, _ in refiner.named_parameters() if ".motion." not in name}
    assert names_with_gradient(refiner) == trained


def test_at_the_start_gradient_stops_at_the_layers_that_are_zero() -> None:
    # The last layers of the U-Net and of the corrections are zero, and so is the second convolution
    # of every residual block: they learn first, and what lies before them from the next step on.
    aligner = {
        "log_temperature",
        "nearness",
        *(f"match.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")),
        *(f"match.{layer}.conv_out.{kind}" for layer in (2, 3) for kind in ("weight", "bias")),
        *(
            f"{layer}.{kind}"
            for layer in ("choose.7", "align.4", "sharpen.4")
            for kind in ("weight", "bias")
        ),
    }
    assert names_with_gradient(make_refiner(is_random=False)) == {
        *(f"aligner.{name}" for name in aligner),
        *(f"leave.2.{kind}" for kind in ("weight", "bias")),
    }
