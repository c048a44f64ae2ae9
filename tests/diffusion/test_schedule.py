import pytest
import torch

from pixeldance.diffusion import shifted_sigmas
from pixeldance.errors import ConfigError


def test_no_shift_is_uniform() -> None:
    assert shifted_sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_shift_three_is_known_on_paper() -> None:
    # 3s / (1 + 2s) at s = 1, 3/4, 1/2, 1/4, 0
    expected = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    torch.testing.assert_close(shifted_sigmas(4, shift=3.0), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 200])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_levels_fall_strictly_from_one_to_zero(num_steps: int, shift: float) -> None:
    sigmas = shifted_sigmas(num_steps, shift=shift)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float32
    assert (sigmas[0].item(), sigmas[-1].item()) == (1.0, 0.0)
    assert (sigmas.diff() < 0).all()


def test_a_later_start_takes_equal_steps_before_the_shift() -> None:
    # 3s / (1 + 2s) = 3/4 at s = 1/2; then 1/4, where it is 1/2
    expected = torch.tensor([0.75, 0.5, 0.0])
    torch.testing.assert_close(shifted_sigmas(2, shift=3.0, start=0.75), expected)


@pytest.mark.parametrize("start", [0.05, 0.8, 1.0])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_start_where_they_are_told(start: float, shift: float) -> None:
    sigmas = shifted_sigmas(5, shift=shift, start=start)
    torch.testing.assert_close(sigmas[0], torch.tensor(start))
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("start", [0.0, -0.1, 1.1, float("nan")])
def test_a_start_outside_of_the_levels_is_an_error(start: float) -> None:
    with pytest.raises(ConfigError, match=rf"in \(0, 1\], got {start}. Use 1.0"):
        shifted_sigmas(4, start=start)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_is_an_error(num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, got {num_steps}. Use 1"):
        shifted_sigmas(num_steps)


@pytest.mark.parametrize("shift", [0.0, -3.0, float("nan")])
def test_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ConfigError, match=f"greater than 0, got {shift}. Use 1.0"):
        shifted_sigmas(4, shift=shift)
