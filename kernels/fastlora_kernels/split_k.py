"""Split-K: several programs share one output tile, so that even a few tiles use the whole GPU.

Each program sums over its own range of the contracted dimension. That is K for p and y, N for q and dx, and M
for dA and dB. It stores its partial fp32 tile, a split, in a scratch tensor and counts itself as arrived. The
program that arrives last adds all splits, always in the same order, so the result does not depend on which
one it is. No program waits: the others end once they have arrived.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Split(NamedTuple):
    """One program's split of a tile.

    Attributes:
        tile: Which tile, among those that share scratch and arrivals.
        index: Which split of the tile.
        count: How many splits the tile has; 1 where it is not shared.
        scratch_ptr: [tiles, count, rows, columns] fp32; not touched where count is 1.
        arrivals_ptr: [tiles] int32, zero at launch.
    """

    tile: object
    index: object
    count: object
    scratch_ptr: object
    arrivals_ptr: object


@triton.jit
def split_range(size, split, BLOCK: tl.constexpr):
    """(start, stop) of this split's part of range(0, size), in units of BLOCK."""
    step = tl.cdiv(tl.cdiv(size, BLOCK), split.count) * BLOCK
    start = split.index * step
    return start, tl.minimum(start + step, size)


@triton.jit
def sum_of_splits(acc, split, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(whether this program has the sum, the sum). It has if the tile is not split or it arrived last.

    acc: this program's partial sum, [ROWS, COLUMNS] fp32.
    """
    has_sum = split.count == 1
    if split.count > 1:
        within = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        first_ptr = split.scratch_ptr + split.tile.to(tl.int64) * split.count * (ROWS * COLUMNS)
        tl.store(first_ptr + split.index * (ROWS * COLUMNS) + within, acc)
        # All threads store before the barrier, and one thread releases after it. The last program to arrive
        # acquires what all others released.
        tl.debug_barrier()
        has_sum = tl.atomic_add(split.arrivals_ptr + split.tile, 1, sem="acq_rel") == split.count - 1
        if has_sum:
            tl.debug_barrier()
            acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            for other in range(split.count):
                # L1 is not coherent: ".cg" bypasses it.
                acc += tl.load(first_ptr + other * (ROWS * COLUMNS) + within, cache_modifier=".cg")
    return has_sum, acc
