"""The backward kernel: those of dx, dA and dB that are needed, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels import tasks
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import gradient_tile, project_tile
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import (
    add_low_rank,
    add_masked_low_rank,
    halves,
    load_tile,
    scale_columns,
    store_tile,
)

backward_tiles = on_device(tasks.backward_tiles)
backward_tickets = on_device(tasks.backward_tickets)
backward_counters = on_device(tasks.backward_counters)


@triton.jit
def finish_dx(
    dx,  # [M, K]
    acc,  # [BLOCK_M, BLOCK_K] fp32: dy W at (row, column)
    q_ptr,  # [M, r]; the caller has waited for these rows
    A,  # [r, K]
    mask,  # (seed, threshold), or None
    kept_scale,
    row,
    column,
    M,
    K,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = acc + D * (q A), with D the dropout mask or 1."""
    if mask is None:
        STEP: tl.constexpr = min(BLOCK_R, 32)  # fits into registers together with the accumulator
        acc = add_low_rank(
            acc, q_ptr, A, None, row, column, M, K, r, BLOCK_M, BLOCK_K, STEP, DTYPE, PRECISION
        )
        store_tile(dx, acc, row, column, M, K, BLOCK_M, BLOCK_K)
    else:
        # In quarters: the low-rank product needs an accumulator of its own. One for the full tile would not
        # fit into registers together with `acc`. With a STEP of 32, one variant spilled 8 bytes (sm_90, r=24,
        # Triton 3.9.0).
        STEP: tl.constexpr = min(BLOCK_R, 16)
        HALF: tl.constexpr = BLOCK_K // 2
        QUARTER: tl.constexpr = BLOCK_K // 4
        left, right = halves(acc, BLOCK_M, BLOCK_K)
        for side in tl.static_range(2):
            quarters = halves(left if side == 0 else right, BLOCK_M, HALF)
            for i in tl.static_range(2):
                first = column + side * HALF + i * QUARTER
                quarter = add_masked_low_rank(
                    quarters[i],
                    q_ptr,
                    A,
                    mask,
                    s=kept_scale,
                    row=row,
                    column=first,
                    M=M,
                    C=K,
                    r=r,
                    BLOCK_M=BLOCK_M,
                    BLOCK_C=QUARTER,
                    STEP=STEP,
                    DTYPE=DTYPE,
                    PRECISION=PRECISION,
                )
                store_tile(dx, quarter, row, first, M, K, BLOCK_M, QUARTER)


