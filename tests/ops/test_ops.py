"""Both implementations compute what float64 says, on shapes and values of every kind."""

import ops_cases
import pytest
import torch
from ops_cases import OPERATIONS, Draw, assert_close_to_exact, exact
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from pixeldance import ops
from pixeldance.errors import InputError
from pixeldance.ops import reference
from pixeldance.ops.tiers import active_tier

NAMES = [operation.__name__ for operation in OPERATIONS]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def native(choose_anew):
    """The native operations; skips where there are none."""
    tier = active_tier("cpu")
    if tier.library is None:
        pytest.skip(f"no native operations: {tier.reason}")
    return tier.library


@pytest.fixture
def calls(native, monkeypatch):
    """Names of the operations that were computed natively."""
    names = []
    for name in NAMES:
        compute = getattr(native, name)
        monkeypatch.setattr(
            native, name, lambda *a, name=name, compute=compute: names.append(name) or compute(*a)
        )
    return names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_reference_is_close_to_float64(operation, dtype):
    for seed in range(25):
        arguments = operation(Draw(seed, dtype))
        actual = getattr(reference, operation.__name__)(*arguments)
        assert_close_to_exact(actual, operation.__name__, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_native_is_close_to_float64(native, operation, dtype):
    for seed in range(100):
        arguments = operation(Draw(seed, dtype))
        actual = getattr(native, operation.__name__)(*arguments)
        if actual is None:
            assert operation is ops_cases.attention
            assert dtype == torch.bfloat16
            pytest.skip("the processor does not multiply bfloat16, or has something better")
        assert_close_to_exact(actual, operation.__name__, arguments)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_nan_and_infinity_spread_as_in_pytorch(native, operation, poison):
    for seed in range(10):
        arguments = operation(Draw(seed, torch.float32))
        x = arguments[0]
        x[..., 0, :, x.shape[-1] // 2] = poison
        actual = getattr(native, operation.__name__)(*arguments)
        expected = exact(operation.__name__, *arguments)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_survives_growing_logits(native, dtype):
    """The largest logit comes in the last block of keys: every sum before has to be scaled."""
    torch.manual_seed(0)
    query, value = torch.randn(1, 9, 2, 32, dtype=dtype), torch.randn(1, 400, 2, 32, dtype=dtype)
    key = query[:, :1].expand(1, 400, 2, 32) * torch.linspace(-5, 5, 400)[:, None, None]
    arguments = query, key.to(dtype), value, None
    actual = native.attention(*arguments)
    if actual is None:
        pytest.skip("not computed natively here")
    assert_close_to_exact(actual, "attention", arguments)


def test_attention_with_every_key_hidden_is_nan_only_there(native):
    query = torch.randn(2, 3, 1, 16)
    key = value = torch.randn(2, 70, 1, 16)
    bias = torch.zeros(2, 1, 1, 70)
    bias[0] = -torch.inf
    bias[1, ..., :69] = -torch.inf
    actual = native.attention(query, key, value, bias)
    assert actual[0].isnan().all()
    torch.testing.assert_close(actual[1], value[1, 69:].expand(3, 1, 16))


def test_many_threads_give_the_same_numbers(native):
    threads = torch.get_num_threads()
    for operation in OPERATIONS:
        arguments = operation(Draw(3, torch.float32))
        expected = getattr(native, operation.__name__)(*arguments).clone()
        try:
            torch.set_num_threads(3)
            actual = getattr(native, operation.__name__)(*arguments)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(actual, expected), operation.__name__


# --- writing into a part of something


@pytest.mark.parametrize("write", ["native", "torch"])
def test_rms_norm_silu_writes_its_part_of_a_buffer_only(native, monkeypatch, write):
    x, weight = torch.randn(2, 3, 4, 5, 24), torch.rand(24)
    parts = {
        "frames": (torch.full((2, 5, 4, 5, 24), 7.0), (slice(None), slice(2, None))),
        "border": (torch.full((2, 3, 6, 7, 24), 7.0), (..., slice(1, -1), slice(1, -1), slice(24))),
        "channels": (torch.full((2, 3, 4, 5, 30), 7.0), (..., slice(3, 27))),
    }
    if write == "torch":
        monkeypatch.setenv("PIXELDANCE_OPS", "torch")
        active_tier.cache_clear()
    for buffer, part in parts.values():
        out = buffer[part]
        assert ops.rms_norm_silu(x, weight, 1e-12, out=out) is out
        torch.testing.assert_close(
            out.double(), exact("rms_norm_silu", x, weight, 1e-12, None), rtol=1e-5, atol=1e-6
        )
        assert (buffer == 7).sum() == buffer.numel() - x.numel()


def test_rms_norm_silu_refuses_another_shape_or_dtype():
    x, weight = torch.randn(2, 3, 8), torch.rand(8)
    with pytest.raises(InputError, match=r"out must be \(2, 3, 8\)"):
        ops.rms_norm_silu(x, weight, 1e-12, out=torch.empty(2, 4, 8))
    with pytest.raises(InputError, match="float32, got"):
        ops.rms_norm_silu(x, weight, 1e-12, out=torch.empty(2, 3, 8, dtype=torch.bfloat16))


# --- when it is computed natively


def public_calls():
    """Every operation through its public function."""
    for operation in OPERATIONS:
        arguments = operation(Draw(1, torch.float32))
        if operation is ops_cases.rms_norm_silu:
            arguments = arguments[:3]
        yield operation.__name__, arguments


def test_without_gradients_everything_is_native(calls):
    for name, arguments in public_calls():
        getattr(ops, name)(*arguments)
    assert calls == NAMES


def test_gradients_are_those_of_the_formula(calls):
    for name, arguments in public_calls():
        double = [
            a.double().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        single = [
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        padding = [None] * (name == "rms_norm_silu")
        exact(name, *double, *padding).square().sum().backward()
        getattr(ops, name)(*single).square().sum().backward()
        for one, two in zip(single, double, strict=True):
            if isinstance(one, torch.Tensor):
                size = two.grad.abs().max().item()
                torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-3, atol=1e-4 * size)
    assert calls == []


def test_no_grad_makes_a_trained_tensor_native_again(calls):
    x = torch.randn(4, 3, 8, requires_grad=True)
    ops.gelu_tanh(x)
    with torch.no_grad():
        ops.gelu_tanh(x)
    assert calls == ["gelu_tanh"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_derivatives_and_transforms_are_not_lost(calls):
    x, direction = torch.randn(2, 2, 3, 8)
    (expected,) = torch.autograd.functional.jvp(reference.gelu_tanh, x, direction)[1:]
    with forward_ad.dual_level():
        result = ops.gelu_tanh(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(result).tangent, expected)
    torch.testing.assert_close(torch.func.jvp(ops.gelu_tanh, (x,), (direction,))[1], expected)
    torch.testing.assert_close(torch.func.vmap(ops.gelu_tanh)(x), reference.gelu_tanh(x))
    assert calls == []


class Recorder(TorchDispatchMode):
    """Notes what PyTorch computes."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_counters_and_other_devices_see_pytorch(calls):
    query = torch.randn(1, 4, 2, 8)
    with Recorder() as recorder:
        ops.attention(query, query, query)
    assert any("attention" in name for name in recorder.names)
    assert ops.gelu_tanh(torch.empty(2, 3, device="meta")).shape == (2, 3)
    assert ops.gelu_tanh(torch.empty(0, 3)).shape == (0, 3)
    assert ops.gelu_tanh(torch.randn(3, dtype=torch.float64)).dtype == torch.float64
    assert "attention" not in calls


# --- a linear layer with GELU


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_gelu_linear_is_close_to_float64(dtype, bias):
    torch.manual_seed(0)
    for shape in [(1, 1, 24), (2, 5, 24), (7, 24)]:
        linear, x = nn.Linear(24, 17, bias=bias, dtype=dtype), torch.randn(shape, dtype=dtype)
        expected = ops_cases.exact_gelu_tanh(
            nn.functional.linear(
                x.double(), linear.weight.double(), linear.bias.double() if bias else None
            )
        )
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            ops.gelu_linear(x, linear).double(), expected, rtol=tolerance, atol=tolerance
        )


def test_gelu_linear_calls_layers_with_hooks_or_gradients(native):
    linear, x = nn.Linear(8, 8), torch.randn(1, 4, 8)
    with torch.no_grad():
        expected = ops.gelu_linear(x, linear)
        seen = []
        handle = linear.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(ops.gelu_linear(x, linear), expected)
        assert seen == [1]
        handle.remove()
        replaced = nn.Linear(8, 8)
        replaced.forward = lambda rows: rows * 0
        assert not ops.gelu_linear(x, replaced).any()
    ops.gelu_linear(x, linear).sum().backward()
    assert linear.weight.grad.any()
