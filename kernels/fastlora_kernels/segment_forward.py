"""The forward kernel for rows that choose their operands: y = x W_eᵀ + s p B_eᵀ + b_e and p = x A_eᵀ.

It is one launch, and differs from the plain kernel (`forward.py`) in what a tile reads: its rows end where
their run ends, and they choose W, A and B.
"""

import triton
import triton.language as tl

from fastlora_kernels import segment_tasks, tasks
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import project_tile
from fastlora_kernels.segment_tables import load_adapter, load_segment, load_tile_entry, weights_of
from fastlora_kernels.segment_updates import add_segments, segments_to_wait_for
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import load_tile, store_tile

segment_forward_tiles = on_device(segment_tasks.segment_forward_tiles)
forward_tickets = on_device(tasks.forward_tickets)
forward_counters = on_device(tasks.forward_counters)


# Not specialized: as in the plain kernel.
@triton.jit(
    do_not_specialize=["threshold", "num_tiles", "num_segments", "num_operands", "split_p", "split_y"]
)
def segment_forward_kernel(
    x,  # [S, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks, or (pointer, strides)
    W,  # a descriptor of [E * N, K] in [BLOCK_N, BLOCK_K] blocks, or (pointer, strides of E, N and K)
    b_ptr,  # [E, N] contiguous, or None
    A_ptr,  # [r, K] of all adapters, one after the other
    B_ptr,  # [N, r] of all adapters, one after the other
    y_ptr,  # [S, N] contiguous
    p_ptr,  # [S * r] fp32
    tiles_ptr,  # segment_tables.py says what is in these four
    segments_ptr,
    ranks_ptr,
    scales_ptr,
    scratch_ptrs,  # fp32, for the splits of (p, y); y's is None if no y tile is split
    workspace_ptr,  # int32, zero at launch: tasks.ForwardCounters
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without dropout
    threshold,  # an entry of x is dropped with probability threshold / 2^16
    kept_scale,  # kept entries are multiplied by this
    s,
    N,
    K,
    r,  # the largest rank
    num_tiles,
    num_segments,
    num_operands,
    split_p,  # programs that share a p tile
    split_y,  # programs that share a y tile
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = (D * x) A_eᵀ;  y = x W_eᵀ + s p B_eᵀ + b_e, with D the dropout mask or 1."""
    ticket = take_ticket(workspace_ptr)  # the first counter of the workspace
    tiles = segment_forward_tiles(num_tiles, num_segments, N, r, BLOCK_N, BLOCK_R)
    tickets = forward_tickets(tiles, split_p, split_y)
    counters = forward_counters(tiles)
    tables = (tiles_ptr, segments_ptr, ranks_ptr, scales_ptr)
    alike = (num_operands, r, threshold, kept_scale, s)
    if ticket < tickets.y:
        tile = ticket // split_p
        segment, rank = tile // tiles.ranks, (tile % tiles.ranks) * BLOCK_R
        operand, begin, end, m, run = load_segment(tiles_ptr, segments_ptr, segment)
        first, own_r, threshold, kept_scale, _ = load_adapter(ranks_ptr, scales_ptr, operand, alike)
        mask = (tl.load(seed_ptr), threshold) if seed_ptr is not None else None
        split = Split(tile, ticket % split_p, split_p, scratch_ptrs[0], workspace_ptr + counters.p)
        # A tile without rows or ranks stores nothing, and is published like any other.
        own_K = tl.where((begin < end) & (rank < own_r), K, 0)
        A_t = (A_ptr + first * K, 1, K)
        small_ptr = p_ptr + run.to(tl.int64) * (r - own_r)
        is_stored = project_tile(
            x, A_t, small_ptr, split, mask, kept_scale, begin, rank, end, own_K, own_r, BLOCK_M, BLOCK_K,
            BLOCK_R, PRECISION,
        )  # fmt: skip
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
        column = n * BLOCK_N
        operand, begin, end = load_tile_entry(tiles_ptr, m)
        W_e, first_row = weights_of(W, operand, N)
        # Rows that chose no operand get 0.
        stop = tl.where((begin < end) & (operand < num_operands), stop, start)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(start, stop, BLOCK_K):
            x_tile = load_tile(x, begin, k, end, K, BLOCK_M, BLOCK_K)
            # Rows behind those of this W are columns of y that are not stored.
            W_tile = load_tile(W_e, first_row + column, k, N, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_N)
        if has_sum:
            # Fits into registers together with the main loop's accumulator, which takes most of them.
            STEP: tl.constexpr = min(BLOCK_R, 32)
            DTYPE: tl.constexpr = x.dtype if isinstance(x, tl.tensor_descriptor) else x[0].dtype.element_ty
            wait_for(workspace_ptr + counters.flags + m, segments_to_wait_for(tables, m) * tiles.ranks)
            acc = add_segments(
                acc, p_ptr, B_ptr, tables, alike, None, m, begin, column, N, True, BLOCK_M, BLOCK_N, STEP,
                DTYPE, PRECISION,
            )  # fmt: skip
            if b_ptr is not None:
                offs_n = column + tl.arange(0, BLOCK_N)
                own_N = tl.where(operand < num_operands, N, 0)
                own_ptr = b_ptr + operand.to(tl.int64) * N
                acc += tl.load(own_ptr + offs_n, mask=offs_n < own_N, other=0.0).to(tl.float32)[None, :]
            store_tile(y_ptr, acc, begin, column, end, N, BLOCK_M, BLOCK_N)
