"""Other colours for the motion's training: the same for both pictures, others for each sample."""

import torch

from pixeldance.training.motion import recoloured


def grey_pair(count: int) -> torch.Tensor:
    ramp = torch.linspace(-1, 1, 48).view(1, 1, 3, 4, 4)
    return torch.cat([ramp, ramp], dim=1).expand(count, -1, -1, -1, -1)


def test_both_pictures_of_a_sample_get_the_same_colours() -> None:
    made = recoloured(grey_pair(50), torch.arange(50))
    torch.testing.assert_close(made[:, 0], made[:, 1])
    assert made.abs().max() <= 1
    # no two samples alike
    distances = torch.cdist(made[:, 0].flatten(1), made[:, 0].flatten(1)) + 10 * torch.eye(50)
    assert distances.min() > 0.05


def test_a_sample_gets_the_same_colours_in_every_batch() -> None:
    pictures = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = recoloured(pictures, torch.tensor([4, 9, 2]))
    alone = recoloured(pictures[1:2], torch.tensor([9]))
    torch.testing.assert_close(together[1:2], alone)


def test_what_is_where_does_not_change() -> None:
    """Each colour stays a line through the old ones: flat places stay flat, edges stay edges."""
    pictures = torch.full((200, 2, 3, 4, 4), -0.4)
    pictures[:, :, :, :, 2:] = 0.4
    made = recoloured(pictures, torch.arange(200))
    assert (made[..., :2] == made[..., :1]).all()
    assert (made[..., 2:] == made[..., 2:3]).all()
    contrast = (made[..., 2] - made[..., 1])[:, :, :, 0]
    # .8 between three quarters and five quarters of it
    assert contrast.min() >= 0.6 - 1e-5
    assert contrast.max() <= 1.0 + 1e-5
