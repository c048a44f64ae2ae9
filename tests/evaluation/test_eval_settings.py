"""What may be asked of an evaluation."""

import pytest
from eval_helpers import small_settings

from pixeldance.errors import InputError
from pixeldance.evaluation.settings import EvalSettings, Sampling, Sweep
from pixeldance.geometry import Size


def test_every_setting_of_the_model_is_run_once() -> None:
    settings = small_settings(
        sampling=Sampling(num_inference_steps=8),
        sweeps=(Sweep("steps", (2, 8, 50)), Sweep("strength", (0.5, 1.0))),
        reference=Sampling(num_inference_steps=50),
    )
    names = [settings.method_of(sampling) for sampling in settings.samplings()]
    assert names == [
        "ours",
        "ours steps=2 guidance=1 strength=1",
        "ours steps=50 guidance=1 strength=1",
        "ours steps=8 guidance=1 strength=0.5",
    ]


def test_sizes_are_taken_in_turn() -> None:
    settings = small_settings(sizes=(Size(32, 48), Size(48, 32)))
    assert [settings.size_of(place).width for place in range(3)] == [48, 32, 48]


def test_the_strength_is_left_out_where_there_is_no_last_frame() -> None:
    settings = small_settings(sampling=Sampling(last_frame_strength=0.5))
    request = settings.request(Size(32, 48), settings.sampling, prompt="a fox")
    assert request.last_frame_strength == 1.0
    request = settings.request(Size(32, 48), settings.sampling, last_frame="last.png")
    assert request.last_frame_strength == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clips": 0}, "num_clips must be at least 1, got 0"),
        ({"num_frames": 1}, "at least 5"),
        ({"num_frames": 24}, "num_frames"),
        ({"sizes": (Size(16, 48),)}, "at least 32 pixels, got 48x16"),
        ({"sizes": (Size(32, 50),)}, "width"),
        ({"sampling": Sampling(num_inference_steps=0)}, "num_inference_steps"),
        ({"sampling": Sampling(last_frame_strength=1.5)}, "last_frame_strength"),
        ({"sweeps": (Sweep("guidance", (0.5, 2)),)}, "guidance_scale"),
        ({"sweeps": (Sweep("steps", (2, 4)), Sweep("steps", (8, 9)))}, "swept once"),
        ({"methods": ("rife",), "num_adherence": 4}, "not among the methods"),
        ({"methods": ("rife",), "reference": Sampling()}, "reference measures the model"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_settings(**changes)


def test_defaults_are_those_of_the_product() -> None:
    settings = EvalSettings()
    assert (settings.num_clips, settings.sizes) == (256, (Size(144, 256),))
    assert settings.sampling == Sampling(num_inference_steps=8, guidance_scale=1.0)
