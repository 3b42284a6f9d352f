"""The backward kernel for sm_90: q = s dy B, dx = dy W + q A, dB = s dyᵀ p and dA = qᵀ x, in one launch."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from fastlora_kernels.hopper.gradient_tile import gradient_tile, load_gradient_tile
from fastlora_kernels.hopper.handover import fence_proxy, wait_for
from fastlora_kernels.hopper.order import ALL_ROWS, FLAGS, backward_task, band_of
from fastlora_kernels.hopper.output_tile import load_output_tile, output_tile
from fastlora_kernels.hopper.ring import Ring, hand_out, make_mail, make_ring_barriers, take


@gluon.jit
def load_backward(
    operands,
    x,
    terms,
    ring,
    mail,
    workspace_ptr,
    sizes,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The loading warp: draw tickets, and fill the ring with what the tiles take."""
    M, N, K = sizes
    num_rows = gl.cdiv(M, BLOCK_M)
    num_columns = gl.cdiv(K, BLOCK_C)
    num_dx = num_rows * num_columns
    num_dB = gl.cdiv(N, 2 * STEP)
    num_gradients = num_dB + gl.cdiv(K, 2 * STEP)
    num_bands = gl.cdiv(num_rows, GROUP)
    slot = 0
    phase = 1  # an empty ring counts as released once
    count = 0
    ticket = hand_out(workspace_ptr, mail, count)
    while ticket < num_dx + num_bands * num_gradients:
        m, k, gradient = backward_task(ticket, num_rows, num_columns, num_gradients, GROUP)
        if gradient >= 0:
            band = band_of(ticket, num_rows, num_columns, num_gradients, GROUP)
            wait_for(workspace_ptr + ALL_ROWS, 2 * num_rows)
            fence_proxy()
            if gradient < num_dB:
                slot, phase = load_gradient_tile(
                    operands[0], terms, TERMS, ring, slot, phase, gradient * (2 * STEP), M, band,
                    BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
                )  # fmt: skip
            else:
                slot, phase = load_gradient_tile(
                    x, terms, 0, ring, slot, phase, (gradient - num_dB) * (2 * STEP), M, band,
                    BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
                )  # fmt: skip
        else:
            slot, phase = load_output_tile(
                operands, ring, slot, phase, m, k, N, BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, STAGES, False
            )
        count += 1
        ticket = hand_out(workspace_ptr, mail, count)


@gluon.jit
def multiply_backward(
    dx,
    pointers,  # of p, the terms of q and p, the sums so far, dA and dB
    stages,
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
    p_ptr, terms_ptr, sums_ptr, dA_ptr, dB_ptr = pointers
    num_rows = gl.cdiv(M, 2 * ROWS)
    num_columns = gl.cdiv(K, BLOCK_C)
    num_dx = num_rows * num_columns
    num_dB = gl.cdiv(N, 2 * STEP)
    num_gradients = num_dB + gl.cdiv(K, 2 * STEP)
    num_bands = gl.cdiv(num_rows, GROUP)
    scales = (s, None, None)
    dx_sizes = (M, K, N, r)
    slot = 0
    phase = 0
    count = 0
    ticket = take(mail, count)
    while ticket < num_dx + num_bands * num_gradients:
        m, k, gradient = backward_task(ticket, num_rows, num_columns, num_gradients, GROUP)
        if gradient >= 0:
            band = band_of(ticket, num_rows, num_columns, num_gradients, GROUP)
            part = 2 * gradient + HALF
            sums = (sums_ptr + part * (STEP * BLOCK_R), workspace_ptr + FLAGS + 2 * num_rows + part)
            if gradient < num_dB:
                slot, phase = gradient_tile(
                    (dB_ptr, r, 1), sums, ring, slot, phase, s, gradient * (2 * STEP), band, M, N, r,
                    HALF, 2 * ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
                )  # fmt: skip
            else:
                slot, phase = gradient_tile(
                    (dA_ptr, 1, K), sums, ring, slot, phase, 1.0, (gradient - num_dB) * (2 * STEP), band, M,
                    K, r, HALF, 2 * ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
                )  # fmt: skip
        else:
            if k == 0:
                slot, phase = output_tile(
                    dx, stages, ring, slot, phase, m, k, workspace_ptr, terms_ptr, p_ptr, None, scales,
                    dx_sizes, HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, STAGES, True, False,
                )  # fmt: skip
            else:
                slot, phase = output_tile(
                    dx, stages, ring, slot, phase, m, k, workspace_ptr, terms_ptr, p_ptr, None, scales,
                    dx_sizes, HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, BUFFERS, STAGES, False, False,
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
    terms,  # descriptor of what terms_ptr is, blocks of [BLOCK_M, BLOCK_R]
    p_ptr,  # [M, r] contiguous fp32
    terms_ptr,  # scratch for q, then p, in terms of x's dtype: matrices [whole blocks of rows, BLOCK_R]
    sums_ptr,  # scratch, fp32: for each group's part of each tile of dB, then dA, [STEP, BLOCK_R]
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
    # Where a tile of each group waits to be stored.
    upper = gl.allocate_shared_memory(dy.dtype, [BUFFERS, ROWS, STORE], dx.layout)
    lower = gl.allocate_shared_memory(dy.dtype, [BUFFERS, ROWS, STORE], dx.layout)
    full, empty = make_ring_barriers(STAGES)
    mail = make_mail()
    ring = Ring(dy_ring, W_ring, B_ring, full, empty)
    pointers = (p_ptr, terms_ptr, sums_ptr, dA_ptr, dB_ptr)
    sizes = (M, N, K, r)
    gl.warp_specialize(
        [
            (multiply_backward, (
                dx, pointers, upper, ring, mail, workspace_ptr, s, sizes,
                0, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, GROUP, STAGES, BUFFERS,
            )),
            (multiply_backward, (
                dx, pointers, lower, ring, mail, workspace_ptr, s, sizes,
                1, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STORE, GROUP, STAGES, BUFFERS,
            )),
            (load_backward, (
                (dy, W, B, A), x, terms, ring, mail, workspace_ptr, (M, N, K),
                BLOCK_M, BLOCK_C, STEP, BLOCK_R, TERMS, GROUP, STAGES,
            )),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip
