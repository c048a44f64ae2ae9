import pytest
import torch

from pixeldance.diffusion import denoised_from, sample_euler, shifted_sigmas
from pixeldance.errors import ConfigError, GenerationCancelled

NOISE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
POINT = torch.linspace(-2.0, 2.0, 24).reshape(2, 3, 4)


def towards_point(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
    """Velocity of a model whose data is one point: straight there from anywhere."""
    return (latents - POINT) / sigma


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_point_of_data_is_reached_exactly(num_steps: int, shift: float) -> None:
    latents = sample_euler(towards_point, NOISE, shifted_sigmas(num_steps, shift=shift))
    torch.testing.assert_close(latents, POINT, rtol=0, atol=1e-5)


def test_velocity_is_asked_once_for_each_level_but_the_last() -> None:
    asked = []

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        asked.append((step, sigma.item()))
        return torch.zeros_like(latents)

    sample_euler(velocity, NOISE, shifted_sigmas(4))
    assert asked == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)]


def test_on_step_sees_every_step_and_may_replace_the_latents() -> None:
    seen = []

    def replace_at_two(step: int, latents: torch.Tensor) -> torch.Tensor | None:
        seen.append((step, latents))
        return torch.full_like(latents, 5.0) if step == 2 else None

    latents = sample_euler(
        lambda latents, sigma, step: torch.zeros_like(latents),
        NOISE,
        shifted_sigmas(4),
        on_step=replace_at_two,
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[0][1], NOISE)
    assert (latents == 5.0).all()


def test_an_exception_in_on_step_stops_at_once() -> None:
    calls = []

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        calls.append(step)
        return latents

    def cancel(step: int, latents: torch.Tensor) -> None:
        raise GenerationCancelled("enough")

    with pytest.raises(GenerationCancelled):
        sample_euler(velocity, NOISE, shifted_sigmas(50), on_step=cancel)
    assert calls == [0]


def test_latents_stay_float32_with_a_bfloat16_model() -> None:
    latents = sample_euler(
        lambda latents, sigma, step: torch.ones_like(latents, dtype=torch.bfloat16),
        NOISE,
        shifted_sigmas(3),
    )
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, NOISE - 1.0, rtol=0, atol=1e-6)


def test_the_last_step_lands_on_what_the_model_believes_the_data_to_be() -> None:
    sigmas = shifted_sigmas(3, shift=3.0)
    states = [NOISE]

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        return torch.sin(latents)

    latents = sample_euler(
        velocity, NOISE, sigmas, on_step=lambda step, latents: states.append(latents)
    )
    expected = denoised_from(states[-2], torch.sin(states[-2]), sigmas[-2])
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [0, 1])
def test_too_few_levels_is_an_error(levels: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 2 levels, got {levels}"):
        sample_euler(towards_point, NOISE, torch.ones(levels))
