"""The backward kernel: dx, dA and dB, as many as are asked for, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels.parts import combine_parts, part_range
from fastlora_kernels.schedule import grouped_order, publish, take_ticket, wait_for
from fastlora_kernels.skinny import gradient_tile, shrink_tile
from fastlora_kernels.tiles import add_low_rank, load_tile, split_columns, store_dropped, store_tile


# As in the forward.
@triton.jit(do_not_specialize=["M", "threshold", "num_q_parts", "num_dx_parts", "num_gradient_parts"])
def backward_kernel(
    dy,  # [M, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks with TMA, else a pointer
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_N] blocks with TMA, else a pointer
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks with TMA, else a pointer
    A_ptr,  # [r, K]
    B_ptr,  # [N, r]
    p_ptr,  # [M, r] contiguous fp32
    q_ptr,  # [M, r] contiguous fp32, scratch
    dx,  # [M, K] contiguous: with TMA_STORE a descriptor of the blocks that are stored, else a pointer
    dA_ptr,  # [r, K] contiguous; any of these three is None where it is not needed
    dB_ptr,  # [N, r] contiguous
    q_scratch_ptr,  # fp32: the parts of q tiles; unused where they are not cut
    dx_scratch_ptr,  # fp32: the parts of dx tiles; unused without CUT
    gradient_scratch_ptr,  # fp32: the parts of dB and dA tiles; unused where they are not cut
    # int32, zero at launch: tickets, the count of all q tiles, a flag for each block of rows, arrivals of
    # the parts of q, of dx, and of dB and dA
    workspace_ptr,
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without DROPOUT
    threshold,  # an entry of x was dropped with probability threshold / 2^16
    kept_scale,  # what was kept was multiplied by this
    s,
    M,
    N,
    K,
    r,
    num_q_parts,  # parts of N that a q tile is cut into
    num_dx_parts,  # the same for a dx tile; 1 without CUT
    num_gradient_parts,  # parts of M that a dB or dA tile is cut into
    stride_dym,
    stride_dyn,
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
    NEED_DX: tl.constexpr,
    NEED_DA: tl.constexpr,
    NEED_DB: tl.constexpr,
    DROPOUT: tl.constexpr,
    CUT: tl.constexpr,
    TMA: tl.constexpr,
    TMA_STORE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q = s dy B;  dB = s dyᵀ p;  dA = qᵀ (D * x);  dx = dy W + D * (q A), with D the mask or 1.

    Tickets: the q tiles, half of the dx tiles, the dB and dA tiles, the other half. dB and dA wait on memory,
    dx on the matrix units: in the middle they share the machine, at the end they would be its tail.
    """
    ticket = take_ticket(workspace_ptr)
    seed = tl.load(seed_ptr) if DROPOUT else 0
    num_rows = tl.cdiv(M, BLOCK_M)
    num_ranks = tl.cdiv(r, BLOCK_R)
    num_q = num_rows * num_ranks if NEED_DX or NEED_DA else 0
    num_dx = num_rows * tl.cdiv(K, BLOCK_K) if NEED_DX else 0
    num_dB = tl.cdiv(N, BLOCK_N) * num_ranks if NEED_DB else 0
    num_dA = tl.cdiv(K, BLOCK_N) * num_ranks if NEED_DA else 0
    all_rows_ptr = workspace_ptr + 1
    flags_ptr = all_rows_ptr + 1
    q_arrivals_ptr = flags_ptr + num_rows
    dx_arrivals_ptr = q_arrivals_ptr + num_q
    gradient_arrivals_ptr = dx_arrivals_ptr + num_dx

    num_q_tasks = num_q * num_q_parts
    num_gradient_tasks = (num_dB + num_dA) * num_gradient_parts
    gradient = ticket - num_q_tasks - num_dx * num_dx_parts // 2
    if ticket < num_q_tasks:
        if NEED_DX or NEED_DA:
            tile = ticket // num_q_parts
            part = ticket % num_q_parts
            m = tile // num_ranks
            is_stored = shrink_tile(
                source=dy,
                S_ptr=B_ptr,
                out_ptr=q_ptr,
                scratch_ptr=q_scratch_ptr,
                arrivals_ptr=q_arrivals_ptr,
                tile=tile,
                part=part,
                num_parts=num_q_parts,
                seed=seed,
                threshold=threshold,
                s=s,
                row=m * BLOCK_M,
                rank=(tile % num_ranks) * BLOCK_R,
                M=M,
                C=N,
                r=r,
                stride_m=stride_dym,
                stride_c=stride_dyn,
                stride_sc=stride_bn,
                stride_sr=stride_br,
                BLOCK_M=BLOCK_M,
                BLOCK_C=BLOCK_N,
                BLOCK_R=BLOCK_R,
                DROPOUT=False,
                TMA=TMA,
                SPLIT=SPLIT,
                PRECISION=PRECISION,
            )
            if is_stored:
                publish(flags_ptr + m)
                publish(all_rows_ptr)
    elif gradient >= 0 and gradient < num_gradient_tasks:
        tile = gradient // num_gradient_parts
        part = gradient % num_gradient_parts
        if tile < num_dB:
            if NEED_DB:
                gradient_tile(
                    source=dy,
                    small_ptr=p_ptr,
                    out_ptr=dB_ptr,
                    scratch_ptr=gradient_scratch_ptr,
                    arrivals_ptr=gradient_arrivals_ptr,
                    tile=tile,
                    part=part,
                    num_parts=num_gradient_parts,
                    seed=seed,
                    threshold=threshold,
                    s=s,
                    column=(tile // num_ranks) * BLOCK_N,
                    rank=(tile % num_ranks) * BLOCK_R,
                    M=M,
                    C=N,
                    r=r,
                    stride_m=stride_dym,
                    stride_c=stride_dyn,
                    stride_oc=r,
                    stride_or=1,
                    BLOCK_M=BLOCK_M,
                    BLOCK_C=BLOCK_N,
                    BLOCK_R=BLOCK_R,
                    DROPOUT=False,
                    TMA=TMA,
                    SPLIT=SPLIT,
                    PRECISION=PRECISION,
                )
        else:
            if NEED_DA:
                wait_for(all_rows_ptr, num_q)
                gradient_tile(
                    source=x,
                    small_ptr=q_ptr,
                    out_ptr=dA_ptr,
                    scratch_ptr=gradient_scratch_ptr,
                    arrivals_ptr=gradient_arrivals_ptr,
                    tile=tile,
                    part=part,
                    num_parts=num_gradient_parts,
                    seed=seed,
                    threshold=threshold,
                    s=kept_scale,
                    column=((tile - num_dB) // num_ranks) * BLOCK_N,
                    rank=((tile - num_dB) % num_ranks) * BLOCK_R,
                    M=M,
                    C=K,
                    r=r,
                    stride_m=stride_xm,
                    stride_c=stride_xk,
                    stride_oc=1,
                    stride_or=K,
                    BLOCK_M=BLOCK_M,
                    BLOCK_C=BLOCK_N,
                    BLOCK_R=BLOCK_R,
                    DROPOUT=DROPOUT,
                    TMA=TMA,
                    SPLIT=SPLIT,
                    PRECISION=PRECISION,
                )
    else:
        if NEED_DX:
            tile = ticket - num_q_tasks
            tile = tl.where(gradient < 0, tile, tile - num_gradient_tasks)
            start = 0
            stop = N
            if CUT:
                part = tile % num_dx_parts
                tile = tile // num_dx_parts
                start, stop = part_range(N, part, num_dx_parts, BLOCK_N)
            m, k = grouped_order(tile, num_rows, tl.cdiv(K, BLOCK_K), GROUP)
            row = m * BLOCK_M
            column = k * BLOCK_K
            acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
            for n in range(start, stop, BLOCK_N):
                dy_tile = load_tile(dy, row, n, M, N, stride_dym, stride_dyn, BLOCK_M, BLOCK_N, TMA)
                W_tile = load_tile(W, n, column, N, K, stride_wn, stride_wk, BLOCK_N, BLOCK_K, TMA)
                acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
            is_whole = True
            if CUT:
                is_whole, acc = combine_parts(
                    acc, dx_scratch_ptr, dx_arrivals_ptr, tile, part, num_dx_parts, BLOCK_M, BLOCK_K
                )
            if is_whole:
                wait_for(flags_ptr + m, num_ranks)
                DTYPE: tl.constexpr = dy.dtype if TMA else dy.dtype.element_ty
                if DROPOUT:
                    # In quarters: the low-rank product takes an accumulator of its own, for which the
                    # registers beside a whole tile's are too few.
                    HALF: tl.constexpr = BLOCK_K // 2
                    left, right = split_columns(acc, BLOCK_M, BLOCK_K)
                    for side in tl.static_range(2):
                        half = left if side == 0 else right
                        quarters = split_columns(half, BLOCK_M, HALF)
                        for quarter in tl.static_range(2):
                            store_dropped(
                                dx,
                                quarters[quarter],
                                small_ptr=q_ptr,
                                V_ptr=A_ptr,
                                seed=seed,
                                threshold=threshold,
                                s=kept_scale,
                                row=row,
                                column=column + side * HALF + quarter * (HALF // 2),
                                M=M,
                                C=K,
                                r=r,
                                stride_vr=stride_ar,
                                stride_vc=stride_ak,
                                BLOCK_M=BLOCK_M,
                                BLOCK_C=HALF // 2,
                                BLOCK_R=BLOCK_R,
                                DTYPE=DTYPE,
                                TMA=TMA_STORE,
                                PRECISION=PRECISION,
                            )
                else:
                    acc = add_low_rank(
                        acc,
                        small_ptr=q_ptr,
                        V_ptr=A_ptr,
                        s=1.0,
                        row=row,
                        column=column,
                        M=M,
                        C=K,
                        r=r,
                        stride_vr=stride_ar,
                        stride_vc=stride_ak,
                        BLOCK_M=BLOCK_M,
                        BLOCK_C=BLOCK_K,
                        BLOCK_R=BLOCK_R,
                        MOST_RANKS=32,  # what fits beside the main loop's accumulator
                        DTYPE=DTYPE,
                        PRECISION=PRECISION,
                    )
                    store_tile(dx, acc, row, column, M, K, BLOCK_M, BLOCK_K, TMA_STORE)
