"""The forward kernel: y = x Wᵀ + s p Bᵀ + b and p = x Aᵀ, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels.parts import combine_parts, part_range
from fastlora_kernels.schedule import grouped_order, publish, take_ticket, wait_for
from fastlora_kernels.skinny import shrink_tile
from fastlora_kernels.tiles import add_low_rank, load_tile, store_tile


# Sizes that change from call to call and that nothing is vectorized along: no variants for them.
@triton.jit(do_not_specialize=["M", "threshold", "num_p_parts", "num_y_parts"])
def forward_kernel(
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks with TMA, else a pointer
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks with TMA, else a pointer
    b_ptr,  # [N]; None without HAS_BIAS
    A_ptr,  # [r, K]
    B_ptr,  # [N, r]
    y,  # [M, N] contiguous: a descriptor of [BLOCK_M, BLOCK_N] blocks with TMA_STORE, else a pointer
    p_ptr,  # [M, r] contiguous fp32
    p_scratch_ptr,  # fp32: the parts of p tiles; unused where they are not cut
    y_scratch_ptr,  # fp32: the parts of y tiles; unused without CUT
    workspace_ptr,  # int32, zero at launch: tickets, a flag for each block of rows, arrivals of p and y parts
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without DROPOUT
    threshold,  # an entry of x is dropped with probability threshold / 2^16
    kept_scale,  # what is kept is multiplied by this
    s,
    M,
    N,
    K,
    r,
    num_p_parts,  # parts of K that a p tile is cut into
    num_y_parts,  # the same for a y tile; 1 without CUT
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
    CUT: tl.constexpr,
    TMA: tl.constexpr,
    TMA_STORE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = (D * x) Aᵀ;  y = x Wᵀ + s p Bᵀ + b, with D the dropout mask or 1.

    Tickets: first the p tiles, then the y tiles. A y tile runs its whole main loop before it needs p.
    """
    ticket = take_ticket(workspace_ptr)
    seed = tl.load(seed_ptr) if DROPOUT else 0
    num_rows = tl.cdiv(M, BLOCK_M)
    num_columns = tl.cdiv(N, BLOCK_N)
    num_ranks = tl.cdiv(r, BLOCK_R)
    num_p = num_rows * num_ranks
    flags_ptr = workspace_ptr + 1
    p_arrivals_ptr = flags_ptr + num_rows
    y_arrivals_ptr = p_arrivals_ptr + num_p

    if ticket < num_p * num_p_parts:
        tile = ticket // num_p_parts
        part = ticket % num_p_parts
        m = tile // num_ranks
        is_stored = shrink_tile(
            source=x,
            S_ptr=A_ptr,
            out_ptr=p_ptr,
            scratch_ptr=p_scratch_ptr,
            arrivals_ptr=p_arrivals_ptr,
            tile=tile,
            part=part,
            num_parts=num_p_parts,
            seed=seed,
            threshold=threshold,
            s=kept_scale,
            row=m * BLOCK_M,
            rank=(tile % num_ranks) * BLOCK_R,
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
        if is_stored:
            publish(flags_ptr + m)
    else:
        tile = ticket - num_p * num_p_parts
        start = 0
        stop = K
        if CUT:
            part = tile % num_y_parts
            tile = tile // num_y_parts
            start, stop = part_range(K, part, num_y_parts, BLOCK_K)
        m, n = grouped_order(tile, num_rows, num_columns, GROUP)
        row = m * BLOCK_M
        column = n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(start, stop, BLOCK_K):
            x_tile = load_tile(x, row, k, M, K, stride_xm, stride_xk, BLOCK_M, BLOCK_K, TMA)
            W_tile = load_tile(W, column, k, N, K, stride_wn, stride_wk, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        is_whole = True
        if CUT:
            is_whole, acc = combine_parts(
                acc, y_scratch_ptr, y_arrivals_ptr, tile, part, num_y_parts, BLOCK_M, BLOCK_N
            )
        if is_whole:
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
                DTYPE=x.dtype if TMA else x.dtype.element_ty,
                PRECISION=PRECISION,
            )
            if HAS_BIAS:
                offs_n = column + tl.arange(0, BLOCK_N)
                acc += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
            store_tile(y, acc, row, column, M, N, BLOCK_M, BLOCK_N, TMA_STORE)
