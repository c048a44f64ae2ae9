"""The transformer computes the same with PyTorch's and with the native operations."""

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from pixeldance.models.transformer import PixelDanceTransformer3DModel
from pixeldance.ops import active_tier

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 40,
    "in_channels": 8,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 200,
    "num_layers": 3,
}


@pytest.fixture
def use(monkeypatch):
    """Choose what computes the operations."""

    def choose(name):
        monkeypatch.setenv("PIXELDANCE_OPS", "torch" if name == "torch" else "auto")
        active_tier.cache_clear()
        if active_tier("cpu").name != name:
            pytest.skip(str(active_tier("cpu")))

    yield choose
    active_tier.cache_clear()


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SMALL).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


@pytest.fixture
def model(wan):
    model = PixelDanceTransformer3DModel(**SMALL).eval()
    model.load_state_dict(wan.state_dict())
    return model


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 8, 5, 12, 10),
        "timestep": torch.tensor([300.0, 912.5]),
        "encoder_hidden_states": torch.randn(2, 9, 20),
    }


@pytest.mark.parametrize("tier", ["torch", "native"])
@pytest.mark.parametrize("per_token", [False, True])
@torch.no_grad()
def test_velocity_equals_wans(use, wan, model, inputs, tier, per_token):
    use(tier)
    if per_token:
        inputs["timestep"] = torch.where(torch.arange(150) < 30, 0.0, 640.0).expand(2, 150)
    expected = wan(**inputs).sample
    error = (model(**inputs).sample - expected).norm() / expected.norm()
    assert error < 1e-5


def half(model, inputs):
    """Both in bfloat16, but the delicate weights in float32, as diffusers loads them."""
    model = copy.deepcopy(model)
    kept = PixelDanceTransformer3DModel._keep_in_fp32_modules
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.bfloat16()
    timestep = inputs["timestep"]
    return model, {k: v.bfloat16() for k, v in inputs.items()} | {"timestep": timestep}


@pytest.mark.parametrize("tier", ["torch", "native"])
@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_wans(use, wan, model, inputs, tier):
    use(tier)
    expected = wan(**inputs).sample
    error_of = {}
    for name, network in (("wan", wan), ("ours", model)):
        network, halves = half(network, inputs)
        error_of[name] = (network(**halves).sample.float() - expected).norm() / expected.norm()
    assert 0 < error_of["ours"] < 1.1 * error_of["wan"]


@torch.no_grad()
def test_changed_weights_count_at_once(use, model, inputs):
    """Nothing is prepared from the weights: not even changes that PyTorch does not count."""
    use("native")
    before = model(**inputs).sample
    other = copy.deepcopy(model)
    for name in ["norm2.weight", "attn1.norm_q.weight", "ffn.net.0.proj.weight", "attn1.to_k.bias"]:
        weight = other.get_parameter(f"blocks.1.{name}")
        saved = weight.detach().clone()
        weight.data.mul_(1.5)
        assert not torch.allclose(other(**inputs).sample, before, rtol=0, atol=1e-4), name
        weight.data.copy_(saved)
    assert torch.equal(other(**inputs).sample, before)


def test_gradients_equal_those_of_wans(use, wan, model, inputs):
    use("native")

    def gradients(network):
        network(**inputs).sample.square().mean().backward()
        return {name: weight.grad for name, weight in network.named_parameters()}

    expected = gradients(copy.deepcopy(wan))
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-3, name
