"""The forward kernel of two or three projections that share x, such as q, k and v, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels import tasks
from fastlora_kernels.group_p import project_tiles
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import add_low_rank, load_tile, store_tile

group_forward_tiles = on_device(tasks.group_forward_tiles)
forward_tickets = on_device(tasks.forward_tickets)
forward_counters = on_device(tasks.forward_counters)


# As in forward.py: no descriptors and no values that change from call to call in tuples.
@triton.jit(do_not_specialize=["M", "split_p", "split_y"])
def group_forward_kernel(
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks, or (pointer, strides)
    W0,  # [N0, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks, or (pointer, strides); W1 and W2 likewise
    W1,
    W2,  # None, as are A2 and B2, for two projections
    b_ptrs,  # [N0], [N1] and [N2], or None for each
    A0,  # [r0, K], as (pointer, strides); A1 and A2 likewise
    A1,
    A2,
    B0,  # [N0, r0], as (pointer, strides); B1 and B2 likewise
    B1,
    B2,
    y0,  # [M, N0]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or a pointer to contiguous rows; so y1 and y2
    y1,
    y2,
    p_ptrs,  # [M, r0], [M, r1] and [M, r2] contiguous fp32
    scratch_ptrs,  # fp32, for the splits of (p, y); y's is None if no y tile is split
    workspace_ptr,  # int32, zero at launch: tasks.ForwardCounters
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
    split_p,  # programs that share a p tile
    split_y,  # programs that share a y tile
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p_i = x A_iᵀ;  y_i = x W_iᵀ + s_i p_i B_iᵀ + b_i.

    The columns of the y_i are numbered one after the other. A program has one main loop for each projection,
    of which only that of its own tile has any steps: loops in branches would each have buffers of their own
    in shared memory, and these ones share theirs.
    """
    ticket = take_ticket(workspace_ptr)
    tiles = group_forward_tiles(M, N0, N1, N2, r, BLOCK_M, BLOCK_N, BLOCK_R)
    tickets = forward_tickets(tiles, split_p, split_y)
    counters = forward_counters(tiles)
    if ticket < tickets.y:
        tile = ticket // split_p
        m = tile // tiles.ranks
        row, rank = m * BLOCK_M, (tile % tiles.ranks) * BLOCK_R
        split = Split(tile, ticket % split_p, split_p, scratch_ptrs[0], workspace_ptr + counters.p)
        is_stored = project_tiles(
            x, A0, A1, A2, p_ptrs, split, row, rank, M, K, r0, r1, r2, BLOCK_M, BLOCK_K, BLOCK_R, PRECISION
        )
        if is_stored:
            publish(workspace_ptr + counters.flags + m)
    else:
        IS_SHARED: tl.constexpr = scratch_ptrs[1] is not None
        tile = ticket - tickets.y
        start = 0
        stop = K
        if IS_SHARED:
            index = tile % split_y
            tile = tile // split_y
            split = Split(tile, index, split_y, scratch_ptrs[1], workspace_ptr + counters.y)
            start, stop = split_range(K, split, BLOCK_K)
        m, n = grouped_order(tile, tiles.rows, tiles.columns, GROUP)
        second = tl.cdiv(N0, BLOCK_N)
        third = second + tl.cdiv(N1, BLOCK_N)
        which = (n >= second).to(tl.int32) + (n >= third).to(tl.int32)
        first = tl.where(which == 0, 0, tl.where(which == 1, second, third))
        row, column = m * BLOCK_M, (n - first) * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(start, tl.where(which == 0, stop, start), BLOCK_K):
            x_tile = load_tile(x, row, k, M, K, BLOCK_M, BLOCK_K)
            W_tile = load_tile(W0, column, k, N0, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        for k in range(start, tl.where(which == 1, stop, start), BLOCK_K):
            x_tile = load_tile(x, row, k, M, K, BLOCK_M, BLOCK_K)
            W_tile = load_tile(W1, column, k, N1, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        if W2 is not None:
            for k in range(start, tl.where(which == 2, stop, start), BLOCK_K):
                x_tile = load_tile(x, row, k, M, K, BLOCK_M, BLOCK_K)
                W_tile = load_tile(W2, column, k, N2, K, BLOCK_N, BLOCK_K)
                acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_N)
        if has_sum:
            wait_for(workspace_ptr + counters.flags + m, tiles.ranks)
            STEP: tl.constexpr = min(BLOCK_R, 32)
            DTYPE: tl.constexpr = x.dtype if isinstance(x, tl.tensor_descriptor) else x[0].dtype.element_ty
            if which == 0:
                _finish(
                    acc, p_ptrs[0], B0, b_ptrs[0], y0, s0, row, column, M, N0, r0,
                    BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION,
                )  # fmt: skip
            elif which == 1:
                _finish(
                    acc, p_ptrs[1], B1, b_ptrs[1], y1, s1, row, column, M, N1, r1,
                    BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION,
                )  # fmt: skip
            elif W2 is not None:
                _finish(
                    acc, p_ptrs[2], B2, b_ptrs[2], y2, s2, row, column, M, N2, r2,
                    BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION,
                )  # fmt: skip


@triton.jit
def _finish(
    acc,
    p_ptr,
    B,
    b_ptr,
    y,
    s,
    row,
    column,
    M,
    N,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store acc + s p Bᵀ + b at (row, column) of one y."""
    B_t = (B[0], B[2], B[1])
    acc = add_low_rank(acc, p_ptr, B_t, s, row, column, M, N, r, BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION)
    if b_ptr is not None:
        offs_n = column + tl.arange(0, BLOCK_N)
        acc += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    store_tile(y, acc, row, column, M, N, BLOCK_M, BLOCK_N)
