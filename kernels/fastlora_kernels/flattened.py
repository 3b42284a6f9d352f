"""Both passes as persistent programs in plain Triton: the tiles of a program are one loop, and one pipeline.

Triton flattens a loop over tiles and the one over a tile's steps into one. So the next tile's first blocks
are under way during the epilogue of this one. It flattens none that has a third loop behind the steps: ranks
are added in unrolled steps, and a tile waits for p or q in inline assembly.

A program draws tickets of p or q until there are none; so started programs make all of it, and wait for
nothing. The ticket that is one too many says which its first tile is, and the others follow by the number of
programs. Those that made p or q come last, and have a tile less where tiles do not divide evenly.
"""

import triton
import triton.language as tl

from fastlora_kernels.handover import publish, wait_for
from fastlora_kernels.low_rank_products import gradient_tile, project_tile
from fastlora_kernels.split_k import Split
from fastlora_kernels.tickets import grouped_order, take_ticket
from fastlora_kernels.tile_ops import load_handed_over, load_tile, store_tile

# In the workspace, int32 and zero at launch: how many tickets of p or q were drawn, and of dB and dA; how
# many blocks of rows of q are stored; for each block of rows, whether its p or q is.
GRADIENTS = tl.constexpr(1)
ALL_ROWS = tl.constexpr(2)
FLAGS = tl.constexpr(3)
# Ranks that are added at a time: with more, B's block would not fit beside the ring and a tile to be stored.
RANKS = tl.constexpr(16)


