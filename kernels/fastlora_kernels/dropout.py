"""The dropout mask of the low-rank branch: a function of (seed, row, column), never stored.

One Philox call (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives 128 bits, 16
for each of 8 neighbouring columns. Its counter is (column // 8, row) and its key is the seed. So one seed
gives the same mask in the forward and in the backward pass, whatever the tile sizes.
"""

import triton
import triton.language as tl

# Columns that share one Philox call.
_LANES: tl.constexpr = tl.constexpr(8)

# Salmon et al., table 2: the fewest rounds that pass BigCrush.
_ROUNDS: tl.constexpr = tl.constexpr(7)


@triton.jit
def keep_mask(seed, threshold, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] from (row, column) on: True where x is kept, with probability 1 - threshold / 2^16.

    `column` and COLUMNS are multiples of 8.
    """
    offs_row = row + tl.arange(0, ROWS)
    offs_block = column // _LANES + tl.arange(0, COLUMNS // _LANES)
    zero = tl.zeros((ROWS, COLUMNS // _LANES), dtype=tl.int32)
    a, b, c, d = tl.philox(seed, offs_block[None, :] + zero, offs_row[:, None] + zero, zero, zero, _ROUNDS)
    # 8 values of 16 bits for a block of 8 columns, in the columns' order; join adds a last dimension.
    ab = tl.join(tl.join(a & 0xFFFF, a >> 16), tl.join(b & 0xFFFF, b >> 16))
    cd = tl.join(tl.join(c & 0xFFFF, c >> 16), tl.join(d & 0xFFFF, d >> 16))
    bits = tl.reshape(tl.join(ab, cd), (ROWS, COLUMNS))
    return bits.to(tl.int32) >= threshold


@triton.jit
def drop(tile, seed, threshold, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile with dropped entries set to zero; the caller scales the kept ones."""
    keep = keep_mask(seed, threshold, row, column, ROWS, COLUMNS)
    return tl.where(keep, tile, tl.zeros((ROWS, COLUMNS), dtype=tile.dtype))
