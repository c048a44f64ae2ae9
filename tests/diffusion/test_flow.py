import pytest
import torch

from pixeldance.diffusion import add_noise, denoised_from, timesteps_of, velocity_target


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 5, 2, 2, generator=generator)
    return clean, noise


def test_sigma_zero_is_data_and_one_is_noise() -> None:
    clean, noise = pair()
    assert torch.equal(add_noise(clean, noise, 0.0), clean)
    assert torch.equal(add_noise(clean, noise, 1.0), noise)


def test_noise_level_a_quarter_of_the_way_is_known() -> None:
    noisy = add_noise(torch.full((1, 2), 8.0), torch.full((1, 2), 4.0), 0.25)
    assert noisy.tolist() == [[7.0, 7.0]]


@pytest.mark.parametrize("sigma", [0.1, 1.0, torch.tensor(0.5), torch.tensor([0.0, 0.3, 1.0])])
def test_the_true_velocity_leads_back_to_the_data(sigma: float | torch.Tensor) -> None:
    clean, noise = pair()
    noisy = add_noise(clean, noise, sigma)
    denoised = denoised_from(noisy, velocity_target(clean, noise), sigma)
    torch.testing.assert_close(denoised, clean, rtol=0, atol=1e-6)


def test_each_clip_gets_its_own_level() -> None:
    clean, noise = pair()
    noisy = add_noise(clean, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])


def test_results_are_float32_whatever_the_model_gives() -> None:
    clean, noise = (tensor.bfloat16() for tensor in pair())
    assert add_noise(clean, noise, 0.5).dtype == torch.float32
    assert velocity_target(clean, noise).dtype == torch.float32
    assert denoised_from(clean, noise, 0.5).dtype == torch.float32


def test_timesteps_are_a_thousand_sigmas_in_float32() -> None:
    timesteps = timesteps_of(torch.tensor([1.0, 0.999, 0.0]))
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == [1000.0, 999.0, 0.0]
