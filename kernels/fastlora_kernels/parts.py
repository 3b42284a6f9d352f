"""Tasks cut into parts, so that few tiles fill the machine: parts of the contraction, summed in their order.

Every part leaves its fp32 tile in a scratch tensor and counts itself as arrived; the program that arrives
last adds the parts up, always in the same order, so the bits do not depend on which one that was. Nobody
waits: the others are done when they have arrived.
"""

import triton
import triton.language as tl


@triton.jit
def part_range(size, part, num_parts, BLOCK: tl.constexpr):
    """(start, stop) of the part-th of num_parts runs of whole blocks of range(0, size)."""
    step = tl.cdiv(tl.cdiv(size, BLOCK), num_parts) * BLOCK
    start = part * step
    return start, tl.minimum(start + step, size)


@triton.jit
def combine_parts(
    acc,  # [ROWS, COLUMNS] fp32
    scratch_ptr,  # [tiles, num_parts, ROWS, COLUMNS] fp32
    arrivals_ptr,  # [tiles] int32, zero at launch
    tile,
    part,
    num_parts,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(whether this program has the whole tile, the tile): it was not cut, or this part arrived last."""
    is_whole = num_parts == 1
    if num_parts > 1:
        within = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        first_ptr = scratch_ptr + tile.to(tl.int64) * num_parts * (ROWS * COLUMNS)
        tl.store(first_ptr + part * (ROWS * COLUMNS) + within, acc)
        # Every thread's stores come before the barrier, one thread's release after it; the last to arrive
        # acquires what all others released.
        tl.debug_barrier()
        is_whole = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == num_parts - 1
        if is_whole:
            tl.debug_barrier()
            acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            for other in range(num_parts):
                # L1 is not coherent, hence ".cg".
                acc += tl.load(first_ptr + other * (ROWS * COLUMNS) + within, cache_modifier=".cg")
    return is_whole, acc
