"""Tiles of q and dB of two or three projections that share x.

Which projection a tile belongs to decides which of several loops, one after the other, has any steps (see
`group_forward.py`). A third projection that is not there is None.
"""

import triton
import triton.language as tl

from fastlora_kernels.low_rank_products import dot_adapter
from fastlora_kernels.split_k import split_range, sum_of_splits
from fastlora_kernels.tile_ops import load_handed_over, load_tile


@triton.jit
def pick(which, first, second, third):
    """One of three numbers."""
    return tl.where(which == 0, first, tl.where(which == 1, second, third))


@triton.jit
def q_tile(
    which,  # 0, 1 or 2
    dy0,  # [M, N0]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or (pointer, strides); dy1 and dy2 likewise
    dy1,
    dy2,
    B0,  # [N0, r0], as (pointer, strides); B1 and B2 likewise
    B1,
    B2,
    q_ptr,  # [M, r] contiguous fp32, of this projection
    split,  # a Split over N
    s,
    row,
    rank,
    M,
    N0,
    N1,
    N2,
    r0,
    r1,
    r2,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q[row:, rank:] = s dy B of one projection.

    Returns whether this program stored the tile; if so, the caller must publish it.
    """
    r = pick(which, r0, r1, r2)
    # Beyond its ranks there is nothing to read.
    N = tl.where(rank < r, pick(which, N0, N1, N2), 0)
    start, stop = split_range(N, split, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for n in range(start, tl.where(which == 0, stop, start), BLOCK_N):
        block = load_tile(dy0, row, n, M, N0, BLOCK_M, BLOCK_N)
        v = load_tile(B0, n, rank, N0, r0, BLOCK_N, BLOCK_R)
        acc = dot_adapter(block, v, acc, v.dtype, PRECISION)
    for n in range(start, tl.where(which == 1, stop, start), BLOCK_N):
        block = load_tile(dy1, row, n, M, N1, BLOCK_M, BLOCK_N)
        v = load_tile(B1, n, rank, N1, r1, BLOCK_N, BLOCK_R)
        acc = dot_adapter(block, v, acc, v.dtype, PRECISION)
    if dy2 is not None:
        for n in range(start, tl.where(which == 2, stop, start), BLOCK_N):
            block = load_tile(dy2, row, n, M, N2, BLOCK_M, BLOCK_N)
            v = load_tile(B2, n, rank, N2, r2, BLOCK_N, BLOCK_R)
            acc = dot_adapter(block, v, acc, v.dtype, PRECISION)
    has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_R)
    if has_sum:
        offs_m = row + tl.arange(0, BLOCK_M)
        offs_r = rank + tl.arange(0, BLOCK_R)
        inside = (offs_m < M)[:, None] & (offs_r < r)[None, :]
        tl.store(q_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :], acc * s, mask=inside)
    return has_sum


@triton.jit
def gradient_b_tile(
    which,
    dy0,
    dy1,
    dy2,
    p_ptrs,  # [M, r0], [M, r1] and [M, r2] contiguous fp32
    dB_ptrs,  # [N0, r0], [N1, r1] and [N2, r2] contiguous
    split,  # a Split over M
    s,
    column,
    rank,
    M,
    N0,
    N1,
    N2,
    r0,
    r1,
    r2,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dB[column:, rank:] = s dyᵀ p of one projection, accumulated in fp32 in the order of the rows."""
    start, stop = split_range(M, split, BLOCK_M)
    ADAPTER: tl.constexpr = dB_ptrs[0].dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
    offs_r = rank + tl.arange(0, BLOCK_R)
    for row in range(start, tl.where(which == 0, stop, start), BLOCK_M):
        block = load_tile(dy0, row, column, M, N0, BLOCK_M, BLOCK_N)
        small = load_handed_over(p_ptrs[0], row + tl.arange(0, BLOCK_M), offs_r, M, r0)
        acc = dot_adapter(tl.trans(block), small, acc, ADAPTER, PRECISION)
    for row in range(start, tl.where(which == 1, stop, start), BLOCK_M):
        block = load_tile(dy1, row, column, M, N1, BLOCK_M, BLOCK_N)
        small = load_handed_over(p_ptrs[1], row + tl.arange(0, BLOCK_M), offs_r, M, r1)
        acc = dot_adapter(tl.trans(block), small, acc, ADAPTER, PRECISION)
    if dy2 is not None:
        for row in range(start, tl.where(which == 2, stop, start), BLOCK_M):
            block = load_tile(dy2, row, column, M, N2, BLOCK_M, BLOCK_N)
            small = load_handed_over(p_ptrs[2], row + tl.arange(0, BLOCK_M), offs_r, M, r2)
            acc = dot_adapter(tl.trans(block), small, acc, ADAPTER, PRECISION)
    has_sum, acc = sum_of_splits(acc, split, BLOCK_N, BLOCK_R)
    if has_sum:
        acc *= s
        if which == 0:
            _store(dB_ptrs[0], acc, column, rank, N0, r0, BLOCK_N, BLOCK_R)
        elif which == 1:
            _store(dB_ptrs[1], acc, column, rank, N1, r1, BLOCK_N, BLOCK_R)
        elif dy2 is not None:
            _store(dB_ptrs[2], acc, column, rank, N2, r2, BLOCK_N, BLOCK_R)


@triton.jit
def _store(dB_ptr, acc, column, rank, N, r, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr):
    offs_n = column + tl.arange(0, BLOCK_N)
    offs_r = rank + tl.arange(0, BLOCK_R)
    inside = (offs_n < N)[:, None] & (offs_r < r)[None, :]
    offsets = offs_n.to(tl.int64)[:, None] * r + offs_r[None, :]
    tl.store(dB_ptr + offsets, acc.to(dB_ptr.dtype.element_ty), mask=inside)
