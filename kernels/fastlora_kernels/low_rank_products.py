"""The products whose result has only r rows or columns: tiles of p, q, dB and dA.

They are bound by memory, so several programs may share a tile (`split_k.py`). `source` is a matrix argument
as described in `tile_ops.py`. C stands for N or K.
"""

import triton
import triton.language as tl

from fastlora_kernels.dropout import drop
from fastlora_kernels.fp16_range import round_to_tf32
from fastlora_kernels.split_k import split_range, sum_of_splits
from fastlora_kernels.tile_ops import load_handed_over, load_tile, scale_rows


@triton.jit
def dot_adapter(block, v, acc, ADAPTER: tl.constexpr, PRECISION: tl.constexpr):
    """acc + block v, with v converted to block's dtype; ADAPTER is the dtype of A and B.

    With fp32 adapters on a block of 16 bits, v is written as the sum of two terms, high and low. The
    adapter's gradient then keeps nearly fp32's accuracy without an fp32 copy of x or dy in memory. The price
    is a second product of this small size. If block is bf16 the terms are bf16, and up to 2^-17 of v is lost.
    If it is fp16 they are tf32, for the range (`fp16_range.py`), and up to 2^-23 is lost.
    """
    TWO_TERMS: tl.constexpr = ADAPTER.primitive_bitwidth > block.dtype.primitive_bitwidth
    if block.dtype.is_fp16() and not ADAPTER.is_fp16():
        block = block.to(tl.float32)
        high = round_to_tf32(v)
        acc = tl.dot(block, high, acc, input_precision="tf32")
        if TWO_TERMS:
            acc = tl.dot(block, (v - high).to(tl.float32), acc, input_precision="tf32")
    else:
        high = v.to(block.dtype)
        acc = tl.dot(block, high, acc, input_precision=PRECISION)
        if TWO_TERMS:
            low = (v - high.to(tl.float32)).to(block.dtype)
            acc = tl.dot(block, low, acc, input_precision=PRECISION)
    return acc


@triton.jit
def project_tile(
    source,  # [M, C]: x or dy
    right,  # [C, r], as (pointer, strides): Aᵀ or B
    out_ptr,  # [M, r] contiguous fp32: p or q
    split,  # a Split over C
    mask,  # (seed, threshold) of the dropout mask on source, or None
    s,
    row,
    rank,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    c_ptr=None,  # [C] fp32, factors of right's rows; None for 1
):
    """out[row:, rank:] = s source right for BLOCK_M rows and BLOCK_R ranks.

    Returns whether this program stored the tile; if so, the caller must publish it.
    """
    start, stop = split_range(C, split, BLOCK_C)
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for c in range(start, stop, BLOCK_C):
        block = load_tile(source, row, c, M, C, BLOCK_M, BLOCK_C)
        if mask is not None:
            block = drop(block, mask[0], mask[1], row, c, BLOCK_M, BLOCK_C)
        v = load_tile(right, c, rank, C, r, BLOCK_C, BLOCK_R)
        if c_ptr is not None:
            v = scale_rows(v, c_ptr, c, C, BLOCK_C)
        acc = dot_adapter(block, v, acc, v.dtype, PRECISION)
    has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_R)
    if has_sum:
        offs_m = row + tl.arange(0, BLOCK_M)
        offs_r = rank + tl.arange(0, BLOCK_R)
        inside = (offs_m < M)[:, None] & (offs_r < r)[None, :]
        tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * r + offs_r[None, :], acc * s, mask=inside)
    return has_sum


@triton.jit
def add_gradient(
    acc,  # [BLOCK_C, BLOCK_R] fp32
    source,  # [M, C]: dy or x
    small_ptr,  # [M, r] contiguous fp32: p or q
    weights_ptr,  # [M] fp32, factors of the rows of small; None for 1
    mask,  # (seed, threshold) of the dropout mask on source, or None
    start,
    stop,
    column,
    rank,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ADAPTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + sourceᵀ small over the rows [start, stop) in their order, at (column, rank)."""
    offs_r = rank + tl.arange(0, BLOCK_R)
    for row in range(start, stop, BLOCK_M):
        block = load_tile(source, row, column, M, C, BLOCK_M, BLOCK_C)
        if mask is not None:
            block = drop(block, mask[0], mask[1], row, column, BLOCK_M, BLOCK_C)
        offs_m = row + tl.arange(0, BLOCK_M)
        small = load_handed_over(small_ptr, offs_m, offs_r, M, r)
        if weights_ptr is not None:
            small *= tl.load(weights_ptr + offs_m, mask=offs_m < M, other=0.0)[:, None]
        acc = dot_adapter(tl.trans(block), small, acc, ADAPTER, PRECISION)
    return acc


@triton.jit
def store_gradient(
    out,  # [C, r], as (pointer, strides): dB or dAᵀ
    acc,  # [BLOCK_C, BLOCK_R] fp32
    s,
    column,
    rank,
    C,
    r,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out[column:, rank:] = s acc, in out's dtype."""
    out_ptr, stride_c, stride_r = out
    offs_c = column + tl.arange(0, BLOCK_C)
    offs_r = rank + tl.arange(0, BLOCK_R)
    offsets = offs_c.to(tl.int64)[:, None] * stride_c + offs_r.to(tl.int64)[None, :] * stride_r
    inside = (offs_c < C)[:, None] & (offs_r < r)[None, :]
    tl.store(out_ptr + offsets, (acc * s).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_tile(
    source,  # [M, C]: dy or x
    small_ptr,  # [M, r] contiguous fp32: p or q
    out,  # [C, r], as (pointer, strides): dB or dAᵀ
    split,  # a Split over M
    mask,  # (seed, threshold) of the dropout mask on source, or None
    s,
    column,
    rank,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    c_ptr=None,  # [C] fp32, factors of the result's rows; None for 1
):
    """out[column:, rank:] = s sourceᵀ small, accumulated in fp32 in the order of the rows."""
    start, stop = split_range(M, split, BLOCK_M)
    acc = tl.zeros((BLOCK_C, BLOCK_R), dtype=tl.float32)
    acc = add_gradient(
        acc,
        source,
        small_ptr,
        None,
        mask,
        start,
        stop,
        column,
        rank,
        M,
        C,
        r,
        BLOCK_M,
        BLOCK_C,
        BLOCK_R,
        out[0].dtype.element_ty,
        PRECISION,
    )
    has_sum, acc = sum_of_splits(acc, split, BLOCK_C, BLOCK_R)
    if has_sum:
        if c_ptr is not None:
            acc = scale_rows(acc, c_ptr, column, C, BLOCK_C)
        store_gradient(out, acc, s, column, rank, C, r, BLOCK_C, BLOCK_R)
