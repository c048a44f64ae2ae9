"""Fused operations of the transformer and of the Wan autoencoder.

Every operation has one reference in PyTorch (``reference.py``: differentiable, on every device)
and one native implementation for processors with AVX-512 (``csrc``), which is used when no
gradient is asked for. :func:`active_tier` says which; ``PIXELDANCE_OPS`` decides.
"""

from pixeldance.ops.functions import (
    attention,
    gated_residual,
    gelu_linear,
    gelu_tanh,
    layer_norm,
    modulated_norm,
    rms_norm_rotate,
    rms_norm_silu,
)
from pixeldance.ops.tiers import Tier, active_tier

__all__ = [
    "Tier",
    "active_tier",
    "attention",
    "gated_residual",
    "gelu_linear",
    "gelu_tanh",
    "layer_norm",
    "modulated_norm",
    "rms_norm_rotate",
    "rms_norm_silu",
]
