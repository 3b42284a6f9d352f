"""The forward kernel: y = x Wᵀ + s p Bᵀ + b and p = x Aᵀ, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels.schedule import grouped_order, publish, take_ticket, wait_for
from fastlora_kernels.tiles import add_low_rank, load_tile, shrink_tile, store_tile


@triton.jit
def forward_kernel(
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks with TMA, else a pointer
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks with TMA, else a pointer
    b_ptr,  # [N], or x's pointer without HAS_BIAS
    A_ptr,  # [r, K]
    B_ptr,  # [N, r]
    y_ptr,  # [M, N] contiguous
    p_ptr,  # [M, r] contiguous fp32
    workspace_ptr,  # int32, zero at launch: the ticket counter, then a flag for each block of rows
    seed_ptr,  # [1] int64, the seed of the dropout mask; unused without DROPOUT
    threshold,  # an entry of x is dropped with probability threshold / 2^16
    kept_scale,  # what is kept is multiplied by this
    s,
    M,
    N,
    K,
    r,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_ar,
    stride_ak,
    stride_bn,
    stride_br,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = (D * x) Aᵀ;  y = x Wᵀ + s p Bᵀ + b, with D the dropout mask or 1.

    Tickets: first the p tiles, then the y tiles. A y tile runs its whole main loop before it needs p.
    """
    flags_ptr = workspace_ptr + 1
    ticket = take_ticket(workspace_ptr)
    seed = tl.load(seed_ptr) if DROPOUT else 0
    num_rows = tl.cdiv(M, BLOCK_M)
    num_ranks = tl.cdiv(r, BLOCK_R)
    num_p = num_rows * num_ranks

    if ticket < num_p:
        m = ticket // num_ranks
        shrink_tile(
            source=x,
            S_ptr=A_ptr,
            out_ptr=p_ptr,
            seed=seed,
            threshold=threshold,
            s=kept_scale,
            row=m * BLOCK_M,
            rank=(ticket % num_ranks) * BLOCK_R,
            M=M,
            C=K,
            r=r,
            stride_m=stride_xm,
            stride_c=stride_xk,
            stride_sc=stride_ak,
            stride_sr=stride_ar,
            BLOCK_M=BLOCK_M,
            BLOCK_C=BLOCK_K,
            BLOCK_R=BLOCK_R,
            DROPOUT=DROPOUT,
            TMA=TMA,
            SPLIT=SPLIT,
            PRECISION=PRECISION,
        )
        publish(flags_ptr + m)
    else:
        m, n = grouped_order(ticket - num_p, num_rows, tl.cdiv(N, BLOCK_N), GROUP)
        row = m * BLOCK_M
        column = n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            x_tile = load_tile(x, row, k, M, K, stride_xm, stride_xk, BLOCK_M, BLOCK_K, TMA)
            W_tile = load_tile(W, column, k, N, K, stride_wn, stride_wk, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        wait_for(flags_ptr + m, num_ranks)
        acc = add_low_rank(
            acc,
            small_ptr=p_ptr,
            V_ptr=B_ptr,
            s=s,
            row=row,
            column=column,
            M=M,
            C=N,
            r=r,
            stride_vr=stride_br,
            stride_vc=stride_bn,
            BLOCK_M=BLOCK_M,
            BLOCK_C=BLOCK_N,
            BLOCK_R=BLOCK_R,
            MOST_RANKS=32,  # what fits beside the main loop's accumulator, which holds most registers
            DTYPE=y_ptr.dtype.element_ty,
            PRECISION=PRECISION,
        )
        if HAS_BIAS:
            offs_n = column + tl.arange(0, BLOCK_N)
            acc += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
        store_tile(y_ptr, acc, row, column, M, N, BLOCK_M, BLOCK_N)
