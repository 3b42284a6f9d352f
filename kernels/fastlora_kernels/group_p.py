"""p of two or three projections that share x: x is read once for all of them."""

import triton
import triton.language as tl

from fastlora_kernels.low_rank_products import dot_adapter
from fastlora_kernels.split_k import split_range
from fastlora_kernels.tile_ops import load_tile


@triton.jit
def project_tiles(
    x,  # [M, K]: a descriptor of blocks, or (pointer, strides)
    A0,  # [r0, K], as (pointer, strides); A1 and A2 likewise, A2 None for two projections
    A1,
    A2,
    p_ptrs,  # [M, r0], [M, r1] and [M, r2] contiguous fp32
    split,  # a Split over K, for the tiles of all projections together
    row,
    rank,
    M,
    K,
    r0,
    r1,
    r2,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p_i[row:, rank:] = x A_iᵀ for BLOCK_M rows and BLOCK_R ranks of each projection.

    Returns whether this program stored the tiles; if so, the caller must publish them, once.
    """
    start, stop = split_range(K, split, BLOCK_K)
    acc0 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    acc1 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    acc2 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k in range(start, stop, BLOCK_K):
        block = load_tile(x, row, k, M, K, BLOCK_M, BLOCK_K)
        v0 = load_tile((A0[0], A0[2], A0[1]), k, rank, K, r0, BLOCK_K, BLOCK_R)
        acc0 = dot_adapter(block, v0, acc0, v0.dtype, PRECISION)
        v1 = load_tile((A1[0], A1[2], A1[1]), k, rank, K, r1, BLOCK_K, BLOCK_R)
        acc1 = dot_adapter(block, v1, acc1, v1.dtype, PRECISION)
        if A2 is not None:
            v2 = load_tile((A2[0], A2[2], A2[1]), k, rank, K, r2, BLOCK_K, BLOCK_R)
            acc2 = dot_adapter(block, v2, acc2, v2.dtype, PRECISION)
    has_sum = split.count == 1
    if split.count > 1:
        TILE: tl.constexpr = BLOCK_M * BLOCK_R
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
        first_ptr = split.scratch_ptr + split.tile.to(tl.int64) * split.count * (3 * TILE)
        own_ptr = first_ptr + split.index * (3 * TILE)
        tl.store(own_ptr + within, acc0)
        tl.store(own_ptr + TILE + within, acc1)
        if A2 is not None:
            tl.store(own_ptr + 2 * TILE + within, acc2)
        # As in `sum_of_splits`, with one arrival for all projections.
        tl.debug_barrier()
        has_sum = tl.atomic_add(split.arrivals_ptr + split.tile, 1, sem="acq_rel") == split.count - 1
        if has_sum:
            tl.debug_barrier()
            acc0 = _sum(first_ptr + within, split.count, BLOCK_M, BLOCK_R)
            acc1 = _sum(first_ptr + TILE + within, split.count, BLOCK_M, BLOCK_R)
            if A2 is not None:
                acc2 = _sum(first_ptr + 2 * TILE + within, split.count, BLOCK_M, BLOCK_R)
    if has_sum:
        _store(p_ptrs[0], acc0, row, rank, M, r0, BLOCK_M, BLOCK_R)
        _store(p_ptrs[1], acc1, row, rank, M, r1, BLOCK_M, BLOCK_R)
        if A2 is not None:
            _store(p_ptrs[2], acc2, row, rank, M, r2, BLOCK_M, BLOCK_R)
    return has_sum


@triton.jit
def _sum(ptrs, count, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr):
    """The splits of one projection's tile, added in order; three tiles lie side by side in each split."""
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for other in range(count):
        # L1 is not coherent: ".cg" bypasses it.
        acc += tl.load(ptrs + other * (3 * BLOCK_M * BLOCK_R), cache_modifier=".cg")
    return acc


@triton.jit
def _store(p_ptr, acc, row, rank, M, r, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr):
    offs_m = row + tl.arange(0, BLOCK_M)
    offs_r = rank + tl.arange(0, BLOCK_R)
    inside = (offs_m < M)[:, None] & (offs_r < r)[None, :]
    tl.store(p_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :], acc, mask=inside)
