"""What DoRA sums beside the products: the norms of W + s B A by rows, and dy z by columns.

Both are bound by reading W, or dy and z, once.
"""

import triton
import triton.language as tl

from fastlora_kernels.tile_ops import load_tile

# A program of the norms takes NORM_ROWS rows of W, in tiles of NORM_COLUMNS and at most NORM_RANKS ranks.
NORM_ROWS = 32
NORM_COLUMNS = 64
NORM_RANKS = 32
# A program of the sums takes SUM_STRIP rows of SUM_COLUMNS columns, in tiles of SUM_ROWS rows.
SUM_ROWS = 32
SUM_COLUMNS = 64
SUM_STRIP = 512
WARPS = 4


@triton.jit
def row_norms_kernel(
    W,  # [N, K], as (pointer, strides)
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    n_ptr,  # [N] fp32
    s,
    N,
    K,
    r,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """n = ‖W + s B A‖ by rows: summed tile by tile of W + s B A itself, as a closed form would cancel.

    Products of fp32 are exact for the same reason, whatever the layer's are.
    """
    row = tl.program_id(0) * BLOCK_N
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        update = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for rank in range(0, r, BLOCK_R):
            B_tile = load_tile(B, row, rank, N, r, BLOCK_N, BLOCK_R)
            A_tile = load_tile(A, rank, k, r, K, BLOCK_R, BLOCK_K)
            update = tl.dot(B_tile, A_tile, update, input_precision="ieee")
        W_tile = load_tile(W, row, k, N, K, BLOCK_N, BLOCK_K).to(tl.float32) + s * update
        total += tl.sum(W_tile * W_tile, axis=1)
    offs_n = row + tl.arange(0, BLOCK_N)
    tl.store(n_ptr + offs_n, tl.sqrt_rn(total), mask=offs_n < N)


@triton.jit(do_not_specialize=["M"])
def column_sums_kernel(
    dy,  # [M, N], as (pointer, strides)
    z,  # [M, N], as (pointer, strides)
    sums_ptr,  # [strips, N] fp32
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,  # rows of a strip, a multiple of BLOCK_M
):
    """Σ dy z by columns over each strip of rows, in the order of the rows."""
    blocks = tl.cdiv(N, BLOCK_N)
    strip, column = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_N
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    first = strip * STRIP
    for row in range(first, tl.minimum(first + STRIP, M), BLOCK_M):
        dy_tile = load_tile(dy, row, column, M, N, BLOCK_M, BLOCK_N).to(tl.float32)
        total += tl.sum(dy_tile * load_tile(z, row, column, M, N, BLOCK_M, BLOCK_N).to(tl.float32), axis=0)
    offs_n = column + tl.arange(0, BLOCK_N)
    tl.store(sums_ptr + strip * N + offs_n, total, mask=offs_n < N)
