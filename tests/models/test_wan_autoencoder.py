"""The fast path must give what diffusers gives, for both networks and any way to cut the work."""

import copy
from collections.abc import Callable

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pixeldance.errors import ConfigError, InputError
from pixeldance.models.codec import LinearVideoCodec, decode_latents, encode_pictures
from pixeldance.models.wan_autoencoder import FastWanAutoencoder
from pixeldance.models.wan_timeline import distinct_windows

Z_DIM = 4
VARIANTS = ("wan2.1", "wan2.2")


def tiny_vae(variant: str, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Random weights, biases and scales included, in the layout of a released autoencoder."""
    residual = {
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "decoder_base_dim": 12,
        "scale_factor_spatial": 16,
        "temperal_downsample": [False, True, True],
        "dim_mult": [1, 2, 4, 4],
    }
    plain = {"dim_mult": [1, 2, 4], "temperal_downsample": [True, True], "scale_factor_spatial": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=Z_DIM,
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[0.5, 1.0, 2.0, 1.5],
            **(residual if variant == "wan2.2" else plain),
        )
        for parameter in vae.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return vae.eval().requires_grad_(False).to(dtype)


def random_video(
    vae: AutoencoderKLWan, num_frames: int, *, cells: tuple[int, int] = (3, 2), batch=1
):
    side = FastWanAutoencoder(vae).spatial_factor
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, num_frames, cells[0] * side, cells[1] * side)
    return torch.rand(shape, generator=generator, dtype=vae.dtype) * 2 - 1


def relative_error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    return float((result - expected).norm() / expected.norm())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("num_frames", "batch"), [(1, 1), (1, 2), (5, 2), (9, 1), (25, 1)])
def test_same_as_diffusers(variant: str, num_frames: int, batch: int) -> None:
    vae = tiny_vae(variant)
    video = random_video(vae, num_frames, batch=batch)
    reference = copy.deepcopy(vae)
    latents = reference.encode(video).latent_dist.mode()
    fast = FastWanAutoencoder(vae)
    assert relative_error(fast.encode(video).latent_dist.mode(), latents) <= 1e-5
    decoded = reference.decode(latents).sample
    assert decoded.shape == video.shape
    assert relative_error(fast.decode(latents).sample, decoded) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_cut_of_the_work_changes_nothing(variant: str, at_once: int) -> None:
    vae = tiny_vae(variant)
    video = random_video(vae, 21, cells=(2, 1), batch=2)
    latents = copy.deepcopy(vae).encode(video).latent_dist.mode()
    whole = FastWanAutoencoder(vae, latent_frames_at_once=6).decode(latents).sample
    fast = FastWanAutoencoder(vae, latent_frames_at_once=at_once)
    assert relative_error(fast.encode(video).latent_dist.mode(), latents) <= 1e-5
    assert relative_error(fast.decode(latents).sample, whole) <= 1e-5
    lengths = [chunk.shape[2] for chunk in fast.decode_chunks(latents)]
    later = min(at_once, 6)
    assert lengths == [4 * later - 3, *[4 * later] * (6 // later - 1)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("frames", "num_frames"),
    [
        ((0,), 1),
        ((0,), 5),
        ((-1,), 13),
        ((0, -1), 5),
        ((0, -1), 29),
        ((0, 14, 28), 29),
        ((3, 4, 5), 17),
        ((7, 2), 13),
    ],
)
def test_keyframes_same_as_whole_video(
    variant: str, frames: tuple[int, ...], num_frames: int
) -> None:
    vae = tiny_vae(variant)
    pictures = random_video(vae, len(frames), cells=(1, 2), batch=2)
    video = pictures.new_zeros(*pictures.shape[:2], num_frames, *pictures.shape[3:])
    video[:, :, list(frames)] = pictures
    expected = copy.deepcopy(vae).encode(video).latent_dist.mode()
    latents = FastWanAutoencoder(vae).encode_keyframes(pictures, frames, num_frames)
    assert relative_error(latents, expected) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_and_last_of_81_frames(variant: str) -> None:
    vae = tiny_vae(variant)
    pictures = random_video(vae, 2, cells=(1, 1))
    video = pictures.new_zeros(1, 3, 81, *pictures.shape[3:])
    video[:, :, [0, 80]] = pictures
    expected = copy.deepcopy(vae).encode(video).latent_dist.mode()
    latents = FastWanAutoencoder(vae).encode_keyframes(pictures, [0, -1], 81)
    assert relative_error(latents, expected) <= 1e-5


def test_long_clips_of_two_pictures_cost_no_more_than_short_ones() -> None:
    vae = tiny_vae("wan2.1")
    pictures = random_video(vae, 2, cells=(1, 1))

    def flops(num_frames: int) -> int:
        with FlopCounterMode(display=False) as counter:
            FastWanAutoencoder(vae).encode_keyframes(pictures, [0, -1], num_frames)
        return counter.get_total_flops()

    assert flops(401) == flops(201)
    assert flops(201) < flops(21) * 4  # not 10 times


def test_single_frame_skips_the_taps_that_see_only_zeros() -> None:
    vae = tiny_vae("wan2.1")
    fast = FastWanAutoencoder(vae)
    latents, picture = torch.zeros(1, Z_DIM, 1, 2, 2), torch.zeros(1, 3, 1, 8, 8)

    def flops(call: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    assert flops(lambda: fast.decode(latents)) < 0.6 * flops(lambda: vae.decode(latents))
    encoding = flops(lambda: fast.encode_keyframes(picture, [0], 1))
    assert encoding < 0.6 * flops(lambda: vae.encode(picture))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_near_to_float32_as_diffusers(variant: str) -> None:
    precise = tiny_vae(variant, torch.bfloat16).float()
    vae = tiny_vae(variant, torch.bfloat16)
    video = random_video(precise, 13)
    latents = precise.encode(video).latent_dist.mode()
    decoded = precise.decode(latents).sample
    low = (video.bfloat16(), latents.bfloat16())
    theirs = (vae.encode(low[0]).latent_dist.mode(), vae.decode(low[1]).sample)
    fast = FastWanAutoencoder(vae)
    ours = (fast.encode(low[0]).latent_dist.mode(), fast.decode(low[1]).sample)
    for result, other, expected in zip(ours, theirs, (latents, decoded), strict=True):
        error = relative_error(result.float(), expected)
        assert error <= 1.05 * relative_error(other.float(), expected)
        assert error < 0.05


def test_first_frames_do_not_wait_for_the_last() -> None:
    fast = FastWanAutoencoder(tiny_vae("wan2.1"), latent_frames_at_once=1)
    latents = torch.zeros(1, Z_DIM, 4, 2, 2)
    latents[:, :, -1] = torch.nan
    chunks = list(fast.decode_chunks(latents))
    assert [bool(chunk.isnan().any()) for chunk in chunks] == [False, False, False, True]


def test_black_video_has_finite_latents() -> None:
    vae = tiny_vae("wan2.1")
    video = torch.zeros(1, 3, 5, 8, 8)
    expected = copy.deepcopy(vae).encode(video).latent_dist.mode()
    assert relative_error(FastWanAutoencoder(vae).encode(video).latent_dist.mode(), expected) < 1e-5


def test_weights_stay_those_of_the_vae() -> None:
    vae = tiny_vae("wan2.1")
    before = copy.deepcopy(vae.state_dict())
    latents = torch.ones(1, Z_DIM, 2, 2, 2)
    expected = vae.decode(latents).sample
    fast = FastWanAutoencoder(vae)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert relative_error(vae.decode(latents).sample, expected) <= 1e-5
    vae.decoder.conv_out.bias.fill_(5.0)
    assert (fast.decode(latents).sample == 1.0).all()


def test_normalised_latents_of_the_package() -> None:
    vae = tiny_vae("wan2.2")
    video = random_video(vae, 5)
    fast = FastWanAutoencoder(vae)
    latents = encode_pictures(fast, video)
    assert relative_error(latents, encode_pictures(vae, video)) <= 1e-5
    assert relative_error(decode_latents(fast, latents), decode_latents(vae, latents)) <= 1e-5


def test_tuples_like_diffusers() -> None:
    fast = FastWanAutoencoder(tiny_vae("wan2.1"))
    video = torch.zeros(1, 3, 5, 8, 8)
    (distribution,) = fast.encode(video, return_dict=False)
    (decoded,) = fast.decode(distribution.mode(), return_dict=False)
    assert decoded.shape == video.shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 8, 8), "Use 5 or 9"),
        ((1, 3, 5, 8, 10), "multiples of 4, got 8 x 10"),
        ((1, 1, 5, 8, 8), "3 channels"),
        ((3, 5, 8, 8), "3 channels"),
        ((1, 3, 5, 0, 8), "3 channels"),
    ],
)
def test_videos_that_cannot_be_encoded(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FastWanAutoencoder(tiny_vae("wan2.1")).encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("frames", "num_frames", "message"),
    [
        ((0, 0), 9, "as many different frames"),
        ((0, 8, -1), 9, "as many different frames"),
        ((8, -1), 9, "as many different frames"),
        ((0, 9), 9, "from 0 to 8"),
        ((-10, 0), 9, "from 0 to 8"),
        ((0, -1), 8, "Use 5 or 9"),
    ],
)
def test_keyframes_that_cannot_be_placed(
    frames: tuple[int, ...], num_frames: int, message: str
) -> None:
    fast = FastWanAutoencoder(tiny_vae("wan2.1"))
    with pytest.raises(InputError, match=message):
        fast.encode_keyframes(torch.zeros(1, 3, 2, 8, 8), frames, num_frames)


def test_latents_that_cannot_be_decoded() -> None:
    with pytest.raises(InputError, match="4 channels"):
        FastWanAutoencoder(tiny_vae("wan2.1")).decode(torch.zeros(1, 5, 1, 2, 2))


def test_other_autoencoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="LinearVideoCodec"):
        FastWanAutoencoder(LinearVideoCodec(z_dim=Z_DIM, refiner_channels=None))
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        FastWanAutoencoder(tiny_vae("wan2.1"), latent_frames_at_once=0)


def test_weights_that_are_moved_in_for_a_call() -> None:
    vae = tiny_vae("wan2.1")
    calls = []

    class Arrival(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
            calls.append(module)
            return args, kwargs

    add_hook_to_module(vae, Arrival())
    FastWanAutoencoder(vae).decode(torch.zeros(1, Z_DIM, 1, 2, 2))
    assert calls == [vae]


def test_weights_that_only_layers_can_bring_are_refused() -> None:
    vae = tiny_vae("wan2.1")
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ConfigError, match="layerwise casting"):
        FastWanAutoencoder(vae)


def test_windows_of_a_clip_that_settles() -> None:
    # First picture 1, zeros 0, last picture 2, in windows of three.
    plan = distinct_windows([1, 0, 0, 0, 0, 0, 2], 3, 1)
    assert plan.sequence == [1, 0, 0, 0, 2]
    assert plan.slots == [0, 1, 1, 1, 2]


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_every_window_is_in_the_sequence(size: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        slots = torch.randint(0, 3, (17,), generator=generator).tolist()
        plan = distinct_windows(slots, size, stride)
        for number, slot in enumerate(plan.slots):
            start = number * stride
            found = plan.sequence[slot * stride : slot * stride + size]
            assert found == slots[start : start + size]
        assert len(plan.slots) == (17 - size) // stride + 1
