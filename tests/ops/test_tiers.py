"""On a GPU Triton is chosen where it can be; elsewhere the reason is said once."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from pixeldance import ops
from pixeldance.errors import ConfigError
from pixeldance.ops.tiers import active_tier

pytestmark = pytest.mark.usefixtures("choose_anew")


class Library:
    """Stands in for Triton's operations: computes, computes wrongly, or cannot be compiled."""

    def __init__(self, result):
        self.result = result

    def gated_residual(self, tokens, update, gate):
        if isinstance(self.result, Exception):
            raise self.result
        return tokens * self.result


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have GPUs (name: compute capability) and Triton, which computes 1 + 1 * 1."""

    def pretend(gpus, one_plus_one=2.0):
        names = list(gpus)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name, function in {
            "is_available": lambda: bool(gpus),
            "device_count": lambda: len(gpus),
            "get_device_capability": lambda index=0: gpus[names[index]],
            "get_device_name": lambda index=0: names[index],
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        ones = torch.ones
        monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7.1"))
        library = SimpleNamespace(TritonOps=lambda: Library(one_plus_one))
        monkeypatch.setitem(sys.modules, "pixeldance.ops.cuda", library)

    return pretend


def test_a_gpu_with_bfloat16_is_used(machine, caplog):
    machine({"H100": (9, 0), "A100": (8, 0)})
    with caplog.at_level(logging.INFO, logger="pixeldance.ops"):
        tier = active_tier("cuda")
        assert active_tier("cuda") is tier
    assert str(tier) == "triton (3.7.1 on H100)"
    assert isinstance(tier.library, Library)
    assert [r.message for r in caplog.records] == ["operations on the GPU: triton (3.7.1 on H100)"]


@pytest.mark.parametrize(
    ("gpus", "one_plus_one", "reason"),
    [
        ({}, 2.0, "there is no NVIDIA GPU that PyTorch can use"),
        ({"H100": (9, 0), "T4": (7, 5)}, 2.0, "T4 cannot compute in bfloat16"),
        ({"H100": (9, 0)}, 3.0, "Triton computes wrongly on this GPU"),
        (
            {"H100": (9, 0)},
            RuntimeError("Failed to find C compiler.\nInstall one."),
            "Triton cannot compile for this GPU (Failed to find C compiler.)",
        ),
    ],
)
def test_why_it_is_pytorch(machine, monkeypatch, caplog, gpus, one_plus_one, reason):
    machine(gpus, one_plus_one)
    with caplog.at_level(logging.INFO, logger="pixeldance.ops"):
        assert str(active_tier("cuda")) == f"torch ({reason})"
    assert [r.message for r in caplog.records] == [f"operations on the GPU: torch ({reason})"]
    assert active_tier("cuda").library is None

    monkeypatch.setenv("PIXELDANCE_OPS", "triton")
    active_tier.cache_clear()
    with pytest.raises(ConfigError) as error:
        active_tier("cuda")
    assert (
        str(error.value)
        == f"PIXELDANCE_OPS is 'triton', but {reason}. Set it to 'auto' or 'torch'."
    )


@pytest.mark.parametrize("missing", ["triton", "pixeldance.ops.cuda"])
def test_triton_may_be_missing(machine, monkeypatch, missing):
    machine({"H100": (9, 0)})
    monkeypatch.setitem(sys.modules, missing, None)
    assert active_tier("cuda").name == "torch"
    assert "Triton cannot be imported" in active_tier("cuda").reason


def test_pytorch_for_other_makers_is_not_touched(machine, monkeypatch):
    machine({"MI300": (9, 4)})
    monkeypatch.setattr(torch.version, "cuda", None)
    assert active_tier("cuda").name == "torch"


def test_each_kind_of_device_has_its_own(machine, monkeypatch):
    machine({"H100": (9, 0)})
    monkeypatch.setattr("pixeldance.ops.tiers.cpu_flags", lambda: frozenset(["avx2"]))
    assert [active_tier(kind).name for kind in ("cpu", "cuda", "mps")] == [
        "torch",
        "triton",
        "torch",
    ]
    assert active_tier("mps").reason == "nothing else computes on mps"

    monkeypatch.setenv("PIXELDANCE_OPS", "triton")  # demands nothing of the processor
    active_tier.cache_clear()
    assert active_tier("cpu").name == "torch"

    monkeypatch.setenv("PIXELDANCE_OPS", "native")  # demands nothing of the GPU
    active_tier.cache_clear()
    assert active_tier("cuda").name == "triton"

    monkeypatch.setenv("PIXELDANCE_OPS", "torch")
    active_tier.cache_clear()
    assert {active_tier(kind).library for kind in ("cpu", "cuda")} == {None}


def test_tensors_on_two_devices_are_left_to_pytorch(machine, monkeypatch):
    """PyTorch's own message then says what is wrong, and no kernel reads a foreign pointer."""
    monkeypatch.setattr("pixeldance.ops.functions.active_tier", lambda kind: pytest.fail(kind))
    with pytest.raises(RuntimeError, match="device"):
        ops.gated_residual(
            torch.ones(1, 1, 8), torch.ones(1, 1, 8, device="meta"), torch.ones(1, 1, 8)
        )
