"""Fused operations of the transformer and of the Wan autoencoder.

Every operation has one reference in PyTorch (``reference.py``: differentiable, on every device)
and one native implementation for processors with AVX-512 (``csrc``); those that PyTorch computes in
several passes over memory have one for NVIDIA GPUs as well (``triton_kernels.py``). Both are used
when no gradient is asked for and nothing is being compiled. :func:`active_tier` says which;
``PIXELDANCE_OPS`` decides.
"""

from pixeldance.ops.functions import (
    attention,
    convolve_frames,
    gated_residual,
    gelu_linear,
    gelu_tanh,
    layer_norm,
    modulated_norm,
    rms_norm_rotate,
    rms_norm_silu,
)
from pixeldance.ops.kernels import FrameKernel
from pixeldance.ops.tiers import Tier, active_tier

__all__ = [
    "FrameKernel",
    "Tier",
    "active_tier",
    "attention",
    "convolve_frames",
    "gated_residual",
    "gelu_linear",
    "gelu_tanh",
    "layer_norm",
    "modulated_norm",
    "rms_norm_rotate",
    "rms_norm_silu",
]
