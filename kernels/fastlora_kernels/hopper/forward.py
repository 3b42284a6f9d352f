"""The forward kernel for sm_90: y = x Wᵀ + s p Bᵀ + b and p = x Aᵀ, persistent, in one launch."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from fastlora_kernels.hopper.order import place_of
from fastlora_kernels.hopper.output_tile import load_output_tile, output_tile
from fastlora_kernels.hopper.ring import Ring, hand_out, make_mail, make_ring_barriers, take


@gluon.jit
def load_forward(
    operands,
    ring,
    mail,
    ticket_ptr,
    sizes,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The loading warp: draw tickets, and fill the ring with what their tiles take."""
    M, N, K = sizes
    num_rows = gl.cdiv(M, BLOCK_M)
    num_columns = gl.cdiv(N, BLOCK_C)
    slot = 0
    phase = 1  # an empty ring counts as released once
    count = 0
    ticket = hand_out(ticket_ptr, mail, count)
    while ticket < num_rows * num_columns:
        m, n = place_of(ticket, num_rows, num_columns, GROUP)
        slot, phase = load_output_tile(
            operands, ring, slot, phase, m, n, K, BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, STAGES, True
        )
        count += 1
        ticket = hand_out(ticket_ptr, mail, count)


@gluon.jit
def multiply_forward(
    y,
    stages,
    ring,
    mail,
    workspace_ptr,
    p_ptr,
    b_ptr,
    scales,  # s, power and inverse
    sizes,  # M, N, K, r
    HALF: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STORE: gl.constexpr,
    BUFFERS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A multiplying group: its half of each tile."""
    num_rows = gl.cdiv(sizes[0], 2 * ROWS)
    num_columns = gl.cdiv(sizes[1], BLOCK_C)
    slot = 0
    phase = 0
    count = 0
    ticket = take(mail, count)
    while ticket < num_rows * num_columns:
        m, n = place_of(ticket, num_rows, num_columns, GROUP)
        if n == 0:
            slot, phase = output_tile(
                y, stages, ring, slot, phase, m, n, workspace_ptr, p_ptr, None, b_ptr, scales, sizes,
                HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, STAGES, True, True,
            )  # fmt: skip
        else:
            slot, phase = output_tile(
                y, stages, ring, slot, phase, m, n, workspace_ptr, p_ptr, None, b_ptr, scales, sizes,
                HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, STAGES, False, True,
            )  # fmt: skip
        count += 1
        ticket = take(mail, count)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def hopper_forward_kernel(
    x,  # descriptor of [M, K], blocks of [BLOCK_M, STEP]
    W,  # descriptor of [N, K], blocks of [BLOCK_C, STEP]
    A,  # descriptor of TERMS matrices [BLOCK_R, K] in x's dtype, one below the other; blocks [BLOCK_R, STEP]
    B,  # descriptor of [N, r] in x's dtype, blocks as W's
    y,  # descriptor of [M, N], blocks of [BLOCK_M / 2, STORE]
    b_ptr,  # [N], or None
    p_ptr,  # [M, r] contiguous fp32
    workspace_ptr,  # int32, zero at launch: see `order`
    s,
    power,  # s times it is the scale of p; None for 1
    inverse,  # of power
    M,
    N,
    K,
    r,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STORE: gl.constexpr,
    BUFFERS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    MULTIPLY_REGISTERS: gl.constexpr,
    LOAD_REGISTERS: gl.constexpr,
):
    """p = x Aᵀ;  y = x Wᵀ + s p Bᵀ + b. Any number of programs."""
    ROWS: gl.constexpr = BLOCK_M // 2
    x_ring = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, STEP], x.layout)
    W_ring = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_C, STEP], W.layout)
    A_ring = gl.allocate_shared_memory(x.dtype, [STAGES * TERMS, BLOCK_R, STEP], A.layout)
    # Where a tile of each group waits to be stored.
    upper = gl.allocate_shared_memory(x.dtype, [BUFFERS, ROWS, STORE], y.layout)
    lower = gl.allocate_shared_memory(x.dtype, [BUFFERS, ROWS, STORE], y.layout)
    full, empty = make_ring_barriers(STAGES)
    mail = make_mail()
    ring = Ring(x_ring, W_ring, A_ring, full, empty)
    sizes = (M, N, K, r)
    scales = (s, power, inverse)
    gl.warp_specialize(
        [
            (multiply_forward, (
                y, upper, ring, mail, workspace_ptr, p_ptr, b_ptr, scales, sizes,
                0, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, GROUP, STAGES,
            )),
            (multiply_forward, (
                y, lower, ring, mail, workspace_ptr, p_ptr, b_ptr, scales, sizes,
                1, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, GROUP, STAGES,
            )),
            (load_forward, (
                (x, W, A, B), ring, mail, workspace_ptr, (M, N, K),
                BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
            )),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip
