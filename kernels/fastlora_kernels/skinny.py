"""The products with a side of only r: p and q tiles from [M, C], dA and dB tiles from its transpose.

They are bound by memory; a tile may be cut into parts (see `parts.py`). `source` is a tensor descriptor where
TMA is set and a pointer elsewhere.
"""

import triton
import triton.language as tl

from fastlora_kernels.dropout import drop
from fastlora_kernels.parts import combine_parts, part_range
from fastlora_kernels.tiles import load_tile


@triton.jit
def dot_adapter(block, v, acc, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """acc + block v, with v converted to block's dtype.

    With SPLIT an fp32 v on a 16-bit block is taken as the sum of two 16-bit parts: the adapter's gradient
    then keeps fp32's accuracy at r times the small cost, and no fp32 copy of the block is made.
    """
    high = v.to(block.dtype)
    acc = tl.dot(block, high, acc, input_precision=PRECISION)
    if SPLIT:
        low = (v - high.to(tl.float32)).to(block.dtype)
        acc = tl.dot(block, low, acc, input_precision=PRECISION)
    return acc


@triton.jit
def shrink_tile(
    source,  # [M, C]
    S_ptr,  # [C, r]
    out_ptr,  # [M, r] fp32
    scratch_ptr,  # fp32: the parts of all such tiles
    arrivals_ptr,  # int32: how many parts of each have arrived
    tile,
    part,
    num_parts,
    seed,  # of the dropout mask on source
    threshold,
    s,
    row,
    rank,
    M,
    C,
    r,
    stride_m,
    stride_c,
    stride_sc,
    stride_sr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[row:, rank:] = s source S for BLOCK_M rows and BLOCK_R ranks, cut over C.

    Returns whether this program stored the tile, which the caller then publishes.
    """
    start, stop = part_range(C, part, num_parts, BLOCK_C)
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for c in range(start, stop, BLOCK_C):
        block = load_tile(source, row, c, M, C, stride_m, stride_c, BLOCK_M, BLOCK_C, TMA)
        if DROPOUT:
            block = drop(block, seed, threshold, row, c, BLOCK_M, BLOCK_C)
        v = load_tile(S_ptr, c, rank, C, r, stride_sc, stride_sr, BLOCK_C, BLOCK_R, False)
        acc = dot_adapter(block, v, acc, SPLIT, PRECISION)
    is_whole, acc = combine_parts(acc, scratch_ptr, arrivals_ptr, tile, part, num_parts, BLOCK_M, BLOCK_R)
    if is_whole:
        offs_m = row + tl.arange(0, BLOCK_M)
        offs_r = rank + tl.arange(0, BLOCK_R)
        inside = (offs_m < M)[:, None] & (offs_r < r)[None, :]
        tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :], acc * s, mask=inside)
    return is_whole


@triton.jit
def gradient_tile(
    source,  # [M, C]
    small_ptr,  # [M, r] fp32: p or q
    out_ptr,  # [C, r], through its strides
    scratch_ptr,  # fp32: the parts of all such tiles
    arrivals_ptr,  # int32: how many parts of each have arrived
    tile,
    part,
    num_parts,
    seed,  # of the dropout mask on source
    threshold,
    s,
    column,
    rank,
    M,
    C,
    r,
    stride_m,
    stride_c,
    stride_oc,
    stride_or,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[column:, rank:] = s sourceᵀ small, cut over M, accumulated in fp32 in the order of the rows."""
    start, stop = part_range(M, part, num_parts, BLOCK_M)
    acc = tl.zeros((BLOCK_C, BLOCK_R), dtype=tl.float32)
    offs_r = rank + tl.arange(0, BLOCK_R)
    for row in range(start, stop, BLOCK_M):
        block = load_tile(source, row, column, M, C, stride_m, stride_c, BLOCK_M, BLOCK_C, TMA)
        if DROPOUT:
            block = drop(block, seed, threshold, row, column, BLOCK_M, BLOCK_C)
        offs_m = row + tl.arange(0, BLOCK_M)
        small = tl.load(
            small_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :],
            mask=(offs_m < M)[:, None] & (offs_r < r)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        acc = dot_adapter(tl.trans(block), small, acc, SPLIT, PRECISION)
    is_whole, acc = combine_parts(acc, scratch_ptr, arrivals_ptr, tile, part, num_parts, BLOCK_C, BLOCK_R)
    if is_whole:
        offs_c = column + tl.arange(0, BLOCK_C)
        offsets = offs_c.to(tl.int64)[:, None] * stride_oc + offs_r.to(tl.int64)[None, :] * stride_or
        inside = (offs_c < C)[:, None] & (offs_r < r)[None, :]
        tl.store(out_ptr + offsets, (acc * s).to(out_ptr.dtype.element_ty), mask=inside)
