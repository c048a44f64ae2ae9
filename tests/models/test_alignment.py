"""Alignment: exact warps, and both hypotheses on pictures whose motion is known."""

import pytest
import torch
from torch import Tensor, nn

from pixeldance.models.alignment import Aligned, ReferenceAligner
from pixeldance.models.layers import warp
from pixeldance.models.matching import PATCH_VALUES
from pixeldance.models.motion import NUM_CANDIDATES


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant_flow(x: float, y: float, height: int, width: int) -> Tensor:
    return torch.tensor([x, y])[None, :, None, None].expand(1, 2, height, width)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (0, 3), (-3, 1)])
def test_warping_by_whole_pixels_moves_them(x: int, y: int) -> None:
    picture = noise(1, 3, 9, 12)
    rows = (torch.arange(9) + y).clamp(0, 8)  # the border is repeated
    columns = (torch.arange(12) + x).clamp(0, 11)
    moved = picture[:, :, rows][:, :, :, columns]
    warped = warp(picture, constant_flow(x, y, 9, 12))
    torch.testing.assert_close(warped, moved, atol=1e-5, rtol=0)


def test_warping_by_half_a_pixel_takes_the_mean() -> None:
    picture = noise(1, 3, 8, 8)
    warped = warp(picture, constant_flow(0.5, 0, 8, 8))
    mean = (picture[..., :-1] + picture[..., 1:]) / 2
    torch.testing.assert_close(warped[..., :-1], mean, atol=1e-5, rtol=0)


def aligned(
    coarse: Tensor,
    references: Tensor,
    *,
    trust: float,
    slot: int = 1,
    present: tuple[bool, bool] = (True, True),
) -> Aligned:
    """Align with a network that is certain of its matches and takes only one hypothesis.

    Large ``trust`` takes the carried one, small ``trust`` the matched one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        aligner = ReferenceAligner(match_channels=32, align_channels=8, choose_channels=16)
    aligner.log_temperature.data.fill_(7.0)
    aligner.motion.filters.data[:] = torch.eye(PATCH_VALUES)[: len(aligner.motion.filters)]
    motion = aligner.motion
    motion.leave[-1].bias.data[0] = 30.0  # the strongest motion, everywhere
    # without two pictures: what the text says of the camera, 16 pixels to the left after all
    motion.leave[-1].bias.data[NUM_CANDIDATES] = 30.0 if not all(present) else 0.0
    for layer in (motion.reader.say_camera, motion.reader.say_subject, motion.tell_camera):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    path = torch.zeros(4, 4)
    path[:, 0] = -16 / 32 * torch.arange(1, 5) / 4  # shift in x after each quarter
    motion.reader.say_camera.bias.data.copy_(path.flatten())
    chosen: Tensor = aligner.choose[-1].bias.data
    chosen[:2] = trust
    there = torch.tensor([present])
    with torch.no_grad():
        made, _ = motion(references, there, torch.zeros(1, 0, 384))
        return aligner(coarse, references, references, offsets_of(slot, 8), there, made)


def offsets_of(slot: int, last_frame: int) -> Tensor:
    """Frames from the four frames of a latent frame to the first and to the last one."""
    frames = 4 * slot - 3 + torch.arange(4)
    return torch.stack([-frames, last_frame - frames], dim=-1)[None]


def moving(shift: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """Two views of one wide picture, the second ``shift`` pixels further right; and the picture."""
    wide = noise(3, side, side + shift, seed=5)
    return torch.stack([wide[..., :side], wide[..., shift:]])[None], wide


def test_without_coarse_frames_motion_between_the_references_is_uniform() -> None:
    references, wide = moving(16)
    blank = torch.zeros(1, 4, 3, 64, 64)
    # frames 1 to 4 of a clip of 9: frame q + 1 is (q + 1) / 8 of the way, 2 pixels per frame
    made = aligned(blank, references, trust=30.0).pictures[0]
    inner = slice(24, 40)  # away from the borders, where something has no match
    for q in range(4):
        truth = wide[..., 2 * (q + 1) :][..., :64]
        for reference in range(2):
            torch.testing.assert_close(
                made[reference, q][:, inner, inner], truth[:, inner, inner], atol=0.05, rtol=0
            )


def test_the_first_latent_frame_is_all_frame_zero() -> None:
    references, _ = moving(16)
    blank = torch.zeros(1, 4, 3, 64, 64)
    made = aligned(blank, references, trust=30.0, slot=0).pictures[0, 0]
    inner = slice(24, 40)
    for q in range(4):
        torch.testing.assert_close(
            made[q][:, inner, inner], references[0, 0][:, inner, inner], atol=0.05, rtol=0
        )


def test_coarse_frames_that_show_the_motion_are_followed_whatever_the_references_do() -> None:
    references, wide = moving(16)
    # motion is not uniform here: frames 1 to 4 already stand where the last picture does
    coarse = references[:, 1:].expand(-1, 4, -1, -1, -1)
    made = aligned(coarse, references, trust=-30.0).pictures[0]
    inner = slice(24, 40)
    for q in range(4):
        torch.testing.assert_close(
            made[0, q][:, inner, inner], wide[:, inner, 16:][..., inner], atol=0.05, rtol=0
        )


def test_one_reference_is_carried_to_where_the_text_says_until_the_clip_ends() -> None:
    references, wide = moving(16)
    blank = torch.zeros(1, 4, 3, 64, 64)
    made = aligned(blank, references, trust=30.0, present=(True, False)).pictures[0, 0]
    inner = slice(24, 40)
    for q in range(4):
        truth = wide[..., 2 * (q + 1) :][..., :64]
        torch.testing.assert_close(
            made[q][:, inner, inner], truth[:, inner, inner], atol=0.05, rtol=0
        )


def test_without_motion_only_matching_is_left() -> None:
    references, _ = moving(16)
    coarse = references[:, :1].expand(-1, 4, -1, -1, -1)
    aligner = ReferenceAligner(match_channels=32, align_channels=8, choose_channels=16)
    offsets = offsets_of(1, 8)
    present = torch.tensor([[True, False]])
    with torch.no_grad():
        before = aligner(coarse, references, references, offsets, present)
        chosen: Tensor = aligner.choose[-1].bias.data
        chosen[:2] = 30.0
        after = aligner(coarse, references, references, offsets, present)
    assert torch.equal(before.pictures[:, 0], after.pictures[:, 0])
