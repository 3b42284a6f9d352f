"""The forward kernel: y = x Wᵀ + s p Bᵀ + b and p = x Aᵀ, in one launch."""

import triton
import triton.language as tl

from fastlora_kernels import tasks
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import project_tile
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import grouped_order, on_device, take_ticket
from fastlora_kernels.tile_ops import add_low_rank, load_tile, scale_columns, store_tile

forward_tiles = on_device(tasks.forward_tiles)
forward_tickets = on_device(tasks.forward_tickets)
forward_counters = on_device(tasks.forward_counters)


# Not specialized: values that change from call to call, and along which nothing is vectorized. They are
# arguments of their own because `do_not_specialize` has no effect inside a tuple in Triton 3.6 and 3.9. A
# tensor descriptor must not be in a tuple either: 3.6 finds descriptors only among the arguments themselves.
@triton.jit(do_not_specialize=["M", "threshold", "split_p", "split_y"])
def forward_kernel(
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks, or (pointer, strides)
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks, or (pointer, strides)
    b_ptr,  # [N], or None
    c_ptr,  # [N] fp32, DoRA's factors of the columns; None for 1
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    y,  # [M, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks, or a pointer to contiguous rows
    z,  # [M, N], as y: what c scales, which DoRA's backward pass reads; None where nobody needs it
    p_ptr,  # [M, r] contiguous fp32
    scratch_ptrs,  # fp32, for the splits of (p, y); y's is None if no y tile is split
    workspace_ptr,  # int32, zero at launch: tasks.ForwardCounters
    seed_ptr,  # [1] int64, the seed of the dropout mask; None without dropout
    threshold,  # an entry of x is dropped with probability threshold / 2^16
    kept_scale,  # kept entries are multiplied by this
    s,
    M,
    N,
    K,
    r,
    split_p,  # programs that share a p tile
    split_y,  # programs that share a y tile
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = (D * x) Aᵀ;  z = x Wᵀ + s p Bᵀ;  y = c z + b, with D the dropout mask or 1, and c = 1 but for DoRA.

    A program that computes a y tile needs p only after its main loop.
    """
    ticket = take_ticket(workspace_ptr)  # the first counter of the workspace
    mask = (tl.load(seed_ptr), threshold) if seed_ptr is not None else None
    tiles = forward_tiles(M, N, r, BLOCK_M, BLOCK_N, BLOCK_R)
    tickets = forward_tickets(tiles, split_p, split_y)
    counters = forward_counters(tiles)
    if ticket < tickets.y:
        tile = ticket // split_p
        m = tile // tiles.ranks
        row, rank = m * BLOCK_M, (tile % tiles.ranks) * BLOCK_R
        split = Split(tile, ticket % split_p, split_p, scratch_ptrs[0], workspace_ptr + counters.p)
        A_t = (A[0], A[2], A[1])
        is_stored = project_tile(
            x, A_t, p_ptr, split, mask, kept_scale, row, rank, M, K, r, BLOCK_M, BLOCK_K, BLOCK_R, PRECISION
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
        row, column = m * BLOCK_M, n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(start, stop, BLOCK_K):
            x_tile = load_tile(x, row, k, M, K, BLOCK_M, BLOCK_K)
            W_tile = load_tile(W, column, k, N, K, BLOCK_N, BLOCK_K)
            acc = tl.dot(x_tile, tl.trans(W_tile), acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_M, BLOCK_N)
        if has_sum:
            wait_for(workspace_ptr + counters.flags + m, tiles.ranks)
            # Fits into registers together with the main loop's accumulator, which takes most of them.
            STEP: tl.constexpr = min(BLOCK_R, 32)
            DTYPE: tl.constexpr = x.dtype if isinstance(x, tl.tensor_descriptor) else x[0].dtype.element_ty
            B_t = (B[0], B[2], B[1])
            acc = add_low_rank(
                acc, p_ptr, B_t, s, row, column, M, N, r, BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION
            )
            if z is not None:
                store_tile(z, acc, row, column, M, N, BLOCK_M, BLOCK_N)
            if c_ptr is not None:
                acc = scale_columns(acc, c_ptr, column, N, BLOCK_N)
            if b_ptr is not None:
                offs_n = column + tl.arange(0, BLOCK_N)
                acc += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
            store_tile(y, acc, row, column, M, N, BLOCK_M, BLOCK_N)
