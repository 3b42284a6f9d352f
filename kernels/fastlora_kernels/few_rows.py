"""The forward kernel over a packed W for few rows of x, as in decoding: W is unpacked inside the product.

Each program unpacks its own tile of W in registers, as an operand of the product, and no W is written. With
more rows than one block of them, each block would unpack W again.
"""

import triton
import triton.language as tl

from fastlora_kernels import tasks
from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import project_tile
from fastlora_kernels.nibble_lookup import table_of
from fastlora_kernels.packed_tiles import eight_bit_tile, four_bit_tile
from fastlora_kernels.split_k import Split, split_range, sum_of_splits
from fastlora_kernels.tickets import on_device, take_ticket
from fastlora_kernels.tile_ops import add_low_rank, load_tile, store_tile

forward_tiles = on_device(tasks.forward_tiles)
forward_tickets = on_device(tasks.forward_tickets)
forward_counters = on_device(tasks.forward_counters)


@triton.jit(do_not_specialize=["M", "threshold", "split_p", "split_y"])
def few_rows_kernel(
    x,  # [M, K], as (pointer, strides)
    W,  # pointers, as packed_tiles.py takes them
    b_ptr,  # [N], or None
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    y,  # [M, N], a pointer to contiguous rows
    p_ptr,  # [M, r] contiguous fp32
    scratch_ptrs,  # as forward_kernel's
    workspace_ptr,  # as forward_kernel's
    seed_ptr,
    threshold,
    kept_scale,
    s,
    factor,  # of the scales of 8 bits
    M,  # at most BLOCK_M
    N,
    K,
    r,
    split_p,
    split_y,
    KIND: tl.constexpr,  # "4 bits", or what `value_of` reads
    BLOCK: tl.constexpr,
    BLOCK2: tl.constexpr,
    BY_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PERMUTED: tl.constexpr,  # as nibble_lookup.py takes it
):
    """As forward_kernel; y is computed transposed. Compiled without fused multiply-adds, for W's bits."""
    ticket = take_ticket(workspace_ptr)
    mask = (tl.load(seed_ptr), threshold) if seed_ptr is not None else None
    tiles = forward_tiles(M, N, r, BLOCK_M, BLOCK_N, BLOCK_R)
    tickets = forward_tickets(tiles, split_p, split_y)
    counters = forward_counters(tiles)
    if ticket < tickets.y:
        rank = ticket // split_p
        split = Split(rank, ticket % split_p, split_p, scratch_ptrs[0], workspace_ptr + counters.p)
        A_t = (A[0], A[2], A[1])
        is_stored = project_tile(
            x, A_t, p_ptr, split, mask, kept_scale, 0, rank * BLOCK_R, M, K, r, BLOCK_M, BLOCK_K, BLOCK_R,
            PRECISION,
        )  # fmt: skip
        if is_stored:
            publish(workspace_ptr + counters.flags)
    else:
        IS_SHARED: tl.constexpr = scratch_ptrs[1] is not None
        DTYPE: tl.constexpr = x[0].dtype.element_ty
        n = ticket - tickets.y
        start = 0
        stop = K
        if IS_SHARED:
            index = n % split_y
            n = n // split_y
            split = Split(n, index, split_y, scratch_ptrs[1], workspace_ptr + counters.y)
            start, stop = split_range(K, split, BLOCK_K)
        column = n * BLOCK_N
        if KIND == "4 bits":
            table = table_of(W[1], PERMUTED)
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for k in range(start, stop, BLOCK_K):
            x_tile = load_tile(x, 0, k, M, K, BLOCK_M, BLOCK_K)
            if KIND == "4 bits":
                W_tile = four_bit_tile(
                    W, table, column, k, N, K, BLOCK_N, BLOCK_K, BLOCK, BLOCK2, BY_ROW, PERMUTED
                )
            else:
                W_tile = eight_bit_tile(W, column, k, N, K, factor, BLOCK_N, BLOCK_K, BLOCK, BLOCK2, KIND)
            acc = tl.dot(W_tile.to(DTYPE), tl.trans(x_tile), acc, input_precision=PRECISION)
        has_sum = True
        if IS_SHARED:
            has_sum, acc = sum_of_splits(acc, split, BLOCK_N, BLOCK_M)
        if has_sum:
            total = tl.trans(acc)
            wait_for(workspace_ptr + counters.flags, tiles.ranks)
            STEP: tl.constexpr = min(BLOCK_R, 32)
            B_t = (B[0], B[2], B[1])
            total = add_low_rank(
                total, p_ptr, B_t, s, 0, column, M, N, r, BLOCK_M, BLOCK_N, STEP, DTYPE, PRECISION
            )
            if b_ptr is not None:
                offs_n = column + tl.arange(0, BLOCK_N)
                total += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
            store_tile(y, total, 0, column, M, N, BLOCK_M, BLOCK_N)
