"""A tile of a packed W as its values in fp32, in registers: what the product of few rows reads.

Bit for bit what `dequantize_bnb_4bit.py` and `dequantize_scaled.py` write, before it is rounded to W's dtype.
"""

import triton
import triton.language as tl

from fastlora_kernels.dequantize_scaled import value_of
from fastlora_kernels.nibble_lookup import looked_up


@triton.jit
def four_bit_tile(
    W,  # the pointers of dequantize_bnb_4bit: packed, code, scales, and code2, scales2, offset or None
    table,
    row,
    column,
    N,
    K,  # even, so that no byte is in two rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BY_ROW: tl.constexpr,  # whether the entries of a row in a tile are all in one block
    PERMUTED: tl.constexpr,  # as nibble_lookup.py takes it
):
    """[ROWS, COLUMNS] of W [N, K] from (row, column) on, fp32."""
    packed_ptr, _, scales_ptr, code2_ptr, scales2_ptr, offset_ptr = W
    # N * K exceeds 2^31 in real use, so rows become 64-bit before they are multiplied.
    n = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    # As a row of bytes one after the other, not as half of each k: so they are prefetched many at a time.
    byte = column // 2 + tl.arange(0, COLUMNS // 2)[None, :]
    inside = (n < N) & (byte < K // 2)
    packed = tl.load(packed_ptr + n * (K // 2) + byte, mask=inside, other=0)
    if BY_ROW:
        block = n * (K // BLOCK) + column // BLOCK
        there = n < N
    else:
        block = (n * K + 2 * byte) // BLOCK
        there = inside
    if code2_ptr is None:
        scale = tl.load(scales_ptr + block, mask=there, other=0.0)
    else:
        index = tl.load(scales_ptr + block, mask=there, other=0).to(tl.int32)
        scale2 = tl.load(scales2_ptr + block // BLOCK2, mask=there, other=0.0)
        scale = tl.load(code2_ptr + index) * scale2 + tl.load(offset_ptr)
    high, low = looked_up(table, packed, PERMUTED)
    return tl.reshape(tl.join(high * scale, low * scale), (ROWS, COLUMNS))


@triton.jit
def eight_bit_tile(
    W,  # the pointers of dequantize_scaled: q, scale, and zero or None
    row,
    column,
    N,
    K,
    factor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,  # rows of a block; 0 for all
    BLOCK2: tl.constexpr,  # columns of a block, a multiple of the tile's; 0 for all
    KIND: tl.constexpr,
):
    """[ROWS, COLUMNS] of W [N, K] from (row, column) on, fp32."""
    q_ptr, scale_ptr, zero_ptr = W
    n = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    k = column + tl.arange(0, COLUMNS)[None, :]
    value = value_of(tl.load(q_ptr + n * K + k, mask=(n < N) & (k < K), other=0), KIND)
    block = n * 0 if BLOCK == 0 else n // BLOCK
    if BLOCK2 != 0:
        block = block * tl.cdiv(K, BLOCK2) + column // BLOCK2
    if zero_ptr is not None:
        value -= tl.load(zero_ptr + block, mask=n < N, other=0.0).to(tl.float32)
    return value * (tl.load(scale_ptr + block, mask=n < N, other=0.0).to(tl.float32) * factor)
