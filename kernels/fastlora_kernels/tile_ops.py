"""Loading a tile, adding the low-rank product to a y or dx tile, and storing it.

A matrix argument that is read is a tensor descriptor of blocks, or a tuple (pointer, row stride, column
stride). One that is written is a descriptor, or a pointer to contiguous rows. p and q are contiguous fp32
[M, r]. C stands for N or K, depending on the pass.
"""

import triton
import triton.language as tl

from fastlora_kernels.dropout import keep_mask
from fastlora_kernels.fp16_range import power_of_two, round_to_tf32
from fastlora_kernels.old_fences import fenced


@triton.jit
def load_tile(source, row, column, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] of the matrix [num_rows, num_columns] from (row, column) on, zero outside it."""
    if isinstance(source, tl.tensor_descriptor):
        tile = source.load([row, column])
    else:
        source_ptr, stride_row, stride_column = source
        offs_row = row + tl.arange(0, ROWS)
        offs_column = column + tl.arange(0, COLUMNS)
        # M * K exceeds 2^31 in real use, so offsets become 64-bit before they are multiplied.
        offsets = (
            offs_row.to(tl.int64)[:, None] * stride_row + offs_column.to(tl.int64)[None, :] * stride_column
        )
        inside = (offs_row < num_rows)[:, None] & (offs_column < num_columns)[None, :]
        tile = fenced(tl.load(source_ptr + offsets, mask=inside, other=0.0))
    return tile


@triton.jit
def load_handed_over(small_ptr, offs_m, offs_r, M, r, begin=None):
    """p or q at these rows and ranks, zero outside [M, r] and before row `begin`.

    Bypasses L1, which is not coherent.
    """
    inside = offs_m < M
    if begin is not None:
        inside = inside & (offs_m >= begin)
    small = tl.load(
        small_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :],
        mask=inside[:, None] & (offs_r < r)[None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    return fenced(small)


@triton.jit
def add_low_rank(
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [M, r] fp32: p or q
    right,  # [r, C], as (pointer, strides): Bᵀ or A
    s,  # None for 1
    row,
    column,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,  # ranks at a time
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    begin=None,  # nothing is added to rows before this one
):
    """acc + s small right at (row, column); the caller has waited for the rows of small.

    One rounding of `s small` to DTYPE and one of right are enough, as the result goes into a tile of DTYPE.
    If that is fp16, which has not fp32's range, other adapters than fp16 are rounded to tf32 instead. With
    fp16 adapters `small` is within fp16 wherever the unfused formula is finite, but `s small` may not be; so
    a power of two is taken out of s.
    """
    ADAPTER: tl.constexpr = right[0].dtype.element_ty
    IN_TF32: tl.constexpr = DTYPE.is_fp16() and not ADAPTER.is_fp16()
    IS_SCALED: tl.constexpr = DTYPE.is_fp16() and ADAPTER.is_fp16() and s is not None
    if IS_SCALED:
        power, inverse = power_of_two(s)
        acc *= inverse
        s *= inverse
    offs_m = row + tl.arange(0, BLOCK_M)
    # One or two iterations at usual ranks, so there is nothing to pipeline.
    for rank in tl.range(0, r, STEP, num_stages=1):
        small = load_handed_over(small_ptr, offs_m, rank + tl.arange(0, STEP), M, r, begin)
        right_tile = load_tile(right, rank, column, r, C, STEP, BLOCK_C)
        if s is not None:
            small *= s
        if IN_TF32:
            acc = tl.dot(round_to_tf32(small), round_to_tf32(right_tile), acc, input_precision="tf32")
        else:
            acc = tl.dot(small.to(DTYPE), right_tile.to(DTYPE), acc, input_precision=PRECISION)
    if IS_SCALED:
        acc *= power
    return acc


@triton.jit
def store_tile(
    out,  # [M, C]
    acc,  # [BLOCK_M, BLOCK_C] fp32
    row,
    column,
    M,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[row:, column:] = acc, in out's dtype."""
    if isinstance(out, tl.tensor_descriptor):
        out.store([row, column], acc.to(out.dtype))
    else:
        offs_m = row + tl.arange(0, BLOCK_M)
        offs_c = column + tl.arange(0, BLOCK_C)
        inside = (offs_m < M)[:, None] & (offs_c < C)[None, :]
        offsets = offs_m.to(tl.int64)[:, None] * C + offs_c[None, :]
        tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scale_rows(tile, c_ptr, row, num_rows, ROWS: tl.constexpr):
    """A tile, in its dtype, times the entries of c [num_rows] fp32 from `row` on, one a row."""
    offs_row = row + tl.arange(0, ROWS)
    c = tl.load(c_ptr + offs_row, mask=offs_row < num_rows, other=0.0)
    return (tile.to(tl.float32) * c[:, None]).to(tile.dtype)


@triton.jit
def scale_columns(tile, c_ptr, column, num_columns, COLUMNS: tl.constexpr):
    """A tile, in its dtype, times the entries of c [num_columns] fp32 from `column` on, one a column."""
    offs_column = column + tl.arange(0, COLUMNS)
    c = tl.load(c_ptr + offs_column, mask=offs_column < num_columns, other=0.0)
    return (tile.to(tl.float32) * c[None, :]).to(tile.dtype)


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a [ROWS, COLUMNS] tile, without going through memory."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def add_masked_low_rank(
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [M, r] fp32: q
    right,  # [r, C], as (pointer, strides): A
    mask,  # (seed, threshold) of the dropout mask
    s,
    row,
    column,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    begin=None,  # as in add_low_rank
):
    """acc + D * (s small right), with D the 0/1 mask; s includes the mask's scale."""
    zero = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    update = add_low_rank(
        zero, small_ptr, right, s, row, column, M, C, r, BLOCK_M, BLOCK_C, STEP, DTYPE, PRECISION, begin
    )
    keep = keep_mask(mask[0], mask[1], row, column, BLOCK_M, BLOCK_C)
    return acc + tl.where(keep, update, 0.0)
