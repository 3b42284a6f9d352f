"""The backward kernel for rows that choose their operands: dx, dA and dB where needed, in one launch.

A tile of dA or dB belongs to one operand. It walks the rows of that operand's runs in their order, so nothing
is added by atomics, and the same input gives the same bits.
"""

import triton
import triton.language as tl

from fastlora_kernels import segment_tasks, tasks
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import project_tile
from fastlora_kernels.segment_gradients import operand_gradient_tile
from fastlora_kernels.segment_tables import load_adapter, load_segment, load_tile_entry, weights_of
from fastlora_kernels.segment_updates import add_segments, segments_to_wait_for
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import halves, load_tile, store_tile

segment_backward_tiles = on_device(segment_tasks.segment_backward_tiles)
backward_tickets = on_device(tasks.backward_tickets)
backward_counters = on_device(tasks.backward_counters)


@triton.jit
def finish_dx(
    dx_ptr,
    acc,  # [BLOCK_M, BLOCK_K] fp32: dy W at (row, column)
    q_ptr,
    A_ptr,
    tables,
    alike,
    seed_ptr,
    tile,
    row,
    column,
    end,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx[row:end, column:] = acc + D * (q A); in quarters with dropout, as in the plain kernel."""
    if seed_ptr is None:
        STEP: tl.constexpr = min(BLOCK_R, 32)
        acc = add_segments(
            acc, q_ptr, A_ptr, tables, alike, None, tile, row, column, K, False, BLOCK_M, BLOCK_K, STEP,
            DTYPE, PRECISION,
        )  # fmt: skip
        store_tile(dx_ptr, acc, row, column, end, K, BLOCK_M, BLOCK_K)
    else:
        STEP: tl.constexpr = min(BLOCK_R, 16)
        HALF: tl.constexpr = BLOCK_K // 2
        QUARTER: tl.constexpr = BLOCK_K // 4
        left, right = halves(acc, BLOCK_M, BLOCK_K)
        for side in tl.static_range(2):
            quarters = halves(left if side == 0 else right, BLOCK_M, HALF)
            for i in tl.static_range(2):
                first = column + side * HALF + i * QUARTER
                quarter = add_segments(
                    quarters[i], q_ptr, A_ptr, tables, alike, seed_ptr, tile, row, first, K, False, BLOCK_M,
                    QUARTER, STEP, DTYPE, PRECISION,
                )  # fmt: skip
                store_tile(dx_ptr, quarter, row, first, end, K, BLOCK_M, QUARTER)


# Not specialized: as in the plain kernel.
@triton.jit(
    do_not_specialize=["threshold", "num_tiles", "num_segments", "num_operands", "split_q", "split_dx"]
)
def segment_backward_kernel(
    dy,  # [S, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or (pointer, strides)
    dy_rows,  # dy as (pointer, strides): a run's last block must not reach into the next
    x,  # [S, K], as (pointer, strides)
    W,  # a descriptor of [E * N, K] in [BLOCK_N, BLOCK_K] blocks, or (pointer, strides of E, N and K)
    A_ptr,  # [r, K] of all adapters, one after the other
    B_ptr,  # [N, r] of all adapters, one after the other
    p_ptr,  # [S * r] fp32
    q_ptr,  # [S * r] fp32, scratch
    dx_ptr,  # [S, K] contiguous
    dA_ptr,  # as A_ptr; any of these three is None where it is not needed
    dB_ptr,  # as B_ptr
    weights_ptr,  # [S] fp32, factors of the rows in dA and dB; None for 1
    tiles_ptr,  # segment_tables.py says what is in these four
    segments_ptr,
    ranks_ptr,
    scales_ptr,
    runs_ptr,  # [runs, 2] int32, the bounds of runs by adapter; or [num_operands + 1] int64
    firsts_ptr,  # [adapters + 1] int32, the first run of each adapter; None where each has one
    scratch_ptrs,  # fp32, for the splits of (q, dx); dx's is None if no dx tile is split
    workspace_ptr,  # int32, zero at launch: tasks.BackwardCounters
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without dropout
    threshold,  # an entry of x was dropped with probability threshold / 2^16
    kept_scale,  # kept entries were multiplied by this
    s,
    N,
    K,
    r,  # the largest rank
    num_tiles,
    num_segments,
    num_operands,
    split_q,  # programs that share a q tile
    split_dx,  # programs that share a dx tile
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K_DA: tl.constexpr,  # columns of a dA tile
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q = s dy B_e;  dB_e = s dyᵀ (w p);  dA_e = (w q)ᵀ (D * x);  dx = dy W_e + D * (q A_e)."""
    NEED_DX: tl.constexpr = dx_ptr is not None
    NEED_DA: tl.constexpr = dA_ptr is not None
    NEED_DB: tl.constexpr = dB_ptr is not None
    ticket = take_ticket(workspace_ptr)  # the first counter of the workspace
    tiles = segment_backward_tiles(
        num_tiles,
        num_segments,
        num_operands,
        N,
        K,
        r,
        NEED_DX,
        NEED_DA,
        NEED_DB,
        BLOCK_N,
        BLOCK_K,
        BLOCK_R,
        BLOCK_K_DA,
    )
    tickets = backward_tickets(tiles, num_tiles * BLOCK_M, N, split_q, split_dx, 1)
    counters = backward_counters(tiles)
    tables = (tiles_ptr, segments_ptr, ranks_ptr, scales_ptr)
    alike = (num_operands, r, threshold, kept_scale, s)
    gradient = ticket - tickets.gradients
    if ticket < tickets.dx:
        if NEED_DX or NEED_DA:
            tile = ticket // split_q
            segment, rank = tile // tiles.ranks, (tile % tiles.ranks) * BLOCK_R
            operand, begin, end, m, run = load_segment(tiles_ptr, segments_ptr, segment)
            first, own_r, _, _, s = load_adapter(ranks_ptr, scales_ptr, operand, alike)
            split = Split(tile, ticket % split_q, split_q, scratch_ptrs[0], workspace_ptr + counters.q)
            # A tile without rows or ranks stores nothing, and is published like any other.
            own_N = tl.where((begin < end) & (rank < own_r), N, 0)
            B = (B_ptr + first * N, own_r, 1)
            small_ptr = q_ptr + run.to(tl.int64) * (r - own_r)
            is_stored = project_tile(
                dy,
                B,
                small_ptr,
                split,
                None,
                s,
                begin,
                rank,
                end,
                own_N,
                own_r,
                BLOCK_M,
                BLOCK_N,
                BLOCK_R,
                PRECISION,
            )
            if is_stored:
                publish(workspace_ptr + counters.flags + m)
                publish(workspace_ptr + counters.all_rows)
    elif gradient >= 0 and gradient < tickets.num_gradients:
        if gradient < tiles.dB:
            if NEED_DB:
                each = tiles.dB // num_operands
                operand, tile = gradient // each, gradient % each
                column, rank = (tile // tiles.ranks) * BLOCK_N, (tile % tiles.ranks) * BLOCK_R
                first, own_r, _, _, s = load_adapter(ranks_ptr, scales_ptr, operand, alike)
                if rank < own_r:
                    dB = (dB_ptr + first * N, own_r, 1)
                    operand_gradient_tile(
                        dy_rows, p_ptr, weights_ptr, dB, runs_ptr, firsts_ptr, operand, None, s, column,
                        rank, N, r, own_r, BLOCK_M, BLOCK_N, BLOCK_R, PRECISION,
                    )  # fmt: skip
        else:
            if NEED_DA:
                each = tiles.dA // num_operands
                operand, tile = (gradient - tiles.dB) // each, (gradient - tiles.dB) % each
                column, rank = (tile // tiles.ranks) * BLOCK_K_DA, (tile % tiles.ranks) * BLOCK_R
                first, own_r, threshold, kept_scale, _ = load_adapter(ranks_ptr, scales_ptr, operand, alike)
                mask = (tl.load(seed_ptr), threshold) if seed_ptr is not None else None
                wait_for(workspace_ptr + counters.all_rows, tiles.q)
                if rank < own_r:
                    dA_t = (dA_ptr + first * K, 1, K)
                    operand_gradient_tile(
                        x, q_ptr, weights_ptr, dA_t, runs_ptr, firsts_ptr, operand, mask, kept_scale, column,
                        rank, K, r, own_r, BLOCK_M, BLOCK_K_DA, BLOCK_R, PRECISION,
                    )  # fmt: skip
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
        column = k * BLOCK_K
        operand, begin, end = load_tile_entry(tiles_ptr, m)
        W_e, first_row = weights_of(W, operand, N)
        # Rows that chose no operand get 0.
        stop = tl.where((begin < end) & (operand < num_operands), stop, start)
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for n in range(start, stop, BLOCK_N):
            dy_tile = load_tile(dy, begin, n, end, N, BLOCK_M, BLOCK_N)
            W_tile = load_tile(W_e, first_row + n, column, N, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_K)
        if has_sum:
            wait_for(workspace_ptr + counters.flags + m, segments_to_wait_for(tables, m) * tiles.ranks)
            DTYPE: tl.constexpr = dy.dtype if isinstance(dy, tl.tensor_descriptor) else dy[0].dtype.element_ty
            finish_dx(
                dx_ptr, acc, q_ptr, A_ptr, tables, alike, seed_ptr, m, begin, column, end, K, BLOCK_M,
                BLOCK_K, BLOCK_R, DTYPE, PRECISION,
            )  # fmt: skip