@triton.jit
def wait_for_flag(flag_ptr):
    """Return once a flag is 1: each thread acquires what was released to it, and may then load past L1."""
    tl.inline_asm_elementwise(
        """{
            .reg .pred unset;
            .reg .b32 flag;
            again: ld.acquire.gpu.global.u32 flag, [$1];
            setp.eq.u32 unset, flag, 0;
            @unset bra again;
            mov.b32 $0, flag;
        }""",
        "=r,l",
        [flag_ptr],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def make_small(
    source,  # [M, C]: x or dy
    right,  # [C, r], as (pointer, strides): Aᵀ or B
    small_ptr,  # [M, r] contiguous fp32: p or q
    workspace_ptr,
    s,
    M,
    C,
    r,
    num_tickets,
    rows_a_ticket,  # blocks of rows that a ticket stands for
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    COUNTED: tl.constexpr,  # whether somebody waits for all rows
):
    """Make the rows of p or q that this program draws, and return its first tile."""
    num_rows = tl.cdiv(M, BLOCK_M)
    ticket = take_ticket(workspace_ptr)
    while ticket < num_tickets:
        first = ticket * rows_a_ticket
        for m in tl.range(first, tl.minimum(first + rows_a_ticket, num_rows), num_stages=1):
            not_split = Split(m, 0, 1, small_ptr, workspace_ptr)
            project_tile(
                source, right, small_ptr, not_split, None, s, m * BLOCK_M, 0, M, C, r,
                BLOCK_M, BLOCK_C, BLOCK_R, "ieee",
            )  # fmt: skip
            publish(workspace_ptr + FLAGS + m)
            if COUNTED:
                publish(workspace_ptr + ALL_ROWS)
        ticket = take_ticket(workspace_ptr)
    return ticket - num_tickets


@triton.jit
def add_small(
    acc,  # [BLOCK_M, BLOCK_C] fp32
    small_ptr,  # [M, r] fp32: p or q
    right,  # [r, C], as (pointer, strides): Bᵀ or A
    s,
    row,
    column,
    M,
    C,
    r,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """acc + s small right, as `tile_ops.add_low_rank` rounds it, without a loop."""
    offs_m = row + tl.arange(0, BLOCK_M)
    for rank in tl.static_range(0, BLOCK_R, RANKS):
        small = load_handed_over(small_ptr, offs_m, rank + tl.arange(0, RANKS), M, r)
        right_tile = load_tile(right, rank, column, r, C, RANKS, BLOCK_C)
        acc = tl.dot((small * s).to(DTYPE), right_tile.to(DTYPE), acc)
    return acc


@triton.jit(do_not_specialize=["M", "num_tickets", "rows_a_ticket"])
def flattened_forward_kernel(
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks
    b_ptr,  # [N], or None
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    y,  # [M, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks
    p_ptr,  # [M, r] contiguous fp32
    workspace_ptr,  # int32, zero at launch
    s,
    power,  # of two, which was taken out of s, and its inverse; None for 1
    inverse,
    M,
    N,
    K,
    r,  # at most BLOCK_R
    num_tickets,
    rows_a_ticket,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    """p = x Aᵀ;  y = x Wᵀ + s p Bᵀ + b."""
    tl.assume(K > 0)  # else a loop of its own is made for tiles without steps
    num_rows = tl.cdiv(M, BLOCK_M)
    num_columns = tl.cdiv(N, BLOCK_N)
    first = make_small(
        x, (A[0], A[2], A[1]), p_ptr, workspace_ptr, 1.0, M, K, r, num_tickets, rows_a_ticket,
        BLOCK_M, BLOCK_K, BLOCK_R, False,
    )  # fmt: skip
    for tile in tl.range(first, num_rows * num_columns, tl.num_programs(0), flatten=True):
        m, n = grouped_order(tile, num_rows, num_columns, GROUP)
        row, column = m * BLOCK_M, n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in tl.range(0, K, BLOCK_K):
            acc = tl.dot(x.load([row, k]), W.load([column, k]).T, acc)
        if inverse is not None:
            acc *= inverse
        wait_for_flag(workspace_ptr + FLAGS + m)
        B_t = (B[0], B[2], B[1])
        acc = add_small(acc, p_ptr, B_t, s, row, column, M, N, r, BLOCK_M, BLOCK_N, BLOCK_R, x.dtype)
        if power is not None:
            acc *= power
        if b_ptr is not None:
            offs_n = column + tl.arange(0, BLOCK_N)
            acc += tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
        store_tile(y, acc, row, column, M, N, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["M", "num_tickets", "rows_a_ticket"])
def flattened_backward_kernel(
    dy,  # [M, N]: a descriptor of [BLOCK_M, BLOCK_N] blocks
    x,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_N] blocks
    W,  # [N, K]: a descriptor of [BLOCK_N, BLOCK_K] blocks
    A,  # [r, K], as (pointer, strides)
    B,  # [N, r], as (pointer, strides)
    p_ptr,  # [M, r] contiguous fp32
    q_ptr,  # [M, r] contiguous fp32, scratch
    dx,  # [M, K]: a descriptor of [BLOCK_M, BLOCK_K] blocks
    dA_ptr,  # [r, K] contiguous
    dB_ptr,  # [N, r] contiguous
    workspace_ptr,  # int32, zero at launch
    s,
    M,
    N,
    K,
    r,  # at most BLOCK_R
    num_tickets,
    rows_a_ticket,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    """q = s dy B;  dx = dy W + q A;  then dB = s dyᵀ p and dA = qᵀ x, by those that have no tile left."""
    tl.assume(N > 0)
    num_rows = tl.cdiv(M, BLOCK_M)
    num_columns = tl.cdiv(K, BLOCK_K)
    first = make_small(
        dy, B, q_ptr, workspace_ptr, s, M, N, r, num_tickets, rows_a_ticket, BLOCK_M, BLOCK_N, BLOCK_R, True
    )
    for tile in tl.range(first, num_rows * num_columns, tl.num_programs(0), flatten=True):
        m, k = grouped_order(tile, num_rows, num_columns, GROUP)
        row, column = m * BLOCK_M, k * BLOCK_K
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for n in tl.range(0, N, BLOCK_N):
            acc = tl.dot(dy.load([row, n]), W.load([n, column]), acc)
        wait_for_flag(workspace_ptr + FLAGS + m)
        acc = add_small(acc, q_ptr, A, 1.0, row, column, M, K, r, BLOCK_M, BLOCK_K, BLOCK_R, dy.dtype)
        store_tile(dx, acc, row, column, M, K, BLOCK_M, BLOCK_K)
    num_dB = tl.cdiv(N, BLOCK_N)
    ticket = take_ticket(workspace_ptr + GRADIENTS)
    while ticket < num_dB + tl.cdiv(K, BLOCK_N):
        not_split = Split(ticket, 0, 1, p_ptr, workspace_ptr)
        if ticket < num_dB:
            gradient_tile(
                dy, p_ptr, (dB_ptr, r, 1), not_split, None, s, ticket * BLOCK_N, 0, M, N, r,
                BLOCK_M, BLOCK_N, BLOCK_R, "ieee",
            )  # fmt: skip
        else:
            wait_for(workspace_ptr + ALL_ROWS, num_rows)
            gradient_tile(
                x, q_ptr, (dA_ptr, 1, K), not_split, None, 1.0, (ticket - num_dB) * BLOCK_N, 0, M, K, r,
                BLOCK_M, BLOCK_N, BLOCK_R, "ieee",
            )  # fmt: skip
        ticket = take_ticket(workspace_ptr + GRADIENTS)
