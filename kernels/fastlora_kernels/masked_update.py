"""dx's update alone, beside products by the vendor: D * (q A), with the mask that the fused kernels draw."""

import triton
import triton.language as tl

from fastlora_kernels.tile_ops import add_masked_low_rank, store_tile

# A program's block of dx, its warps, and the ranks that it takes at a time.
BLOCK_M = 64
BLOCK_K = 64
WARPS = 4


@triton.jit(do_not_specialize=["M", "threshold"])
def masked_update_kernel(
    q_ptr,  # [M, r] contiguous fp32
    A,  # [r, K], as (pointer, strides)
    dx_ptr,  # [M, K] contiguous
    seed_ptr,  # [1] int64, the seed of the dropout mask
    threshold,  # an entry of x was dropped with probability threshold / 2^16
    kept_scale,  # kept entries were multiplied by this
    M,
    K,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = D * (q A), D including the scale of what is kept; programs go along the rows of blocks."""
    columns = tl.cdiv(K, BLOCK_K)
    block = tl.program_id(0)
    row, column = block // columns * BLOCK_M, block % columns * BLOCK_K
    update = add_masked_low_rank(
        tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32),
        q_ptr,
        A,
        (tl.load(seed_ptr), threshold),
        s=kept_scale,
        row=row,
        column=column,
        M=M,
        C=K,
        r=r,
        BLOCK_M=BLOCK_M,
        BLOCK_C=BLOCK_K,
        STEP=16,
        DTYPE=dx_ptr.dtype.element_ty,
        PRECISION=PRECISION,
    )
    store_tile(dx_ptr, update, row, column, M, K, BLOCK_M, BLOCK_K)
