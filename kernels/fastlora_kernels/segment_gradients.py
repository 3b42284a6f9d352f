"""Tiles of dA and dB of one operand, over the rows of its runs."""

import triton
import triton.language as tl

from fastlora_kernels.low_rank_products import add_gradient, store_gradient


@triton.jit
def operand_gradient_tile(
    source,  # [S, C], as (pointer, strides): dy or x
    small_ptr,  # [S * r] fp32: p or q
    weights_ptr,  # [S] fp32, factors of the rows; None for 1
    out,  # [C, rank] of this operand, as (pointer, strides): dB or dAᵀ
    runs_ptr,
    firsts_ptr,
    operand,
    mask,  # (seed, threshold) of the dropout mask on source, or None
    s,
    column,
    rank,
    C,
    r,
    own_r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[column:, rank:] = s sourceᵀ small over the rows of one operand in their order.

    It has own_r of r ranks. Run e is operand e's, from runs[e] to runs[e + 1]; or it has the runs from
    firsts[e] to firsts[e + 1], whose bounds are in `runs`, two each.
    """
    ADAPTER: tl.constexpr = out[0].dtype.element_ty
    acc = tl.zeros((BLOCK_C, BLOCK_R), dtype=tl.float32)
    if firsts_ptr is None:
        begin = tl.load(runs_ptr + operand).to(tl.int32)
        end = tl.load(runs_ptr + operand + 1).to(tl.int32)
        acc = add_gradient(
            acc, source, small_ptr, weights_ptr, mask, begin, end, column, rank, end, C, own_r, BLOCK_M,
            BLOCK_C, BLOCK_R, ADAPTER, PRECISION,
        )  # fmt: skip
    else:
        for run in tl.range(tl.load(firsts_ptr + operand), tl.load(firsts_ptr + operand + 1), num_stages=1):
            begin = tl.load(runs_ptr + run * 2)
            end = tl.load(runs_ptr + run * 2 + 1)
            own_ptr = small_ptr + begin.to(tl.int64) * (r - own_r)
            acc = add_gradient(
                acc, source, own_ptr, weights_ptr, mask, begin, end, column, rank, end, C, own_r, BLOCK_M,
                BLOCK_C, BLOCK_R, ADAPTER, PRECISION,
            )  # fmt: skip
    store_gradient(out, acc, s, column, rank, C, own_r, BLOCK_C, BLOCK_R)
