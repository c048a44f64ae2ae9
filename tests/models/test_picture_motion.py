"""Motion between two pictures: what can be known before anything is learned, and what is read."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from pixeldance.models.carrying import carried, detour_of
from pixeldance.models.matching import PATCH_VALUES
from pixeldance.models.motion import PictureMotion
from pixeldance.models.reading import Said


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def given(*present: bool) -> Tensor:
    return torch.tensor([present or (True, True)])


def make_network(*, is_random: bool = True) -> PictureMotion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PictureMotion(PATCH_VALUES, channels=(16, 16, 20), text_dim=6)
        if is_random:
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
    network.filters.data.copy_(torch.eye(PATCH_VALUES))
    return network


def text_of(count: int, *, seed: int = 7) -> Tensor:
    text = noise(count, 5, 6, seed=seed)
    text[:, 3:] = 0.0  # padding
    return text


def test_clips_do_not_see_each_other() -> None:
    network, pictures, text = make_network(), noise(2, 2, 3, 32, 48), text_of(2)
    present = torch.tensor([[True, True], [True, False]])
    together, _ = network(pictures, present, text)
    assert together.behind is None
    assert [part.shape for part in together[:3]] == [
        (2, 2, 2, 8, 12),
        (2, 2, 1, 8, 12),
        (2, 2, 3, 2, 8, 12),
    ]
    for clip in (0, 1):
        alone, _ = network(pictures[[clip]], present[[clip]], text[[clip], :4])
        for part, single in zip(together[:3], alone[:3], strict=True):
            torch.testing.assert_close(part[[clip]], single, atol=1e-3, rtol=1e-4)


def test_an_absent_picture_is_not_looked_at_and_the_text_is_read() -> None:
    network, pictures, text = make_network(), noise(1, 2, 3, 32, 48), text_of(1)
    other = torch.cat([pictures[:, :1], 1000 * pictures[:, 1:]], dim=1)
    made = network(pictures, given(True, False), text)[0]
    same = network(other, given(True, False), text)[0]
    assert all(part.equal(other_part) for part, other_part in zip(made[:3], same[:3], strict=True))
    changed = network(pictures, given(True, False), text_of(1, seed=8))[0]
    assert (changed.flow - made.flow).abs().max() > 1e-3
    assert (changed.detour - made.detour).abs().max() > 1e-3


def test_a_picture_found_again_is_found_to_the_pixel_before_anything_is_learned() -> None:
    wide = noise(3, 64, 112, seed=1)
    wide = torch.nn.functional.avg_pool2d(wide, 3, stride=1, padding=1) * 3
    pictures = torch.stack([wide[..., :96], wide[..., 16:]])[None]
    with torch.no_grad():
        candidates = make_network(is_random=False).candidates(pictures, given())
    for number, shift in ((0, -16.0), (1, 16.0)):
        found = candidates.flow[0, number, 0]
        torch.testing.assert_close(found[0], torch.full((16, 24), shift), atol=0.3, rtol=0)
        torch.testing.assert_close(found[1], torch.zeros(16, 24), atol=0.3, rtol=0)
    # away from the side at which the first picture shows something that the second does not
    inner = candidates.likeness[0, 0, 0, 2:-2, 8:-2]
    assert inner.min() > 0.9
    assert candidates.difference[0, 0, 0, 2:-2, 8:-2].max() < 0.05
    assert candidates.likeness[0, 0, 0, 2:-2, :2].max() < 0.5


def test_what_is_said_depends_on_which_word_comes_first() -> None:
    reader, text = make_network().reader, text_of(1)
    forth, back = reader(text), reader(text.flip(1))
    assert (forth.subjects - back.subjects).abs().max() > 1e-3
    # whether there is a cut is a matter of each word
    torch.testing.assert_close(forth.cut, back.cut)


def test_gradient_reaches_every_weight() -> None:
    network = make_network()
    motion, _ = network(noise(1, 2, 3, 32, 32), given(), text_of(1), is_mixed=True)
    flow, front = carried(motion, torch.tensor([[0.3]]), given())
    (flow.square().mean() + front.square().mean()).backward()
    without = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # filters are closed form; whether there is a cut is no motion
    assert without == {"filters", "reader.say_cut.weight", "reader.say_cut.bias"}


def turned_by(angle: float) -> Tensor:
    """A picture, and the same turned around its centre: ``(1, 2, 3, 64, 96)``."""
    wide = torch.nn.functional.avg_pool2d(noise(1, 3, 64, 96, seed=1), 7, stride=1, padding=3) * 7
    cos, sin = math.cos(angle), math.sin(angle)
    # grid coordinates are halves of the sides, which differ
    theta = torch.tensor([[[cos, sin * 64 / 96, 0.0], [-sin * 96 / 64, cos, 0.0]]])
    grid = torch.nn.functional.affine_grid(theta, [1, 3, 64, 96], align_corners=False)
    return torch.stack(
        [wide, torch.nn.functional.grid_sample(wide, grid, align_corners=False)], dim=1
    )


def bending(bias: float) -> PictureMotion:
    """A network that has learned nothing, but to believe the text about bends, or not to."""
    network = make_network(is_random=False)
    network.leave[-1].bias.data[-2:] = torch.tensor([bias, -50.0])
    return network


def test_what_turns_goes_round_in_a_circle() -> None:
    angle = 0.3
    with torch.no_grad():
        candidates = make_network().candidates(turned_by(angle), given())
    place = complex(4 * 20 + 2 - 48, 4 * 13 + 2 - 32)  # from the centre
    for end, sign in ((0, 1), (1, -1)):
        for number, share in enumerate((0.25, 0.5, 0.75)):
            turned = cmath.rect(1.0, sign * share * angle) * place
            straight = place * (1 + share * (cmath.rect(1.0, sign * angle) - 1))
            found = candidates.detour[0, end, 0, number, :, 13, 20]
            assert complex(*found.tolist()) == pytest.approx(turned - straight, abs=0.1)
    assert not candidates.detour[:, :, -1].any()  # of a single match no more is known


def test_what_moves_as_a_candidate_does_goes_its_way() -> None:
    network, pictures = bending(-50.0), turned_by(0.3)
    with torch.no_grad():
        candidates = network.candidates(pictures, given())
        motion, _ = network(pictures, given(), text_of(1))
    best = candidates.likeness.argmax(2, keepdim=True)
    found = best[:, :, :, None, None].expand(-1, -1, 1, 3, 2, -1, -1)
    expected = candidates.detour.gather(2, found)[:, :, 0]
    is_like = candidates.likeness.amax(2) > 0.1
    assert is_like.float().mean() > 0.5
    torch.testing.assert_close(
        motion.detour.movedim((2, 3), (-2, -1))[is_like],
        expected.movedim((2, 3), (-2, -1))[is_like],
    )


def test_where_the_text_is_believed_paths_bend_as_it_says() -> None:
    network = bending(50.0)
    network.tell_camera.bias.data[4] = 0.5  # half of the way: width / 4 to the right
    with torch.no_grad():
        motion, told = network(turned_by(0.5), given(), text_of(1))
    assert motion.front.max() <= 0.5  # so it is the camera that moves
    torch.testing.assert_close(motion.detour, detour_of(told.camera), atol=1e-4, rtol=0)
    assert motion.detour[:, 0, 1, 0].min() > 12


class Saying(torch.nn.Module):
    """Reads, whatever is written, that two subjects go along these paths, seen from both ends.

    Args:
        paths: ``(2, 4, 2)``, shifts after the quarters of the way, in halves of the sides.
    """

    def __init__(self, reader: torch.nn.Module, paths: Tensor) -> None:
        super().__init__()
        self.reader, self.paths = reader, paths

    def forward(self, text: Tensor) -> Said:
        said: Said = self.reader(text)
        subjects = torch.zeros_like(said.subjects)
        subjects[:, :2, :, :, :2] = self.paths[:, None]
        return said._replace(subjects=subjects, named=torch.tensor([[20.0, 20.0, -20.0]]))


def shifted_by(columns: int) -> Tensor:
    """A picture, and the same moved to the right: ``(1, 2, 3, 64, 96)``."""
    wide = torch.nn.functional.avg_pool2d(noise(3, 64, 112, seed=1), 3, stride=1, padding=1) * 3
    return torch.stack([wide[..., 16 : 16 + 96], wide[..., 16 - columns : 112 - columns]])[None]


@pytest.mark.parametrize("number", [0, 1])
def test_of_the_subjects_named_that_one_is_there_whose_path_ends_where_things_are(
    number: int,
) -> None:
    leaps = torch.tensor([[1.0, -3.0], [2.0, -4.0], [3.0, -3.0], [4.0, 0.0]]) / 12
    paths = torch.stack([-torch.linspace(0.1, 0.4, 4)[:, None] * torch.ones(2), leaps])
    network = bending(50.0)
    network.leave[-1].bias.data[-3] = 5.0  # everything is in front
    network.reader = Saying(network.reader, paths if number else paths.flip(0))
    with torch.no_grad():
        motion, _ = network(shifted_by(16), given(), text_of(1))
    torch.testing.assert_close(
        motion.flow[0, 0, :, 8, 8], torch.tensor([16.0, 0.0]), atol=0.3, rtol=0
    )
    # 16 pixels to the right end where the leap does: 4/12 of 48
    expected = torch.tensor([[0.0, -3 / 12], [0.0, -4 / 12], [0.0, -3 / 12]]) * 32
    torch.testing.assert_close(motion.detour[0, 0, :, :, 8, 8], expected, atol=0.2, rtol=0)


def test_a_path_is_stretched_to_where_it_ends() -> None:
    corner = torch.tensor([[3.0, 0.0], [6.0, 0.0], [6.0, 0.0], [6.0, 0.0]]) / 12  # goes, then stays
    network = bending(50.0)
    network.leave[-1].bias.data[-3] = 5.0
    network.reader = Saying(network.reader, torch.stack([corner, -corner]))
    with torch.no_grad():
        motion, _ = network(shifted_by(16), given(), text_of(1))
    # said: 24 pixels; seen: 16, all of them in the first half
    expected = torch.tensor([[8.0 - 4.0, 0.0], [16.0 - 8.0, 0.0], [16.0 - 12.0, 0.0]])
    torch.testing.assert_close(motion.detour[0, 0, :, :, 8, 8], expected, atol=0.2, rtol=0)
