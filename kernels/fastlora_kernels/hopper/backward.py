"""The backward kernel for sm_90: q = s dy B, dx = dy W + q A, dB = s dyᵀ p and dA = qᵀ x, in one launch."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from fastlora_kernels.hopper.gradient_tile import gradient_tile, load_gradient_tile
from fastlora_kernels.hopper.handover import wait_for
from fastlora_kernels.hopper.order import ALL_ROWS, backward_task, place_of
from fastlora_kernels.hopper.output_tile import load_output_tile, output_tile
from fastlora_kernels.hopper.ring import Ring, hand_out, make_mail, make_ring_barriers, take


@gluon.jit
def load_backward(
    operands,
    x,
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
    num_columns = gl.cdiv(K, BLOCK_C)
    num_dB = gl.cdiv(N, 2 * STEP)
    num_gradients = num_dB + gl.cdiv(K, 2 * STEP)
    slot = 0
    phase = 1  # an empty ring counts as released once
    count = 0
    ticket = hand_out(ticket_ptr, mail, count)
    while ticket < num_rows * num_columns + num_gradients:
        is_gradient, tile = backward_task(ticket, num_rows, num_columns, num_gradients)
        if is_gradient:
            if tile < num_dB:
                slot, phase = load_gradient_tile(
                    operands[0], ring, slot, phase, tile * (2 * STEP), M, BLOCK_M, BLOCK_C, STEP, STAGES
                )
            else:
                column = (tile - num_dB) * (2 * STEP)
                slot, phase = load_gradient_tile(
                    x, ring, slot, phase, column, M, BLOCK_M, BLOCK_C, STEP, STAGES
                )
        else:
            m, k = place_of(tile, num_rows, num_columns, GROUP)
            slot, phase = load_output_tile(
                operands, ring, slot, phase, m, k, N, BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, STAGES, False
            )
        count += 1
        ticket = hand_out(ticket_ptr, mail, count)


@gluon.jit
def multiply_backward(
    dx,
    gradients,  # pointers of p, q, dA and dB
    stage,
    ring,
    mail,
    workspace_ptr,
    s,
    sizes,  # M, N, K, r
    HALF: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STORE: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
):
    """A multiplying group: its half of each tile."""
    M, N, K, r = sizes
    p_ptr, q_ptr, dA_ptr, dB_ptr = gradients
    num_rows = gl.cdiv(M, 2 * ROWS)
    num_columns = gl.cdiv(K, BLOCK_C)
    num_dB = gl.cdiv(N, 2 * STEP)
    num_gradients = num_dB + gl.cdiv(K, 2 * STEP)
    scales = (s, None, None)
    dx_sizes = (M, K, N, r)
    slot = 0
    phase = 0
    count = 0
    ticket = take(mail, count)
    while ticket < num_rows * num_columns + num_gradients:
        is_gradient, tile = backward_task(ticket, num_rows, num_columns, num_gradients)
        if is_gradient:
            if tile < num_dB:
                slot, phase = gradient_tile(
                    (dB_ptr, r, 1), stage, ring, slot, phase, p_ptr, s, tile * (2 * STEP), M, N, r,
                    HALF, 2 * ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, STAGES, BUFFERS,
                )  # fmt: skip
            else:
                wait_for(workspace_ptr + ALL_ROWS, 2 * num_rows)
                column = (tile - num_dB) * (2 * STEP)
                slot, phase = gradient_tile(
                    (dA_ptr, 1, K), stage, ring, slot, phase, q_ptr, 1.0, column, M, K, r,
                    HALF, 2 * ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, STAGES, BUFFERS,
                )  # fmt: skip
        else:
            m, k = place_of(tile, num_rows, num_columns, GROUP)
            if k == 0:
                slot, phase = output_tile(
                    dx, stage, ring, slot, phase, m, k, workspace_ptr, q_ptr, None, scales, dx_sizes,
                    HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, STAGES, True, False,
                )  # fmt: skip
            else:
                slot, phase = output_tile(
                    dx, stage, ring, slot, phase, m, k, workspace_ptr, q_ptr, None, scales, dx_sizes,
                    HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, STAGES, False, False,
                )  # fmt: skip
        count += 1
        ticket = take(mail, count)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def hopper_backward_kernel(
    dy,  # descriptor of [M, N], blocks of [BLOCK_M, STEP]
    x,  # descriptor of [M, K], blocks as dy's
    W,  # descriptor of [N, K], blocks of [STEP, BLOCK_C]
    A,  # descriptor of [r, K] in x's dtype, blocks as W's
    B,  # descriptor of TERMS matrices [N, r] of x's dtype, one below the other, each padded to whole steps
    dx,  # descriptor of [M, K], blocks of [BLOCK_M / 2, STORE]
    p_ptr,  # [M, r] contiguous fp32
    q_ptr,  # [M, r] contiguous fp32, scratch
    dA_ptr,  # [r, K] contiguous
    dB_ptr,  # [N, r] contiguous
    workspace_ptr,  # int32, zero at launch: see `order`
    s,
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
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
    MULTIPLY_REGISTERS: gl.constexpr,
    LOAD_REGISTERS: gl.constexpr,
):
    """q = s dy B;  dB = s dyᵀ p;  dA = qᵀ x;  dx = dy W + q A. Any number of programs."""
    ROWS: gl.constexpr = BLOCK_M // 2
    dy_ring = gl.allocate_shared_memory(dy.dtype, [STAGES, BLOCK_M, STEP], dy.layout)
    W_ring = gl.allocate_shared_memory(dy.dtype, [STAGES, STEP, BLOCK_C], W.layout)
    B_ring = gl.allocate_shared_memory(dy.dtype, [STAGES * TERMS, STEP, BLOCK_R], B.layout)
    stages = gl.allocate_shared_memory(dy.dtype, [2, ROWS, STORE], dx.layout)
    full, empty = make_ring_barriers(STAGES)
    mail = make_mail()
    ring = Ring(dy_ring, W_ring, B_ring, full, empty)
    gradients = (p_ptr, q_ptr, dA_ptr, dB_ptr)
    sizes = (M, N, K, r)
    gl.warp_specialize(
        [
            (multiply_backward, (
                dx, gradients, stages.index(0), ring, mail, workspace_ptr, s, sizes,
                0, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, GROUP, STAGES, BUFFERS,
            )),
            (multiply_backward, (
                dx, gradients, stages.index(1), ring, mail, workspace_ptr, s, sizes,
                1, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, GROUP, STAGES, BUFFERS,
            )),
            (load_backward, (
                (dy, W, B, A), x, ring, mail, workspace_ptr, (M, N, K),
                BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
            )),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip
