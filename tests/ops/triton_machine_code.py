"""Compiles every kernel, as a Wan transformer and its autoencoder use it, without a GPU.

Prints a line for each kernel and compute capability: wide loads, wide stores, spilled registers.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pixeldance.ops import cuda

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CAPABILITIES = (80, 90)


def source_of(kernel, arguments, constants):
    """What Triton would compile for these arguments: types, constants, what 16 divides."""
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants}
    signature, known, divisible = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        kind, number = "fp32", 1
        if isinstance(value, torch.Tensor):
            kind, number = f"*{FORMATS[value.dtype]}", value.data_ptr()
        elif isinstance(value, int):
            kind, number = "i32", value
        if parameter.name in constants:
            signature[parameter.name], known[position,] = "constexpr", value
        else:
            signature[parameter.name] = kind
            if number % 16 == 0 and not parameter.do_not_specialize:
                divisible[position,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, known, divisible)


def compile_instead(kernel, grid, *arguments, num_warps, **constants):
    """Takes the place of the launch."""
    source = source_of(kernel, arguments, constants)
    for capability in CAPABILITIES:
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        ptx, sass = compiled.asm["ptx"], compiled.asm["sass"]
        counts = (ptx.count("ld.global.v4"), ptx.count("st.global.v4"), sass.count("STL"))
        sys.stdout.write(f"{kernel.__name__} {capability} {' '.join(map(str, counts))}\n")
    return arguments[0]


def main():
    cuda._launch = compile_instead
    library = cuda.TritonOps()
    width, half = 5120, torch.bfloat16
    tokens, weight = torch.zeros(1, 48, width, dtype=half), torch.zeros(width, dtype=half)
    row, angles = torch.zeros(1, 1, width), torch.zeros(1, 48, 1, 64, 2)
    frames = torch.zeros(1, 4, 60, 96, dtype=half)
    library.modulated_norm(tokens, row, row, 1e-6)
    library.gated_residual(tokens, tokens, row)
    library.rms_norm_rotate(tokens, weight, 1e-6, 40, angles)
    library.rms_norm_silu(frames[:, 2:], weight[:96], 1e-12, frames[:, 2:])


if __name__ == "__main__":
    main()
