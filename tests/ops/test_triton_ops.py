"""The Triton kernels compute what float64 says and touch nothing but their arguments.

Without a GPU they run in Triton's interpreter: ``make test-triton``. It follows the kernels number
by number, but it cuts bfloat16 off where a GPU rounds. On a GPU: ``pytest -m gpu`` (and, for reads
and writes out of bounds, ``compute-sanitizer pytest -m gpu tests/ops/test_triton_ops.py``).
"""

import os
import subprocess
import sys
from pathlib import Path

import ops_cases
import pytest
import torch
from ops_cases import Draw, assert_close_to_exact, exact

from pixeldance import ops
from pixeldance.ops.tiers import Tier, active_tier

pytest.importorskip("triton", reason="Triton is not installed (make test-triton)")

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ["layer_norm", "modulated_norm", "gated_residual", "rms_norm_rotate", "rms_norm_silu"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# The interpreter computes with numpy, which warns of infinities and NaNs.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=DEVICES)
def device(request):
    """Where the kernels run: CPU tensors in the interpreter, or a GPU."""
    if request.param == "cpu" and not IS_INTERPRETED:
        pytest.skip("without a GPU the kernels need TRITON_INTERPRET=1 (make test-triton)")
    if request.param == "cuda" and (IS_INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("no GPU, or TRITON_INTERPRET=1 is set")
    return request.param


@pytest.fixture
def library(device):
    from pixeldance.ops.cuda import TritonOps

    return TritonOps()


def moved(tensor, device):
    """The tensor on a device, with the same strides inside a copy of the same memory."""
    memory = tensor.new_empty(0).set_(tensor.untyped_storage())
    return memory.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def drawn(name, seed, dtype, device):
    """Arguments of an operation."""
    arguments = getattr(ops_cases, name)(Draw(seed, dtype))
    return [moved(a, device) if isinstance(a, torch.Tensor) else a for a in arguments]


def compute(library, name, arguments):
    """The result of the Triton operation, which has to cover the arguments."""
    result = getattr(library, name)(*arguments)
    assert result is not None
    return result


# --- numbers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_close_to_float64(library, device, name, dtype):
    for seed in range(100 if device == "cuda" else 5):
        arguments = drawn(name, seed, dtype, device)
        assert_close_to_exact(compute(library, name, arguments), name, arguments)


@pytest.mark.parametrize("width", [1, 2, 1022, 1536, 5120, 16384])
@pytest.mark.parametrize("length", [1, 3])
def test_every_width_and_length(library, device, length, width):
    draw = Draw(width, torch.float32)
    tokens, update = draw.tensor(2, length, width), draw.tensor(2, length, width)
    rows, weight = draw.tensor(2, 1, width), draw.tensor(width)
    angles = draw.tensor(1, length, 1, width // 2, 2)
    cases = {
        "layer_norm": (tokens, weight, weight, 1e-6),
        "modulated_norm": (tokens, rows, update, 1e-6),
        "gated_residual": (tokens, update, rows),
        "rms_norm_rotate": (tokens, weight, 1e-6, 1, angles if width > 1 else None),
        "rms_norm_silu": (tokens, weight, 1e-12, torch.empty(tokens.shape)),
    }
    for name, arguments in cases.items():
        placed = [moved(a, device) if isinstance(a, torch.Tensor) else a for a in arguments]
        assert_close_to_exact(compute(library, name, placed), name, placed)


@pytest.mark.parametrize("name", ["layer_norm", "modulated_norm", "gated_residual"])
def test_formats_may_be_mixed(library, device, name):
    """As under autocast: weights and updates in another format than the tokens."""
    tokens, *others = drawn(name, 1, torch.float32, device)
    others = [a.bfloat16() if isinstance(a, torch.Tensor) else a for a in others]
    assert_close_to_exact(compute(library, name, (tokens, *others)), name, (tokens, *others))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_spread_as_in_pytorch(library, device, name, poison):
    for seed in range(3):
        arguments = drawn(name, seed, torch.float32, device)
        x = arguments[0]
        x[..., 0, :, x.shape[-1] // 2] = poison
        actual = compute(library, name, arguments)
        expected = exact(name, *arguments)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


def test_vectors_of_zeros_are_normed_to_zeros(library, device):
    zeros, ones = torch.zeros(2, 3, 40, device=device), torch.ones(40, device=device)
    assert not compute(library, "layer_norm", (zeros, ones, zeros[0, 0], 1e-6)).any()
    assert not compute(library, "rms_norm_rotate", (zeros, ones, 1e-6, 4, None)).any()
    assert not compute(library, "rms_norm_silu", (zeros, ones, 1e-12, zeros.clone())).any()


# --- memory


class Spy:
    """Stands between the interpreter and the memory and notes every address."""

    def __init__(self, memory):
        self._memory = memory
        self.read, self.written = [], []

    def load(self, addresses, mask, *rest):
        self.read.extend(addresses[mask].ravel().tolist())
        return self._memory.load(addresses, mask, *rest)

    def store(self, addresses, values, mask):
        self.written.extend(addresses[mask].ravel().tolist())
        return self._memory.store(addresses, values, mask)


def addresses_of(tensor):
    """Where the elements of a tensor are."""
    offsets = torch.arange(tensor.untyped_storage().nbytes() // tensor.itemsize)
    places = offsets.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    start = tensor.untyped_storage().data_ptr()
    return {start + tensor.itemsize * place for place in places.flatten().tolist()}


class Contiguous(Draw):
    """Arguments that no operation has to copy first."""

    def laid_out(self, values):
        return values


@pytest.mark.skipif(not IS_INTERPRETED, reason="only the interpreter tells addresses")
@pytest.mark.parametrize("name", NAMES)
def test_only_arguments_are_read_and_every_result_written_once(name, monkeypatch):
    from triton.runtime import interpreter

    from pixeldance.ops.cuda import TritonOps

    for seed in range(3):
        arguments = getattr(ops_cases, name)(Contiguous(seed, torch.float32))
        inputs = [a for a in arguments if isinstance(a, torch.Tensor)]
        if name == "rms_norm_silu":
            inputs.pop()  # it is where the result goes
        spy = Spy(interpreter._interpreter)
        with monkeypatch.context() as patch:
            patch.setattr(interpreter, "_interpreter", spy)
            result = compute(TritonOps(), name, arguments)
        assert set(spy.read) == set().union(*map(addresses_of, inputs))
        assert sorted(spy.written) == sorted(addresses_of(result))


@pytest.mark.parametrize("part", [(slice(None), slice(2, None)), (..., slice(3, 27))])
def test_rms_norm_silu_writes_its_part_of_a_buffer_only(library, device, part):
    buffer = torch.full((2, 5, 4, 5, 30), 7.0, device=device)
    out = buffer[part]
    x, weight = torch.randn(out.shape, device=device), torch.rand(out.shape[-1], device=device)
    arguments = (x, weight, 1e-12, out)
    assert compute(library, "rms_norm_silu", arguments) is out
    assert_close_to_exact(out, "rms_norm_silu", arguments)
    assert (buffer == 7).sum() == buffer.numel() - x.numel()


def test_places_beyond_32_bits(library, device):
    """Four tokens that lie 2**30 numbers apart; what is between them is never touched."""
    memory = torch.empty(3 * 2**30 + 16, dtype=torch.float16, device=device)
    for shape, stride in (((1, 4, 16), (1, 2**30, 1)), ((4, 1, 16), (2**30, 1, 1))):
        tokens = memory.as_strided(shape, stride)
        tokens.copy_(torch.randn(shape))
        weight = torch.rand(16, device=device)
        rows = torch.randn(shape[0], 1, 16, device=device)
        cases = {
            "layer_norm": (tokens, weight, weight, 1e-6),
            "gated_residual": (tokens, tokens, rows),
            "rms_norm_rotate": (tokens, weight, 1e-6, 2, None),
        }
        for name, arguments in cases.items():
            assert_close_to_exact(compute(library, name, arguments), name, arguments)
        x = torch.randn(shape, dtype=torch.float16, device=device)
        arguments = (x, weight, 1e-12, tokens)
        assert_close_to_exact(
            compute(library, "rms_norm_silu", arguments), "rms_norm_silu", arguments
        )


@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_two_billion_numbers():
    if IS_INTERPRETED or not torch.cuda.is_available():
        pytest.skip("no GPU")
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of GPU memory")
    from pixeldance.ops.cuda import TritonOps

    tokens = torch.randn(1, 2**21 + 5, 1024, dtype=torch.bfloat16, device="cuda")
    gate = torch.randn(1, 1, 1024, device="cuda")
    result = compute(TritonOps(), "gated_residual", (tokens, tokens, gate))
    for part in (slice(0, 100), slice(-100, None)):
        few = tokens[:, part]
        assert_close_to_exact(result[:, part], "gated_residual", (few, few, gate))


# --- what is left to PyTorch


def test_other_arguments_are_left_to_pytorch(library, device):
    tokens, ones = torch.randn(2, 3, 16, device=device), torch.ones(16, device=device)
    rows, wide = ones.expand(2, 1, 16), torch.zeros(1, 1, 16385, device=device)
    angles = torch.zeros(1, 4, 1, 4, 2, device=device)
    buffer = torch.zeros(2, 5, 4, 16, device=device)
    assert library.layer_norm(tokens.double(), ones, ones, 1e-6) is None
    assert library.layer_norm(tokens, ones.double(), ones, 1e-6) is None
    assert library.modulated_norm(tokens[0], ones, ones, 1e-6) is None
    assert library.modulated_norm(wide, wide, wide, 1e-6) is None
    assert library.gated_residual(tokens.int(), tokens, rows) is None
    assert library.gated_residual(tokens, tokens[:, :1], rows) is None
    assert library.rms_norm_rotate(tokens, ones, 1e-6, 3, None) is None  # 16 / 3 channels
    assert library.rms_norm_rotate(tokens, ones, 1e-6, 2, angles) is None  # of another length
    assert library.rms_norm_silu(buffer[:, 1:4, 1:3], ones, 1e-6, buffer[:, 1:4, 1:3]) is None
    assert library.rms_norm_silu(tokens, ones, 1e-6, tokens.mT.contiguous().mT) is None


@pytest.fixture
def calls(library, device, monkeypatch):
    """Names of the operations that Triton computed, with Triton in charge of ``device``."""
    active_tier.cache_clear()
    names = []
    for name in NAMES:
        method = getattr(library, name)
        monkeypatch.setattr(
            library, name, lambda *a, name=name, method=method: names.append(name) or method(*a)
        )
    tier = Tier("triton", "chosen by the test", library)
    monkeypatch.setattr("pixeldance.ops.functions.active_tier", lambda device_type: tier)
    return names


def public_arguments(name, device, dtype=torch.float32):
    arguments = drawn(name, 1, dtype, device)
    return arguments[:3] if name == "rms_norm_silu" else arguments


def test_without_gradients_it_is_triton(calls, device):
    for name in NAMES:
        getattr(ops, name)(*public_arguments(name, device))
    assert calls == NAMES


def test_gradients_come_from_pytorch(calls, device):
    for name in NAMES:
        tokens, *others = public_arguments(name, device)
        tokens = tokens.clone().requires_grad_()
        getattr(ops, name)(tokens, *others).sum().backward()
        assert tokens.grad is not None
    assert calls == []


def test_single_pass_operations_and_empty_tensors_are_left_to_pytorch(calls, device):
    query = torch.randn(1, 4, 2, 8, device=device)
    assert ops.attention(query, query, query).shape == query.shape
    torch.testing.assert_close(
        ops.gelu_tanh(query), torch.nn.functional.gelu(query, approximate="tanh")
    )
    rows = torch.zeros(2, 1, 8, device=device)
    for length, batch in ((0, 2), (3, 0)):
        empty = torch.empty(batch, length, 8, device=device)
        assert ops.gated_residual(empty, empty, rows[:batch]).shape == empty.shape
    assert calls == []


def test_compiled_code_holds_the_reference_in_one_graph(calls, device):
    for name in NAMES:
        arguments = public_arguments(name, device)
        function = getattr(ops, name)
        compiled = torch.compile(lambda *a, f=function: f(*a), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=1e-3, atol=1e-5)
    assert calls == NAMES  # those outside of the compiled code


@torch.no_grad()
def test_the_transformer_computes_the_same(calls, device, monkeypatch):
    from pixeldance.models.transformer import PixelDanceTransformer3DModel

    torch.manual_seed(0)
    model = PixelDanceTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=8,
        out_channels=4,
        text_dim=20,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    ).to(device)
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    inputs = {
        "hidden_states": torch.randn(2, 8, 3, 6, 10, device=device),
        "timestep": torch.tensor([300.0, 912.5], device=device),
        "encoder_hidden_states": torch.randn(2, 9, 20, device=device),
    }
    for fused in (False, True):
        if fused:
            model.fuse_qkv_projections()
        actual = model(**inputs).sample
        with monkeypatch.context() as patch:
            patch.setattr(
                "pixeldance.ops.functions.active_tier", lambda kind: Tier("torch", "to compare")
            )
            expected = model(**inputs).sample
        assert (actual - expected).norm() / expected.norm() < 1e-5
    assert set(calls) == set(NAMES) - {"rms_norm_silu"}


# --- a GPU


@pytest.mark.gpu
def test_graphs_replay_the_kernels():
    if IS_INTERPRETED or not torch.cuda.is_available():
        pytest.skip("no GPU")
    from pixeldance.ops.cuda import TritonOps

    library = TritonOps()
    tokens, gate = torch.randn(2, 1, 30, 64, device="cuda"), torch.randn(1, 1, 64, device="cuda")
    compute(library, "gated_residual", (*tokens, gate))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(library, "gated_residual", (*tokens, gate))
    tokens.normal_()
    graph.replay()
    assert_close_to_exact(result, "gated_residual", (*tokens, gate))


@pytest.mark.gpu
def test_tensors_need_not_be_on_the_current_gpu():
    if IS_INTERPRETED or torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    from pixeldance.ops.cuda import TritonOps

    arguments = drawn("gated_residual", 1, torch.float32, "cuda:1")
    with torch.cuda.device(0):
        result = compute(TritonOps(), "gated_residual", arguments)
    assert_close_to_exact(result, "gated_residual", arguments)


@pytest.mark.slow
def test_compiled_for_gpus_that_are_not_here():
    """Machine code of compute capability 8.0 and 9.0: registers suffice, loads have 16 bytes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_machine_code.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 8
    for kernel, capability, wide_loads, wide_stores, spills in lines:
        assert int(wide_loads) > 0, (kernel, capability)
        assert int(wide_stores) > 0, (kernel, capability)
        assert int(spills) == 0, (kernel, capability)
