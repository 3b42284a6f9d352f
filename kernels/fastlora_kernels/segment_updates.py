"""The low-rank products that y and dx tiles get, segment by segment, where rows choose their operands.

`tables` is (tiles, segments, ranks, scales) and `alike` is (number of operands, largest rank, threshold,
kept_scale, s): see `segment_tables.py`.
"""

import triton
import triton.language as tl

from fastlora_kernels.segment_tables import load_adapter, load_segment, segments_of
from fastlora_kernels.tile_ops import add_low_rank, add_masked_low_rank


@triton.jit
def add_segment(
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [S * r] fp32: p or q
    factors_ptr,  # B or A of all adapters
    tables,
    alike,
    seed_ptr,  # of the dropout mask on the product; None without one
    segment,
    row,
    column,
    C,
    IS_Y: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + s p Bᵀ (y) or acc + D * (q A) (dx) in the rows of one segment; acc starts at (row, column)."""
    operand, begin, end, _, run = load_segment(tables[0], tables[1], segment)
    first, rank, threshold, kept_scale, s = load_adapter(tables[2], tables[3], operand, alike)
    small_ptr += run.to(tl.int64) * (alike[1] - rank)
    factors_ptr += first * C
    if IS_Y:
        B_t = (factors_ptr, 1, rank)
        acc = add_low_rank(
            acc, small_ptr, B_t, s, row, column, end, C, rank, BLOCK_M, BLOCK_C, STEP, DTYPE, PRECISION, begin
        )
    elif seed_ptr is None:
        A = (factors_ptr, C, 1)
        acc = add_low_rank(
            acc,
            small_ptr,
            A,
            None,
            row,
            column,
            end,
            C,
            rank,
            BLOCK_M,
            BLOCK_C,
            STEP,
            DTYPE,
            PRECISION,
            begin,
        )
    else:
        A = (factors_ptr, C, 1)
        mask = (tl.load(seed_ptr), threshold)
        acc = add_masked_low_rank(
            acc, small_ptr, A, mask, kept_scale, row, column, end, C, rank, BLOCK_M, BLOCK_C, STEP, DTYPE,
            PRECISION, begin,
        )  # fmt: skip
    return acc


@triton.jit
def add_segments(
    acc,
    small_ptr,
    factors_ptr,
    tables,
    alike,
    seed_ptr,
    tile,
    row,
    column,
    C,
    IS_Y: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `add_segment`, for every segment of a tile; the caller has waited for its rows of p or q."""
    if tables[1] is None:
        acc = add_segment(
            acc, small_ptr, factors_ptr, tables, alike, seed_ptr, tile, row, column, C, IS_Y, BLOCK_M,
            BLOCK_C, STEP, DTYPE, PRECISION,
        )  # fmt: skip
    else:
        segment, last = segments_of(tables[0], tile)
        for one in tl.range(segment, last, num_stages=1):
            acc = add_segment(
                acc, small_ptr, factors_ptr, tables, alike, seed_ptr, one, row, column, C, IS_Y, BLOCK_M,
                BLOCK_C, STEP, DTYPE, PRECISION,
            )  # fmt: skip
    return acc


@triton.jit
def segments_to_wait_for(tables, tile):
    """How many segments a tile has."""
    count = 1
    if tables[1] is not None:
        segment, last = segments_of(tables[0], tile)
        count = last - segment
    return count
