"""The backward kernel of two or three projections that share x: dx of all in one accumulator, one launch."""

import triton
import triton.language as tl

from fastlora_kernels import tasks
from fastlora_kernels.group_gradients import gradient_b_tile, pick, q_tile
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import gradient_tile
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import add_low_rank, load_tile, store_tile

group_backward_tiles = on_device(tasks.group_backward_tiles)
backward_tickets = on_device(tasks.backward_tickets)
backward_counters = on_device(tasks.backward_counters)


# As in backward.py.
@triton.jit(do_not_specialize=["M", "split_q", "split_dx", "split_gradients"])
def group_backward_kernel(
    dy0,  # [M, N0]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or (pointer, strides); dy1 and dy2 likewise
    dy1,
    dy2,  # None, as are W2, A2 and B2, for two projections
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K_DA] blocks, or (pointer, strides)
    W0,  # [N0, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks, or (pointer, strides); W1 and W2 likewise
    W1,
    W2,
    A0,  # [r0, K], as (pointer, strides); A1 and A2 likewise
    A1,
    A2,
    B0,  # [N0, r0], as (pointer, strides); B1 and B2 likewise
    B1,
    B2,
    p_ptrs,  # [M, r0], [M, r1] and [M, r2] contiguous fp32
    q_ptr,  # the same one after the other in one tensor, scratch
    dx,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks, or a pointer to contiguous rows
    dA_ptr,  # [r0 + r1 + r2, K] contiguous
    dB_ptrs,  # [N0, r0], [N1, r1] and [N2, r2] contiguous
    scratch_ptrs,  # fp32, for the splits of (q, dx, gradients); dx's is None if no dx tile is split
    workspace_ptr,  # int32, zero at launch: tasks.BackwardCounters
    s0,
    s1,
    s2,
    M,
    N0,
    N1,
    N2,  # 0 for two projections
    K,
    r,  # the largest of r0, r1 and r2
    r0,  # 0 for a projection without an update
    r1,
    r2,
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
    """q_i = s_i dy_i B_i;  dB_i = s_i dy_iᵀ p_i;  dA_i = q_iᵀ x;  dx = Σ dy_i W_i + q_i A_i.

    As in the forward kernel, of the loops of several projections that follow each other only those have steps
    that a tile needs: a dx tile needs all of them.
    """
    # dB and dA tiles share scratch and counters.
    tl.static_assert(BLOCK_K_DA == BLOCK_N)
    MEMBERS: tl.constexpr = 2 if W2 is None else 3
    ticket = take_ticket(workspace_ptr)  # the first counter of the workspace
    tiles = group_backward_tiles(M, N0, N1, N2, K, r, MEMBERS, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R, BLOCK_K_DA)
    tickets = backward_tickets(tiles, M, N0 + N1 + N2, split_q, split_dx, split_gradients)
    counters = backward_counters(tiles)
    gradient = ticket - tickets.gradients
    rows = tl.cast(M, tl.int64)
    if ticket < tickets.dx:
        tile = ticket // split_q
        m = tile // (tiles.ranks * MEMBERS)
        which = tile // tiles.ranks % MEMBERS
        row, rank = m * BLOCK_M, (tile % tiles.ranks) * BLOCK_R
        split = Split(tile, ticket % split_q, split_q, scratch_ptrs[0], workspace_ptr + counters.q)
        is_stored = q_tile(
            which, dy0, dy1, dy2, B0, B1, B2, q_ptr + rows * pick(which, 0, r0, r0 + r1), split,
            pick(which, s0, s1, s2), row, rank, M, N0, N1, N2, r0, r1, r2,
            BLOCK_M, BLOCK_N, BLOCK_R, PRECISION,
        )  # fmt: skip
        if is_stored:
            publish(workspace_ptr + counters.flags + m)
            publish(workspace_ptr + counters.all_rows)
    elif gradient >= 0 and gradient < tickets.num_gradients:
        tile = gradient // split_gradients
        arrivals_ptr = workspace_ptr + counters.gradients
        split = Split(tile, gradient % split_gradients, split_gradients, scratch_ptrs[2], arrivals_ptr)
        if tile < tiles.dB:
            n, rank = tile // tiles.ranks, (tile % tiles.ranks) * BLOCK_R
            second = tl.cdiv(N0, BLOCK_N)
            third = second + tl.cdiv(N1, BLOCK_N)
            which = (n >= second).to(tl.int32) + (n >= third).to(tl.int32)
            if rank < pick(which, r0, r1, r2):
                gradient_b_tile(
                    which, dy0, dy1, dy2, p_ptrs, dB_ptrs, split, pick(which, s0, s1, s2),
                    (n - pick(which, 0, second, third)) * BLOCK_N, rank, M, N0, N1, N2, r0, r1, r2,
                    BLOCK_M, BLOCK_N, BLOCK_R, PRECISION,
                )  # fmt: skip
        else:
            wait_for(workspace_ptr + counters.all_rows, tiles.q)
            tile -= tiles.dB
            which = tile // tiles.ranks % MEMBERS
            column, rank = tile // (tiles.ranks * MEMBERS) * BLOCK_K_DA, (tile % tiles.ranks) * BLOCK_R
            before, own = pick(which, 0, r0, r0 + r1), pick(which, r0, r1, r2)
            if rank < own:
                dA_t = (dA_ptr + before.to(tl.int64) * K, 1, K)
                gradient_tile(
                    x, q_ptr + rows * before, dA_t, split, None, 1.0, column, rank, M, K, own,
                    BLOCK_M, BLOCK_K_DA, BLOCK_R, PRECISION,
                )  # fmt: skip
    else:
        IS_SHARED: tl.constexpr = scratch_ptrs[1] is not None
        tile = ticket - tickets.dx
        tile = tl.where(gradient < 0, tile, tile - tickets.num_gradients)
        # Counted in columns of all dy_i one after the other, each filled up to whole blocks.
        second = tl.cdiv(N0, BLOCK_N) * BLOCK_N
        third = second + tl.cdiv(N1, BLOCK_N) * BLOCK_N
        start = 0
        stop = third + tl.cdiv(N2, BLOCK_N) * BLOCK_N
        if IS_SHARED:
            index = tile % split_dx
            tile = tile // split_dx
            split = Split(tile, index, split_dx, scratch_ptrs[1], workspace_ptr + counters.dx)
            start, stop = split_range(stop, split, BLOCK_N)
        m, k = grouped_order(tile, tiles.rows, tiles.columns, GROUP)
        row, column = m * BLOCK_M, k * BLOCK_K
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for n in range(start, tl.minimum(stop, second), BLOCK_N):
            dy_tile = load_tile(dy0, row, n, M, N0, BLOCK_M, BLOCK_N)
            W_tile = load_tile(W0, n, column, N0, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
        for n in range(tl.maximum(start, second) - second, tl.minimum(stop, third) - second, BLOCK_N):
            dy_tile = load_tile(dy1, row, n, M, N1, BLOCK_M, BLOCK_N)
            W_tile = load_tile(W1, n, column, N1, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
        if W2 is not None:
            for n in range(tl.maximum(start, third) - third, stop - third, BLOCK_N):
                dy_tile = load_tile(dy2, row, n, M, N2, BLOCK_M, BLOCK_N)
                W_tile = load_tile(W2, n, column, N2, K, BLOCK_N, BLOCK_K)
                acc = tl.dot(dy_tile, W_tile, acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_K)
        if has_sum:
            wait_for(workspace_ptr + counters.flags + m, tiles.ranks * MEMBERS)
            STEP: tl.constexpr = min(BLOCK_R, 32)  # fits into registers together with the accumulator
            DTYPE: tl.constexpr = (
                dy0.dtype if isinstance(dy0, tl.tensor_descriptor) else dy0[0].dtype.element_ty
            )
            acc = add_low_rank(
                acc, q_ptr, A0, None, row, column, M, K, r0, BLOCK_M, BLOCK_K, STEP, DTYPE, PRECISION
            )
            acc = add_low_rank(
                acc, q_ptr + rows * r0, A1, None, row, column, M, K, r1,
                BLOCK_M, BLOCK_K, STEP, DTYPE, PRECISION,
            )  # fmt: skip
            if W2 is not None:
                acc = add_low_rank(
                    acc, q_ptr + rows * (r0 + r1), A2, None, row, column, M, K, r2,
                    BLOCK_M, BLOCK_K, STEP, DTYPE, PRECISION,
                )  # fmt: skip
            store_tile(dx, acc, row, column, M, K, BLOCK_M, BLOCK_K)
