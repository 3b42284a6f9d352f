"""Loading a tile, adding the low-rank product to a y or dx tile, and storing it.

An operand called `source` or `out` is a tensor descriptor where TMA is set and a pointer elsewhere. p and q
are fp32, contiguous [M, r].
"""

import triton
import triton.language as tl

from fastlora_kernels.dropout import keep_mask


@triton.jit
def load_tile(
    source,
    row,
    column,
    num_rows,
    num_columns,
    stride_row,
    stride_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
):
    """[ROWS, COLUMNS] of the matrix [num_rows, num_columns] from (row, column) on, zero outside it."""
    if TMA:
        tile = source.load([row, column])
    else:
        offs_row = row + tl.arange(0, ROWS)
        offs_column = column + tl.arange(0, COLUMNS)
        # M * K passes 2^31 in real use, so offsets are 64-bit before they are multiplied.
        offsets = (
            offs_row.to(tl.int64)[:, None] * stride_row + offs_column.to(tl.int64)[None, :] * stride_column
        )
        inside = (offs_row < num_rows)[:, None] & (offs_column < num_columns)[None, :]
        tile = tl.load(source + offsets, mask=inside, other=0.0)
    return tile


@triton.jit
def add_low_rank(
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [M, r] fp32: p or q
    V_ptr,  # [r, C]
    s,
    row,
    column,
    M,
    C,
    r,
    stride_vr,
    stride_vc,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    MOST_RANKS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + s small V at (row, column), MOST_RANKS at a time; the caller has waited for the rows of small."""
    offs_m = row + tl.arange(0, BLOCK_M)
    # One or two trips at usual ranks, so there is nothing to pipeline.
    STEP: tl.constexpr = min(BLOCK_R, MOST_RANKS)
    for rank in tl.range(0, r, STEP, num_stages=1):
        offs_r = rank + tl.arange(0, STEP)
        small = tl.load(
            small_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :],
            mask=(offs_m < M)[:, None] & (offs_r < r)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        v = load_tile(V_ptr, rank, column, r, C, stride_vr, stride_vc, STEP, BLOCK_C, False)
        acc = tl.dot((small * s).to(DTYPE), v.to(DTYPE), acc, input_precision=PRECISION)
    return acc


@triton.jit
def store_tile(
    out,  # [M, C] contiguous
    acc,  # [BLOCK_M, BLOCK_C] fp32
    row,
    column,
    M,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TMA: tl.constexpr,
):
    """out[row:, column:] = acc, in out's dtype."""
    if TMA:
        out.store([row, column], acc.to(out.dtype))
    else:
        offs_m = row + tl.arange(0, BLOCK_M)
        offs_c = column + tl.arange(0, BLOCK_C)
        inside = (offs_m < M)[:, None] & (offs_c < C)[None, :]
        offsets = offs_m.to(tl.int64)[:, None] * C + offs_c[None, :]
        tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def split_columns(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of [ROWS, COLUMNS], a matter of registers."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def store_dropped(
    out,  # [M, C] contiguous
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [M, r] fp32
    V_ptr,  # [r, C]
    seed,
    threshold,
    s,
    row,
    column,
    M,
    C,
    r,
    stride_vr,
    stride_vc,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[row:, column:] = acc + D * (s small V), with D the 0/1 mask; the scale of what is kept is in s."""
    update = add_low_rank(
        tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32),
        small_ptr=small_ptr,
        V_ptr=V_ptr,
        s=s,
        row=row,
        column=column,
        M=M,
        C=C,
        r=r,
        stride_vr=stride_vr,
        stride_vc=stride_vc,
        BLOCK_M=BLOCK_M,
        BLOCK_C=BLOCK_C,
        BLOCK_R=BLOCK_R,
        MOST_RANKS=16,  # with 32 one variant spilled 8 bytes (sm_90, r=24, Triton 3.9.0)
        DTYPE=DTYPE,
        PRECISION=PRECISION,
    )
    keep = keep_mask(seed, threshold, row, column, BLOCK_M, BLOCK_C)
    store_tile(out, acc + tl.where(keep, update, 0.0), row, column, M, C, BLOCK_M, BLOCK_C, TMA)
