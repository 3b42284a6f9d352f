"""A tile of a packed W as its values in fp32, in registers: what the product of few rows reads.

Bit for bit what `dequantize_bnb_4bit.py` and `dequantize_scaled.py` write, before it is rounded to W's dtype.
"""

import triton
import triton.language as tl

from fastlora_kernels.dequantize_scaled import value_of


@triton.jit
def table_of(code_ptr):
    """The 16 values of a 4-bit code, in registers."""
    return (
        (tl.load(code_ptr), tl.load(code_ptr + 1), tl.load(code_ptr + 2), tl.load(code_ptr + 3)),
        (tl.load(code_ptr + 4), tl.load(code_ptr + 5), tl.load(code_ptr + 6), tl.load(code_ptr + 7)),
        (tl.load(code_ptr + 8), tl.load(code_ptr + 9), tl.load(code_ptr + 10), tl.load(code_ptr + 11)),
        (tl.load(code_ptr + 12), tl.load(code_ptr + 13), tl.load(code_ptr + 14), tl.load(code_ptr + 15)),
    )


@triton.jit
def one_of_four(four, low, high):
    """four[low + 2 high], of bits as conditions."""
    return tl.where(high, tl.where(low, four[3], four[2]), tl.where(low, four[1], four[0]))


@triton.jit
def looked_up(table, nibble):
    """The values of nibbles, by selections: a load of each would go through memory."""
    bit0, bit1 = (nibble & 1) != 0, (nibble & 2) != 0
    bit2, bit3 = (nibble & 4) != 0, (nibble & 8) != 0
    quarters = (
        one_of_four(table[0], bit0, bit1),
        one_of_four(table[1], bit0, bit1),
        one_of_four(table[2], bit0, bit1),
        one_of_four(table[3], bit0, bit1),
    )
    return one_of_four(quarters, bit2, bit3)


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
):
    """[ROWS, COLUMNS] of W [N, K] from (row, column) on, fp32."""
    packed_ptr, _, scales_ptr, code2_ptr, scales2_ptr, offset_ptr = W
    # N * K exceeds 2^31 in real use, so rows become 64-bit before they are multiplied.
    n = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    k = column + 2 * tl.arange(0, COLUMNS // 2)[None, :]
    inside = (n < N) & (k < K)
    packed = tl.load(packed_ptr + n * (K // 2) + k // 2, mask=inside, other=0).to(tl.int32)
    if BY_ROW:
        block = n * (K // BLOCK) + column // BLOCK
        there = n < N
    else:
        block = (n * K + k) // BLOCK
        there = inside
    if code2_ptr is None:
        scale = tl.load(scales_ptr + block, mask=there, other=0.0)
    else:
        index = tl.load(scales_ptr + block, mask=there, other=0).to(tl.int32)
        scale2 = tl.load(scales2_ptr + block // BLOCK2, mask=there, other=0.0)
        scale = tl.load(code2_ptr + index) * scale2 + tl.load(offset_ptr)
    high, low = looked_up(table, packed >> 4) * scale, looked_up(table, packed & 15) * scale
    return tl.reshape(tl.join(high, low), (ROWS, COLUMNS))


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
