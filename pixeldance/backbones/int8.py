"""Linear layers with 8-bit weights, for text encoders that would not fit otherwise.

A row of a weight is stored as 8-bit integers and one scale (its largest absolute value / 127), and
becomes a matrix of the activations' format again when it is used. Plain tensors in a plain module:
whatever moves modules between devices can move these. The numbers are those of torchao's
``Int8WeightOnlyConfig``; diffusers' layerwise casting to float8 has no scales, which UMT5's small
weights need, and does not work with its feed-forward layers.
"""

import torch
from torch import Tensor, nn

__all__ = ["Int8Linear", "num_bytes", "quantize_linears"]

_LARGEST = 127


class Int8Linear(nn.Module):
    """``x @ weight.T + bias`` with the weight in 8 bits.

    Args:
        linear: The layer whose place it takes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = linear.weight.detach().float()
        scale = rows.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(
            (rows / scale[:, None]).round().to(torch.int8), requires_grad=False
        )
        self.scale = nn.Parameter(scale.to(linear.weight.dtype), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in the format of ``x``, ``... in_features`` to ``... out_features``."""
        product = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Its size, as ``nn.Linear`` shows it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_linears(model: nn.Module) -> None:
    """Store the weights of all linear layers of a model in 8 bits.

    Embeddings and norms stay as they are. Layer by layer, so that the memory of a weight is free
    before the next one is taken.

    Args:
        model: The model; it is changed, and cannot be trained afterwards.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            quantize_linears(child)


def num_bytes(model: nn.Module, *, bytes_per_weight: int) -> int:
    """What the parameters of a model take with its linear layers in 8 bits.

    Args:
        model: A model that has not been changed; it may be on the meta device.
        bytes_per_weight: Of its other parameters and the scales.

    Returns:
        Bytes.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    in_8_bits = sum(linear.weight.numel() for linear in linears)
    scales = sum(linear.out_features for linear in linears)
    others = sum(parameter.numel() for parameter in model.parameters()) - in_8_bits
    return in_8_bits + (others + scales) * bytes_per_weight
