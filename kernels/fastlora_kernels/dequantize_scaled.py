"""8-bit values unpacked: W_nk = (q_nk - z) * a, with a and z of a block of rows and columns."""

import triton
import triton.language as tl

# A program's part of W: 16 bytes of q a thread of four warps.
BLOCK_N, BLOCK_K = 8, 256


@triton.jit
def value_of(byte, KIND: tl.constexpr):
    """The fp32 values of bytes: int8, or fp8 with 3 or 2 bits of mantissa.

    Not by Triton's own fp8, which needs sm_89. Shifted into fp16, whose exponent has one bit more, e4m3 is
    2^-8 of its value, subnormal numbers too.
    """
    bits = byte.to(tl.int16)
    if KIND == "int8":
        value = byte.to(tl.int8, bitcast=True).to(tl.float32)
    elif KIND == "e5m2":
        value = (bits << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True)
        value = tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
    return value


@triton.jit
def dequantize_kernel(
    q_ptr,  # [N, K] uint8, which `value_of` reads as KIND
    scale_ptr,  # [blocks of rows, blocks of columns], floating
    zero_ptr,  # the same, or None
    out_ptr,  # [N, K]
    N,
    K,
    rows,
    columns,
    grid_columns,
    factor,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = W. Compiled without fused multiply-adds, so that each step rounds as on the host."""
    parts = tl.cdiv(K, BLOCK_K)
    n = tl.program_id(0) // parts * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) % parts * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    # N * K may exceed 2^31, so rows become 64-bit before they are multiplied.
    entry = n.to(tl.int64)[:, None] * K + k[None, :]
    block = (n // rows * grid_columns)[:, None] + (k // columns)[None, :]
    value = value_of(tl.load(q_ptr + entry, mask=inside, other=0), KIND)
    if zero_ptr is not None:
        value -= tl.load(zero_ptr + block, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + block, mask=inside, other=0.0).to(tl.float32) * factor
    tl.store(out_ptr + entry, (value * scale).to(out_ptr.dtype.element_ty), mask=inside)
