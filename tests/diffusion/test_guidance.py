import torch

from pixeldance.diffusion import guided_velocity


def test_scale_one_is_the_conditional_velocity() -> None:
    cond, uncond = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    assert torch.equal(guided_velocity(cond, uncond, 1.0), cond)


def test_scale_moves_away_from_the_unconditional_velocity() -> None:
    guided = guided_velocity(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]), 3.0)
    assert guided.tolist() == [4.0, -5.0]


def test_guidance_of_bfloat16_velocities_is_computed_in_float32() -> None:
    cond = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    guided = guided_velocity(cond, torch.ones(2, dtype=torch.bfloat16), 1.5)
    assert guided.dtype == torch.float32
    assert guided.tolist() == [1.0, 1.01171875]  # bfloat16 cannot hold this value
