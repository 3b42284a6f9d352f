"""The table of tiles of sorted rows, made on the GPU: the host need not wait for the numbers of rows."""

import triton
import triton.language as tl

# Tiles that are written at a time.
_TILES: tl.constexpr = tl.constexpr(128)


@triton.jit
def _tiles_before(offsets_ptr, S, operand, num_operands, BLOCK_M: tl.constexpr, OPERANDS: tl.constexpr):
    """How many tiles the runs before this one have; the run after the last ends at S."""
    run = tl.arange(0, OPERANDS)
    begin = tl.load(offsets_ptr + run, mask=run <= num_operands, other=0)
    end = tl.load(offsets_ptr + run + 1, mask=run < num_operands, other=S)
    tiles = tl.where(run < operand, (end - begin + BLOCK_M - 1) // BLOCK_M, 0)
    return tl.sum(tiles, 0).to(tl.int32)


@triton.jit(do_not_specialize=["S", "num_tiles", "num_operands"])
def segment_plan_kernel(
    offsets_ptr,  # [num_operands + 1] int64: run e is rows offsets[e] ... offsets[e + 1] - 1
    tiles_ptr,  # [num_tiles, 5] int32, of which the first three are written (`segment_tables.py`)
    S,  # rows; those behind the last run make one more, of the operand num_operands
    num_tiles,  # at least as many as there are
    num_operands,
    BLOCK_M: tl.constexpr,
    OPERANDS: tl.constexpr,  # a power of two above num_operands
):
    """The tiles of one run for each program; one program more makes all tiles that are left empty."""
    operand = tl.program_id(0)
    first = _tiles_before(offsets_ptr, S, operand, num_operands, BLOCK_M, OPERANDS)
    is_run = operand <= num_operands
    begin = tl.load(offsets_ptr + operand, mask=is_run, other=0).to(tl.int32)
    end = tl.load(offsets_ptr + operand + 1, mask=operand < num_operands, other=S).to(tl.int32)
    count = tl.where(is_run, tl.cdiv(end - begin, BLOCK_M), num_tiles - first)
    for start in range(0, count, _TILES):
        within = start + tl.arange(0, _TILES)
        row = tl.where(is_run, begin + within * BLOCK_M, 0)
        after = tl.where(is_run, tl.minimum(row + BLOCK_M, end), 0)
        entry_ptr = tiles_ptr + (first + within) * 5
        tl.store(entry_ptr, tl.zeros_like(row) + tl.minimum(operand, num_operands), mask=within < count)
        tl.store(entry_ptr + 1, row, mask=within < count)
        tl.store(entry_ptr + 2, after, mask=within < count)
