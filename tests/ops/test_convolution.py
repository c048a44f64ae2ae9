"""Convolutions of frames: what float64 says, natively and in PyTorch, of every shape and layout."""

import pytest
import torch
from ops_cases import Draw, convolve_frames, exact_convolve_frames
from torch.overrides import BaseTorchFunctionMode

from pixeldance import ops
from pixeldance.ops import FrameKernel
from pixeldance.ops.tiers import active_tier

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["native", "torch"])
def tier(request, monkeypatch):
    """The implementation in use; skips where it cannot be used."""
    monkeypatch.setenv("PIXELDANCE_OPS", "torch" if request.param == "torch" else "auto")
    active_tier.cache_clear()
    if active_tier("cpu").name != request.param:
        pytest.skip(f"no native operations: {active_tier('cpu').reason}")
    yield request.param
    active_tier.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_is_close_to_float64(tier, dtype):
    for seed in range(60):
        cells, kernel, residual = convolve_frames(Draw(seed, dtype))
        expected = exact_convolve_frames(cells, kernel, residual)
        for _ in range(2):  # with new and with prepared weights
            actual = ops.convolve_frames(cells, kernel, residual)
            assert actual.dtype == dtype
            assert actual.shape == expected.shape
            error = (actual.double() - expected).norm() / expected.norm()
            assert error < (1e-6 if dtype == torch.float32 else 0.01), (seed, error)


def test_a_nan_reaches_only_the_tiles_that_see_it(tier):
    cells = torch.ones(1, 3, 9, 12, 16)
    cells[0, 0, 4, 5, 3] = torch.nan
    result = ops.convolve_frames(cells, FrameKernel(torch.ones(16, 16, 3, 3, 3)))
    rows, columns = result.isnan().any(-1)[0, 0].nonzero().unbind(-1)
    assert (rows - 4).abs().max() <= 2
    assert (columns - 5).abs().max() <= 2
    assert rows.numel() >= 9


def test_native_weights_are_prepared_once_and_gradients_take_the_formula(tier):
    kernel = FrameKernel(torch.randn(16, 16, 1, 3, 3, requires_grad=True))
    cells = torch.randn(1, 2, 4, 4, 16)
    ops.convolve_frames(cells, kernel).sum().backward()
    assert kernel.weight.grad.any()
    assert kernel.packed is None
    with torch.no_grad():
        ops.convolve_frames(cells, kernel)
        packed = kernel.packed
        ops.convolve_frames(cells, kernel)
    assert kernel.packed is packed
    assert (packed is not None) == (tier == "native")


def test_modes_that_replace_functions_see_those_of_pytorch(tier):
    cells, kernel = torch.randn(1, 1, 4, 4, 16), FrameKernel(torch.randn(16, 16, 1, 3, 3))
    with BaseTorchFunctionMode():
        ops.convolve_frames(cells, kernel)
    assert kernel.packed is None
    with torch.device("cpu"):  # which only places new tensors
        ops.convolve_frames(cells, kernel)
    assert (kernel.packed is not None) == (tier == "native")


def test_many_threads_give_the_same_numbers(tier):
    cells, kernel = torch.randn(1, 5, 11, 40, 32), FrameKernel(torch.randn(48, 32, 3, 3, 3))
    threads = torch.get_num_threads()
    expected = ops.convolve_frames(cells, kernel)
    try:
        torch.set_num_threads(3)
        actual = ops.convolve_frames(cells, kernel)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0 if tier == "native" else 1e-4)
