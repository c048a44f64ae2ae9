"""Arguments of every operation, drawn from a seed, and what float64 says to them.

``python ops_cases.py LIBRARY INSTRUCTION...`` runs them all natively (under sanitizers).
"""

import math
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from pixeldance.ops import FrameKernel

WIDTHS = [1, 2, 7, 15, 16, 17, 31, 48, 64, 130]
LENGTHS = [1, 2, 5, 6, 7, 63, 64, 65, 129, 200]
ROUNDING = {torch.float32: 3e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
HEAD_DIMS = [1, 2, 3, 16, 24, 40, 64, 65, 128, 200, 256]
CHANNELS = [1, 2, 3, 15, 16, 17, 32, 48, 70, 100]


class Draw:
    """Random tensors of one dtype: values of one magnitude, memory of many layouts."""

    def __init__(self, seed, dtype):
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def tensor(self, *shape, dtype=None, scale=1.0):
        values = torch.randn(shape, generator=self.generator) * scale
        return self.laid_out(values.to(dtype or self.dtype))

    def laid_out(self, values):
        """The same values contiguous, as a part of something larger, or with swapped axes."""
        layout = self.choose.choice(["contiguous", "part", "swapped"])
        if layout == "part":
            larger = torch.full([n + 2 for n in values.shape], torch.nan, dtype=values.dtype)
            inner = larger[tuple(slice(1, -1) for _ in values.shape)]
            return inner.copy_(values)
        if layout == "swapped" and values.ndim > 2:
            return values.transpose(0, 1).contiguous().transpose(0, 1)
        return values

    def magnitude(self):
        return 10.0 ** self.choose.randint(-4, 4)


def vectors(draw, batch, length, width):
    """One vector for each token, or for each batch element, in float32."""
    rows = draw.choose.choice([1, length])
    return draw.tensor(batch, rows, width, dtype=torch.float32)


def tokens_of(draw):
    batch, length = draw.choose.randint(1, 3), draw.choose.choice(LENGTHS)
    return draw.tensor(batch, length, draw.choose.choice(WIDTHS), scale=draw.magnitude())


def layer_norm(draw):
    tokens = tokens_of(draw)
    width = tokens.shape[-1]
    return tokens, draw.tensor(width), draw.tensor(width), 1e-6


def modulated_norm(draw):
    tokens = tokens_of(draw)
    return tokens, vectors(draw, *tokens.shape), vectors(draw, *tokens.shape), 1e-6


def gated_residual(draw):
    tokens = tokens_of(draw)
    return tokens, draw.tensor(*tokens.shape), vectors(draw, *tokens.shape)


def rms_norm_rotate(draw):
    heads, length = draw.choose.randint(1, 4), draw.choose.choice(LENGTHS)
    head_dim = draw.choose.choice(HEAD_DIMS)
    batch, scale = draw.choose.randint(1, 3), draw.magnitude()
    tokens = draw.tensor(batch, length, heads * head_dim, scale=scale)
    rotary_emb = None
    if head_dim % 2 == 0 and draw.choose.random() < 0.7:
        angle = torch.rand(1, length, 1, head_dim // 2, generator=draw.generator) * 100
        rotary_emb = draw.laid_out(torch.stack([angle.cos(), angle.sin()], dim=-1))
    return tokens, draw.tensor(heads * head_dim), 1e-6, heads, rotary_emb


def gelu_tanh(draw):
    return (tokens_of(draw),)


def rms_norm_silu(draw):
    frames, rows = draw.choose.randint(1, 3), draw.choose.choice(LENGTHS)
    width = draw.choose.choice(WIDTHS)
    x = draw.tensor(2, frames, rows, width, scale=draw.magnitude())
    padded = torch.full((2, frames + 2, rows, width), torch.nan, dtype=x.dtype)
    return x, draw.tensor(width), 1e-12, padded[:, 2:]


def attention(draw):
    queries, keys = draw.choose.choice(LENGTHS), draw.choose.choice(LENGTHS)
    batch, heads = draw.choose.randint(1, 2), draw.choose.randint(1, 3)
    head_dim = draw.choose.choice(HEAD_DIMS)
    query = draw.tensor(batch, queries, heads, head_dim, scale=draw.choose.choice([0.1, 1, 10]))
    key, value = (draw.tensor(batch, keys, heads, head_dim) for _ in range(2))
    bias = None
    if draw.choose.random() < 0.5:
        bias = draw.tensor(batch, 1, 1, keys, dtype=torch.float32, scale=3)
        hidden = torch.rand(bias.shape, generator=draw.generator) < 0.3
        hidden[..., draw.choose.randrange(keys)] = False
        bias = bias.masked_fill(hidden, -torch.inf)
    return query, key, value, bias


def convolve_frames(draw):
    choose = draw.choose
    taps, batch = choose.choice([1, 3]), choose.randint(1, 2)
    frames = choose.choice([1, taps, taps + 1, taps + 5])
    height, width = choose.randint(1, 9), choose.choice([1, 2, 5, 8, 27])
    few, many = choose.choice(CHANNELS), choose.choice(CHANNELS)
    weight, bias = draw.tensor(many, few, taps, 3, 3), choose.choice([None, draw.tensor(many)])
    kernel = FrameKernel(weight, bias, is_doubled=choose.random() < 0.4)
    cells = draw.tensor(batch, frames, height, width, few)
    shape = exact_convolve_frames(cells, kernel, None).shape
    return cells, kernel, choose.choice([None, draw.tensor(*shape)])


# Each rounds as its formula does; convolutions have a file of their own.
OPERATIONS = [
    layer_norm,
    modulated_norm,
    gated_residual,
    rms_norm_rotate,
    gelu_tanh,
    rms_norm_silu,
    attention,
]


def exact(name, *arguments):
    """The operation in float64, written down from its formula."""
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    return globals()[f"exact_{name}"](*double)


def exact_layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def exact_modulated_norm(x, shift, scale, eps):
    return exact_layer_norm(x, 1 + scale, shift, eps)


def exact_gated_residual(x, update, gate):
    return x + update * gate


def exact_rms_norm_rotate(x, weight, eps, heads, rotary_emb):
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    x = x.unflatten(-1, (heads, -1))
    if rotary_emb is None:
        return x
    even, odd, (cos, sin) = x[..., ::2], x[..., 1::2], rotary_emb.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def exact_gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_rms_norm_silu(x, weight, eps, _out):
    norm = x.square().sum(-1, keepdim=True).sqrt().clamp_min(eps)
    y = x / norm * math.sqrt(x.shape[-1]) * weight
    return y / (1 + torch.exp(-y))


def exact_attention(query, key, value, bias):
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    weights = (logits if bias is None else logits + bias).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value)


def exact_convolve_frames(cells, kernel, residual):
    """Zeros around every frame, and before a single one."""
    video = cells.double().permute(0, 4, 1, 2, 3)
    if kernel.is_doubled:
        video = video.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    past = kernel.weight.shape[2] - 1 if video.shape[2] == 1 else 0
    video = F.pad(video, (1, 1, 1, 1, past, 0))
    bias = None if kernel.bias is None else kernel.bias.double()
    result = F.conv3d(video, kernel.weight.double(), bias).permute(0, 2, 3, 4, 1)
    return result if residual is None else result + residual.double()


def assert_close_to_exact(actual, name, arguments):
    """Within a few roundings of float64, relative to the numbers that the result is made of."""
    expected = exact(name, *arguments)
    assert actual.dtype == arguments[0].dtype
    assert actual.shape == expected.shape
    error, scale = (actual.double() - expected).abs(), expected.abs()
    is_float32 = actual.dtype == torch.float32
    if name == "attention":  # relative to the values that are averaged
        scale = scale.amax(dim=(1, 3), keepdim=True).clamp_min(1)
        rounding = 1e-5 if is_float32 else 0.03
    else:
        if name == "rms_norm_rotate" and expected.shape[-1] % 2 == 0:  # relative to the pair
            pairs = expected.unflatten(-1, (-1, 2)).norm(dim=-1, keepdim=True)
            scale = pairs.expand(*pairs.shape[:-1], 2).flatten(-2)
        scale = scale + (1.0 if is_float32 else 0.1) * scale.mean()
        rounding = ROUNDING[actual.dtype]
    assert (error <= rounding * scale + 1e-30).all(), (error / scale).max()


def run_all(library: str, instructions: list[str]) -> None:
    """Run every operation natively on its cases."""
    from pixeldance.ops.native import NativeOps

    native = NativeOps(Path(library), instructions, has_amx=False)
    for operation in [*OPERATIONS, convolve_frames]:
        for dtype in (torch.float32, torch.bfloat16):
            for seed in range(40):
                getattr(native, operation.__name__)(*operation(Draw(seed, dtype)))
    sys.stdout.write("all ran\n")


if __name__ == "__main__":
    run_all(sys.argv[1], sys.argv[2:])
