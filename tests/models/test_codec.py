"""The codec: its projection is exact algebra, its decoder ignores what is not given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pixeldance.errors import InputError
from pixeldance.models.codec import (
    LinearVideoCodec,
    decode_latents,
    encode_pictures,
    principal_components,
)
from pixeldance.models.references import References

Z_DIM = 8
SHAPES = [(1, 16, 16), (5, 48, 32), (17, 16, 32)]


def make_codec(*, has_refiner: bool = True, z_dim: int = Z_DIM) -> LinearVideoCodec:
    """Orthonormal components; a refiner whose every weight is random, so that all inputs matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = LinearVideoCodec(
            z_dim=z_dim,
            latents_mean=[0.1 * i for i in range(z_dim)],
            latents_std=[1.0 + i for i in range(z_dim)],
            refiner_channels=(8, 8, 16) if has_refiner else None,
        )
        codec.components.data.copy_(torch.linalg.qr(torch.randn(codec.components.shape))[0])
        codec.patch_mean.data.normal_(std=0.1)
        if codec.refiner is not None:
            for parameter in codec.refiner.parameters():
                parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return codec.eval().requires_grad_(False)


def make_time_even_codec() -> LinearVideoCodec:
    """Every component is either constant in time or alternates in sign from frame to frame."""
    codec = make_codec(has_refiner=False)
    spatial = torch.linalg.qr(noise(768, Z_DIM, seed=5))[0] / 2
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    steady = spatial[:, : Z_DIM // 2].repeat(4, 1)
    moving = torch.cat([sign * spatial[:, Z_DIM // 2 :] for sign in signs])
    codec.components.data.copy_(torch.cat([steady, moving], dim=1))
    codec.patch_mean.data.copy_(0.1 * noise(768, seed=6).repeat(4))
    return codec


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_video(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    return (0.5 * noise(2, 3, frames, height, width, seed=seed)).clamp(-1, 1)


def encoded(codec: LinearVideoCodec, video: Tensor) -> Tensor:
    return codec.encode(video).latent_dist.mode()


def make_references(count: int, height: int, width: int, *, present: bool = True) -> References:
    return References(
        (0.5 * noise(2, count, 3, height, width, seed=9)).clamp(-1, 1),
        torch.tensor([[0, 16]] * 2)[:, :count],
        torch.full((2, count), present),
    )


@pytest.fixture(scope="module")
def codec() -> LinearVideoCodec:
    return make_codec()


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_latent_grid_and_decoded_shape(
    codec: LinearVideoCodec, frames: int, height: int, width: int
) -> None:
    video = make_video(frames, height, width)
    latents = encoded(codec, video)
    assert latents.shape == (2, Z_DIM, (frames - 1) // 4 + 1, height // 16, width // 16)
    assert codec.decode(latents).sample.shape == video.shape
    assert torch.equal(codec.decode(latents, return_dict=False)[0], codec.decode(latents).sample)
    assert torch.equal(codec.encode(video, return_dict=False)[0].sample(), latents)


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 16), (1, 3, 5, 24, 16), (1, 3, 5, 16, 8), (1, 4, 5, 16, 16)]
)
def test_other_shapes_are_refused(codec: LinearVideoCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"4k \+ 1.*multiples of 16.*got.*Resize"):
        codec.encode(torch.zeros(shape))


def test_only_groups_of_four_are_supported() -> None:
    with pytest.raises(InputError, match="scale_factor_temporal must be 4, got 8"):
        LinearVideoCodec(scale_factor_temporal=8, refiner_channels=None)


def test_a_picture_is_the_first_latent_of_a_clip_that_starts_with_it(
    codec: LinearVideoCodec,
) -> None:
    video = make_video(9, 48, 32)
    picture = encoded(codec, video[:, :, :1])[:, :, 0]
    assert torch.equal(picture, encoded(codec, video)[:, :, 0])


def test_a_latent_depends_on_its_own_four_frames_only(codec: LinearVideoCodec) -> None:
    video = make_video(9, 16, 16)
    changed = video.clone()
    changed[:, :, 1:5] += 0.3
    before, after = encoded(codec, video), encoded(codec, changed)
    assert torch.equal(before[:, :, [0, 2]], after[:, :, [0, 2]])
    assert not torch.allclose(before[:, :, 1], after[:, :, 1], atol=1e-3)


def test_the_projection_is_orthonormal() -> None:
    codec = make_time_even_codec()
    latents = encoded(codec, make_video(9, 32, 16))
    again = encoded(codec, codec.decode(latents).sample)
    # A lone frame stands still: what alternates in time is zero in its latent.
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=0)
    assert latents[:, Z_DIM // 2 :, 0].abs().max() < 1e-5


def test_latents_of_whole_groups_survive_any_orthonormal_projection() -> None:
    codec = make_codec(has_refiner=False)
    latents = encoded(codec, make_video(9, 32, 16))
    again = encoded(codec, codec.decode(latents).sample)
    torch.testing.assert_close(again[:, :, 1:], latents[:, :, 1:], atol=1e-5, rtol=0)


def test_what_lies_in_the_span_is_decoded_exactly() -> None:
    codec = make_time_even_codec()
    latents = noise(1, Z_DIM, 3, 2, 1)
    latents[:, Z_DIM // 2 :, 0] = 0
    video = codec.decode(latents).sample
    torch.testing.assert_close(codec.decode(encoded(codec, video)).sample, video, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.project_picture(video[:, :, 0]), video[:, :, 0])


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_streaming_equals_decoding_at_once(codec: LinearVideoCodec, chunk: int) -> None:
    latents = noise(2, Z_DIM, 5, 1, 2)
    references = make_references(2, 16, 32)
    parts = list(codec.decode_stream(latents, references, chunk=chunk))
    assert [p.shape[2] for p in parts[:-1]] == [
        4 * chunk - 3 * (i == 0) for i in range(len(parts) - 1)
    ]
    whole = codec.decode(latents, references).sample
    # random weights warp noise by many pixels, which magnifies rounding
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize("part", [range(0), range(5), range(1), range(1, 4), range(4, 5)])
def test_part_of_a_clip_is_decoded_as_in_the_whole(codec: LinearVideoCodec, part: range) -> None:
    latents, references = noise(2, Z_DIM, 5, 1, 2), make_references(2, 16, 32)
    whole = codec.decode(latents, references).sample
    shots = codec.prepare(references, 5)
    torch.testing.assert_close(codec.decode(latents, shots).sample, whole)
    made = list(codec.decode_stream(latents, shots, groups=part))
    first, behind = (max(4 * group - 3, 0) for group in (part.start, part.stop))
    assert sum(frames.shape[2] for frames in made) == behind - first
    if made:
        torch.testing.assert_close(torch.cat(made, 2), whole[:, :, first:behind], atol=1e-3, rtol=0)


def test_a_chunk_holds_at_least_one_latent_frame(codec: LinearVideoCodec) -> None:
    with pytest.raises(InputError, match="chunk must be at least 1, got 0"):
        next(codec.decode_stream(noise(1, Z_DIM, 1, 1, 1), chunk=0))


@pytest.mark.parametrize("count", [1, 2])
def test_references_change_the_decoded_frames(codec: LinearVideoCodec, count: int) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    bare = codec.decode(latents).sample
    given = codec.decode(latents, make_references(count, 16, 32)).sample
    assert given.shape == bare.shape
    assert (given - bare).abs().mean() > 1e-3


def test_the_second_reference_counts_as_well(codec: LinearVideoCodec) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    one, two = (codec.decode(latents, make_references(n, 16, 32)).sample for n in (1, 2))
    assert (one - two).abs().mean() > 1e-3


def test_the_frame_of_a_reference_counts(codec: LinearVideoCodec) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    references = make_references(1, 16, 32)
    moved = references._replace(frames=references.frames + 12)
    near, far = (codec.decode(latents, r).sample for r in (references, moved))
    assert (near - far).abs().max() > 1e-4


@pytest.mark.parametrize("count", [0, 1, 2])
def test_absent_references_equal_none(codec: LinearVideoCodec, count: int) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    absent = make_references(count, 16, 32, present=False)
    assert torch.equal(codec.decode(latents, absent).sample, codec.decode(latents).sample)


def test_the_content_of_an_absent_reference_changes_nothing(codec: LinearVideoCodec) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    references = make_references(2, 16, 32)
    references.present[:, 1] = False
    pictures, frames = references.pictures.clone(), references.frames.clone()
    pictures[:, 1] = 1000.0
    other = References(pictures, frames, references.present)
    assert torch.equal(
        codec.decode(latents, references).sample, codec.decode(latents, other).sample
    )


def test_presence_is_a_matter_of_each_clip(codec: LinearVideoCodec) -> None:
    latents = noise(2, Z_DIM, 2, 1, 2)
    references = make_references(1, 16, 32)
    references.present[1] = False
    mixed = codec.decode(latents, references).sample
    given = codec.decode(latents, make_references(1, 16, 32)).sample
    torch.testing.assert_close(mixed[:1], given[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed[1:], codec.decode(latents).sample[1:], atol=1e-4, rtol=0)


def test_with_three_references_each_gap_is_helped_by_the_two_around_it(
    codec: LinearVideoCodec,
) -> None:
    latents = noise(1, Z_DIM, 6, 1, 2)
    three = References(
        noise(1, 3, 3, 16, 32, seed=4),
        torch.tensor([[4, 12, 16]]),
        torch.ones(1, 3, dtype=torch.bool),
    )

    def helped_by(*which: int) -> Tensor:
        return codec.decode(
            latents, References(*(part[:, list(which)] for part in three[:3]))
        ).sample

    made = codec.decode(latents, three).sample
    outer, first, second = helped_by(0, 2), helped_by(0, 1), helped_by(1, 2)
    # latent frames 1 to 3 are pixel frames 1 to 12, latent frame 4 is 13 to 16
    for frames, expected in (
        (slice(0, 1), outer),
        (slice(1, 13), first),
        (slice(13, 17), second),
        (slice(17, 21), outer),
    ):
        torch.testing.assert_close(made[:, :, frames], expected[:, :, frames], atol=1e-4, rtol=0)
    assert (first - second).abs().max() > 0.01


def asking_for_a_cut(bias: float) -> tuple[LinearVideoCodec, References, Tensor]:
    """A codec, two pictures, and a text whose second of three tokens asks for a cut most."""
    codec = make_codec()
    refiner: Any = codec.refiner
    reader = refiner.aligner.motion.reader
    both, text = make_references(2, 16, 32), noise(1, 3, 384)
    asking = reader.enter(text)[:, 1]
    reader.say_cut.weight.data.copy_(3 * asking / asking.square().sum())
    torch.nn.init.constant_(reader.say_cut.bias, bias)
    return codec, References(*(part[:1] for part in both[:3]), text=text), text


@pytest.mark.parametrize("asks", [True, False])
def test_a_cut_that_the_text_asks_for_stands_half_way_between_two_pictures(asks: bool) -> None:
    codec, both, text = asking_for_a_cut(-1.0 if asks else -50.0)
    latents = noise(1, Z_DIM, 5, 1, 2)
    made = codec.decode(latents, both).sample
    # frames 0 to 8 are latent frames 0 to 2 of 5
    nothing, (start, end) = torch.zeros(1, 1, 384), both.frames[0].tolist()
    first, last = (
        codec.decode(
            latents,
            References(both.pictures, torch.tensor([frames]), torch.tensor([given]), words),
        ).sample
        for frames, given, words in (
            ((start, 8), [True, False], torch.cat([text[:, :1], nothing, nothing], dim=1)),
            ((9, end), [False, True], torch.cat([text[:, :1], text[:, 2:], nothing], dim=1)),
        )
    )
    cut = torch.cat([first[:, :, :9], last[:, :, 9:]], dim=2)
    if asks:
        torch.testing.assert_close(made, cut, atol=1e-3, rtol=0)
    else:
        assert (made - cut).abs().max() > 0.01


@pytest.mark.parametrize("begin", [1, 5])
def test_a_part_of_a_clip_with_a_cut_is_decoded_as_in_the_whole(begin: int) -> None:
    codec, both, _ = asking_for_a_cut(-1.0)
    latents, both = noise(1, Z_DIM, 8, 1, 2), both._replace(frames=torch.tensor([[0, 28]]))
    whole = codec.decode(latents, both).sample
    part = list(codec.decode_stream(latents, both, groups=range(begin, 7)))
    expected = whole[:, :, 4 * begin - 3 : 25]
    torch.testing.assert_close(torch.cat(part, dim=2), expected, atol=1e-4, rtol=0)


def test_a_draft_is_the_projection_of_the_carried_pictures(codec: LinearVideoCodec) -> None:
    references = make_references(2, 32, 32)
    references = references._replace(frames=torch.tensor([[0, 8]]).expand(2, 2))
    drafted = codec.draft(codec.prepare(references, 3))
    video = codec.draft_shot(codec.prepare_references(references), torch.arange(9))
    assert video.shape == (2, 3, 9, 32, 32)
    torch.testing.assert_close(drafted, codec.encode(video).latent_dist.mode())
    for number, frame in ((0, 0), (1, 8)):
        difference = video[:, :, frame] - references.pictures[:, number]
        assert difference.abs().max() < 0.01


def test_drafts_of_single_latent_frames_are_those_of_the_clip(codec: LinearVideoCodec) -> None:
    references = make_references(2, 16, 32)
    references = references._replace(frames=torch.tensor([[0, 12]]).expand(2, 2))
    prepared = codec.prepare_references(references)
    video = codec.draft_shot(prepared, torch.arange(13))
    slots = torch.tensor([[0, 2], [3, 1]])  # others for each clip
    drafted = codec.draft_groups(prepared, slots)
    assert drafted is not None
    for clip, numbers in enumerate(slots.tolist()):
        for place, slot in enumerate(numbers):
            # the first latent frame is one frame, four times
            frames = torch.arange(4 * slot - 3, 4 * slot + 1).clamp(min=0)
            expected = video[clip, :, frames].movedim(0, 1)
            torch.testing.assert_close(drafted[clip, place], expected, atol=1e-5, rtol=0)
    alone = codec.prepare_references(
        references.select([0])._replace(present=torch.zeros(1, 2).bool())
    )
    assert codec.draft_groups(alone, torch.arange(2)) is None


def test_of_one_picture_without_a_way_everything_stays(codec: LinearVideoCodec) -> None:
    references = make_references(1, 16, 32)._replace(frames=torch.zeros(2, 1, dtype=torch.int64))
    video = codec.draft_shot(codec.prepare_references(references), torch.arange(5))
    torch.testing.assert_close(video, references.pictures[:, 0, :, None].expand_as(video))


def test_a_picture_that_lends_no_pixels_is_not_shown(codec: LinearVideoCodec) -> None:
    latents, both = noise(2, Z_DIM, 3, 1, 2), make_references(2, 16, 32)
    both = both._replace(frames=torch.tensor([[0, 8]]).expand(2, 2))
    guided = both._replace(is_lent=torch.tensor([[True, False]]).expand(2, 2))
    alone = both._replace(present=torch.tensor([[True, False]]).expand(2, 2))
    made = codec.decode(latents, guided).sample
    assert (made - codec.decode(latents, both).sample).abs().mean() > 1e-3
    # it tells where things go all the same
    assert (made - codec.decode(latents, alone).sample).abs().max() > 1e-3
    motion = codec.prepare_references(guided).motion
    expected = codec.prepare_references(both).motion
    assert motion is not None
    assert expected is not None
    torch.testing.assert_close(motion.flow, expected.flow)


def test_without_a_picture_there_is_no_draft(codec: LinearVideoCodec) -> None:
    references = make_references(2, 16, 32)._replace(is_lent=torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"needs a picture that lends .* got .*False.* Draft"):
        codec.draft(codec.prepare(references, 2))


def test_text_of_another_encoder_is_refused(codec: LinearVideoCodec) -> None:
    references = make_references(2, 16, 32)._replace(text=noise(2, 3, 7))
    with pytest.raises(InputError, match=r"\(batch, tokens, 384\).*got \(2, 3, 7\).*encoder"):
        codec.decode(noise(2, Z_DIM, 3, 1, 2), references)


@pytest.mark.parametrize("frames", [[[0, 4, 8], [0, 4, 12]], [[8, 4, 0]] * 2, [[0, 4, 4]] * 2])
def test_more_than_two_references_stand_in_order(
    codec: LinearVideoCodec, frames: list[list[int]]
) -> None:
    references = References(
        noise(2, 3, 3, 16, 32), torch.tensor(frames), torch.ones(2, 3, dtype=torch.bool)
    )
    with pytest.raises(InputError, match="same, increasing frames in all clips"):
        codec.decode(noise(2, Z_DIM, 3, 1, 2), references)


@pytest.mark.parametrize("has_refiner", [True, False])
def test_saved_and_loaded_codecs_agree(tmp_path: Path, has_refiner: bool) -> None:
    codec = make_codec(has_refiner=has_refiner).eval()
    codec.save_pretrained(tmp_path)
    loaded = LinearVideoCodec.from_pretrained(tmp_path)
    video, references = make_video(5, 16, 16), make_references(2, 16, 16)
    latents = encode_pictures(codec, video)
    assert torch.equal(encode_pictures(loaded, video), latents)
    # weights at other addresses: products are summed up in another order
    torch.testing.assert_close(
        decode_latents(loaded, latents, references),
        decode_latents(codec, latents, references),
        atol=1e-3,
        rtol=0,
    )


def test_normalisation_uses_the_statistics_of_the_config() -> None:
    codec = make_time_even_codec()
    video = make_video(5, 16, 16)
    raw, normalised = encoded(codec, video), encode_pictures(codec, video)
    torch.testing.assert_close(normalised[:, 3], (raw[:, 3] - 0.3) / 4)
    expected = codec.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(decode_latents(codec, normalised), expected, atol=1e-5, rtol=0)


def test_decoded_pixels_stay_in_range(codec: LinearVideoCodec) -> None:
    video = decode_latents(codec, 100 * noise(1, Z_DIM, 1, 1, 1))
    assert video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)


def test_without_statistics_nothing_is_rescaled() -> None:
    codec = LinearVideoCodec(z_dim=2, refiner_channels=None)
    codec.components.data.copy_(noise(*codec.components.shape))
    video = make_video(1, 16, 16)
    torch.testing.assert_close(encode_pictures(codec, video), encoded(codec, video))


def test_wans_autoencoder_works_through_the_same_functions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = AutoencoderKLWan(
            base_dim=4,
            z_dim=2,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.5, -0.5],
            latents_std=[2.0, 4.0],
        ).eval()
    video = make_video(5, 16, 16)
    latents = encode_pictures(codec, video)
    with torch.no_grad():
        raw = codec.encode(video).latent_dist.mode()
        expected = codec.decode(raw).sample.clamp(-1, 1)
    assert latents.shape == (2, 2, 2, 2, 2)
    torch.testing.assert_close(latents[:, 1], (raw[:, 1] + 0.5) / 4)
    torch.testing.assert_close(decode_latents(codec, latents), expected, atol=1e-4, rtol=0)


def points_of_known_covariance(variances: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Two points per axis, so that the covariance of all is exactly that of the variances."""
    size = len(variances)
    axes = torch.linalg.qr(noise(size, size, seed=3))[0]
    mean = torch.arange(size, dtype=torch.float32)
    steps = (size * torch.tensor(variances)).sqrt()[:, None] * axes.T
    return torch.cat([mean + steps, mean - steps]), mean, axes


@pytest.mark.parametrize("whitening", [0.0, 0.25, 0.5])
def test_principal_components_of_a_known_covariance(whitening: float) -> None:
    variances = [1.0, 9.0, 0.25, 4.0]
    patches, mean, axes = points_of_known_covariance(variances)
    found_mean, components, std = principal_components(patches, 3, whitening=whitening)
    torch.testing.assert_close(found_mean, mean)
    overlap = (components.T @ axes[:, [1, 3, 0]]).abs()
    torch.testing.assert_close(overlap, torch.eye(3), atol=1e-3, rtol=0)
    scaled = ((patches - mean) @ components) / torch.tensor(std)
    spread = scaled.square().mean(0)
    torch.testing.assert_close(spread.mean(), torch.tensor(1.0))
    ratio = (9.0 / 1.0) ** (1 - 2 * whitening)  # of the largest to the smallest variance kept
    torch.testing.assert_close(spread[0] / spread[2], torch.tensor(ratio), rtol=1e-4, atol=0)