# As in the forward kernel.
@triton.jit(do_not_specialize=["M", "threshold", "split_q", "split_dx", "split_gradients"])
def backward_kernel(
    dy,  # [M, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or (pointer, strides)
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K_DA] blocks, or (pointer, strides)
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks, or (pointer, strides)
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    c_ptr,  # [N] fp32, DoRA's factors of dy's columns; None for 1
    p_ptr,  # [M, r] contiguous fp32
    q_ptr,  # [M, r] contiguous fp32, scratch
    dx,  # [M, K]: a descriptor of the blocks that are stored, or a pointer to contiguous rows
    dA_ptr,  # [r, K] contiguous; any of these three is None where it is not needed
    dB_ptr,  # [N, r] contiguous
    scratch_ptrs,  # fp32, for the splits of (q, dx, gradients); dx's is None if no dx tile is split
    workspace_ptr,  # int32, zero at launch: tasks.BackwardCounters
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without dropout
    threshold,  # an entry of x was dropped with probability threshold / 2^16
    kept_scale,  # kept entries were multiplied by this
    s,
    M,
    N,
    K,
    r,
    split_q,  # programs that share a q tile
    split_dx,  # programs that share a dx tile
    split_gradients,  # programs that share a dB or a dA tile
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K_DA: tl.constexpr,  # columns of a dA tile
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q = s dy B;  dB = s dyᵀ p;  dA = qᵀ (D * x);  dx = dy W + D * (q A), with D the mask or 1.

    With DoRA c dy stands for dy. q takes c from B's rows and dB in its result, so neither rounds c dy; dx
    takes dy scaled in registers, from which matrix units take a left operand.
    """
    # dB and dA tiles share scratch and counters.
    tl.static_assert(BLOCK_K_DA == BLOCK_N)
    NEED_DX: tl.constexpr = dx is not None
    NEED_DA: tl.constexpr = dA_ptr is not None
    NEED_DB: tl.constexpr = dB_ptr is not None
    ticket = take_ticket(workspace_ptr)  # the first counter of the workspace
    mask = (tl.load(seed_ptr), threshold) if seed_ptr is not None else None
    tiles = backward_tiles(
        M, N, K, r, NEED_DX, NEED_DA, NEED_DB, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R, BLOCK_K_DA
    )
    tickets = backward_tickets(tiles, M, N, split_q, split_dx, split_gradients)
    counters = backward_counters(tiles)
    gradient = ticket - tickets.gradients
    if ticket < tickets.dx:
        if NEED_DX or NEED_DA:
            tile = ticket // split_q
            m = tile // tiles.ranks
            row, rank = m * BLOCK_M, (tile % tiles.ranks) * BLOCK_R
            split = Split(tile, ticket % split_q, split_q, scratch_ptrs[0], workspace_ptr + counters.q)
            is_stored = project_tile(
                dy, B, q_ptr, split, None, s, row, rank, M, N, r,
                BLOCK_M, BLOCK_N, BLOCK_R, PRECISION, c_ptr,
            )  # fmt: skip
            if is_stored:
                publish(workspace_ptr + counters.flags + m)
                publish(workspace_ptr + counters.all_rows)
    elif gradient >= 0 and gradient < tickets.num_gradients:
        tile = gradient // split_gradients
        arrivals_ptr = workspace_ptr + counters.gradients
        split = Split(tile, gradient % split_gradients, split_gradients, scratch_ptrs[2], arrivals_ptr)
        if tile < tiles.dB:
            if NEED_DB:
                column, rank = (tile // tiles.ranks) * BLOCK_N, (tile % tiles.ranks) * BLOCK_R
                dB = (dB_ptr, r, 1)
                gradient_tile(
                    dy, p_ptr, dB, split, None, s, column, rank, M, N, r,
                    BLOCK_M, BLOCK_N, BLOCK_R, PRECISION, c_ptr,
                )  # fmt: skip
        else:
            if NEED_DA:
                wait_for(workspace_ptr + counters.all_rows, tiles.q)
                tile -= tiles.dB
                column, rank = (tile // tiles.ranks) * BLOCK_K_DA, (tile % tiles.ranks) * BLOCK_R
                dA_t = (dA_ptr, 1, K)
                gradient_tile(
                    x,
                    q_ptr,
                    dA_t,
                    split,
                    mask,
                    kept_scale,
                    column,
                    rank,
                    M,
                    K,
                    r,
                    BLOCK_M,
                    BLOCK_K_DA,
                    BLOCK_R,
                    PRECISION,
                )
    elif NEED_DX:
        IS_SHARED: tl.constexpr = scratch_ptrs[1] is not None
        tile = ticket - tickets.dx
        tile = tl.where(gradient < 0, tile, tile - tickets.num_gradients)
        start = 0
        stop = N
        if IS_SHARED:
            index = tile % split_dx
            tile = tile // split_dx
            split = Split(tile, index, split_dx, scratch_ptrs[1], workspace_ptr + counters.dx)
            start, stop = split_range(N, split, BLOCK_N)
        m, k = grouped_order(tile, tiles.rows, tiles.columns, GROUP)
        row, column = m * BLOCK_M, k * BLOCK_K
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for n in range(start, stop, BLOCK_N):
            dy_tile = load_tile(dy, row, n, M, N, BLOCK_M, BLOCK_N)
            if c_ptr is not None:
                dy_tile = scale_columns(dy_tile, c_ptr, n, N, BLOCK_N)
            W_tile = load_tile(W, n, column, N, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_K)
        if has_sum:
            wait_for(workspace_ptr + counters.flags + m, tiles.ranks)
            DTYPE: tl.constexpr = dy.dtype if isinstance(dy, tl.tensor_descriptor) else dy[0].dtype.element_ty
            finish_dx(
                dx,
                acc,
                q_ptr,
                A,
                mask,
                kept_scale,
                row,
                column,
                M,
                K,
                r,
                BLOCK_M,
                BLOCK_K,
                BLOCK_R,
                DTYPE,
                PRECISION,
            )
