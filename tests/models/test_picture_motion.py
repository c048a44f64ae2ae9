"""Motion between two pictures: carried to times in between as worked out on paper."""

import pytest
import torch
from torch import Tensor

from pixeldance.models.matching import PATCH_VALUES
from pixeldance.models.motion import Motion, PictureMotion, carried, still


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(x: float, y: float, height: int = 12, width: int = 16) -> Motion:
    """Everything moves by x, y pixels from the first picture to the second."""
    there = torch.tensor([x, y]).view(1, 1, 2, 1, 1).expand(1, 1, 2, height, width)
    flow = torch.cat([there, -there], dim=1)
    detour = torch.zeros(1, 2, 3, 2, height, width)
    return Motion(flow, torch.zeros(1, 2, 1, height, width), detour)


def given(*present: bool) -> Tensor:
    return torch.tensor([present or (True, True)])


@pytest.mark.parametrize("time", [0.0, 0.25, 0.5, 1.0])
def test_what_moves_as_one_is_fetched_from_where_it_was_and_will_be(time: float) -> None:
    flow, front = carried(constant(16.0, -8.0), torch.tensor([[time]]), given())
    assert flow.shape == (1, 2, 1, 2, 12, 16)
    for number, share in ((0, -time), (1, 1 - time)):
        expected = torch.tensor([16.0 * share, -8.0 * share]).view(2, 1, 1).expand(2, 12, 16)
        # also where nothing lands: holes take what is around them
        torch.testing.assert_close(flow[0, number, 0], expected, atol=1e-3, rtol=0)
    assert front.abs().max() < 1e-6


def crossing(order: tuple[int, int] = (2, 8)) -> Motion:
    """A square of 4 cells goes from column 2 to column 8 (24 pixels) before what stands still."""
    motion = constant(0.0, 0.0)
    flow, front = motion.flow.clone(), motion.front.clone()
    distance = 4.0 * (order[1] - order[0])
    for number, (column, sign) in enumerate(zip(order, (1, -1), strict=True)):
        flow[0, number, 0, 4:8, column : column + 4] = sign * distance
        front[0, number, 0, 4:8, column : column + 4] = 1.0
    return motion._replace(flow=flow, front=front)


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    flow, front = carried(crossing(), torch.tensor([[0.5, 1 / 6]]), given())
    for frame, column in enumerate((5, 3)):
        square = front[0, frame, 0] > 0.9
        assert square[4:8, column : column + 4].all()
        assert int(square.sum()) == 16
        assert flow[0, 0, frame, 0, 4:8, column : column + 4].mean() == pytest.approx(
            -24.0 * (column - 2) / 6, abs=0.1
        )
        assert flow[0, 1, frame, 0, 4:8, column : column + 4].mean() == pytest.approx(
            24.0 * (8 - column) / 6, abs=0.1
        )
        assert flow[0, :, frame, :, :3].abs().max() < 1e-3


def test_at_its_own_time_a_picture_stays_where_it_is() -> None:
    motion = crossing()
    flow, front = carried(motion, torch.tensor([[0.0, 1.0]]), given())
    for end in (0, 1):
        shown = motion.front[0, end] > 0.5
        assert flow[0, end, end][:, shown[0]].abs().max() < 1e-3
        assert torch.equal(front[0, end] > 0.5, shown)


def test_without_two_pictures_nothing_moves() -> None:
    flow, front = carried(
        still(torch.zeros(2, 2, 3, 32, 48)), torch.rand(2, 3), given().expand(2, -1)
    )
    assert flow.shape == (2, 2, 3, 2, 8, 12)
    assert not flow.any()
    assert not front.any()


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


def test_a_detour_is_gone_and_is_over_at_both_ends() -> None:
    motion = constant(16.0, 0.0)
    motion.detour[:, 0, :, 1] = torch.tensor([4.0, 8.0, 4.0])[:, None, None]  # down and back
    motion.detour[:, 1, :, 1] = torch.tensor([4.0, 8.0, 4.0])[:, None, None]
    time = torch.tensor([[0.0, 0.125, 0.25, 0.5, 0.875, 1.0]])
    flow, _ = carried(motion, time, given())
    for frame, down in enumerate((0.0, 2.0, 4.0, 8.0, 2.0, 0.0)):
        torch.testing.assert_close(
            flow[0, 0, frame, 1], torch.full((12, 16), -down), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            flow[0, 1, frame, 1], torch.full((12, 16), -down), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("end", [0, 1])
def test_one_picture_alone_is_carried_all_the_way(end: int) -> None:
    motion = crossing()
    motion.flow[:, 1 - end] = 1000.0  # of an absent picture: never looked at
    present = given(end == 0, end == 1)
    flow, front = carried(motion, torch.tensor([[0.5]]), present)
    square = front[0, 0, 0] > 0.9
    assert square[4:8, 5:9].all()
    assert int(square.sum()) == 16
    assert flow[0, end, 0, 0, 4:8, 5:9].mean() == pytest.approx(12.0 if end else -12.0, abs=0.1)
    # where the square was, what is behind it appears: it rests
    assert flow[0, end, 0, :, 4:8, (2 if end == 0 else 10)].abs().max() < 0.5


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
    assert (forth.subject - back.subject).abs().max() > 1e-3
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
