"""A tile of y or dx: the loads of the loading warp, and a multiplying group's half of it.

Both directions are one: small = source shrink, out = source W + small grow. Forward, source is x, W lies as
[C, inner], shrink is A, grow is B, small is p, out is y. Backward, source is dy, W as [inner, C], shrink is
B, grow A, small q and out dx. The sum is over `inner`, K or N, and C are the columns of out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fastlora_kernels.hopper.handover import fence_proxy, load_part, part_of, publish, store_terms, wait_for
from fastlora_kernels.hopper.names import load_async, store_async
from fastlora_kernels.hopper.order import ALL_ROWS, FLAGS
from fastlora_kernels.hopper.ring import step_back, step_on


@gluon.jit
def load_output_tile(
    operands,  # descriptors of source, W, shrink and grow
    ring,
    slot,
    phase,
    m,
    c,
    inner,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STAGES: gl.constexpr,
    FORWARD: gl.constexpr,
):
    """Fill the ring with what a tile takes: a slot for each step, and one with grow."""
    source, W, shrink, grow = operands
    is_first = c == 0
    # The terms of shrink lie one below the other. What lies beyond a matrix is read as zero.
    pitch = BLOCK_R if FORWARD else gl.cdiv(inner, STEP) * STEP
    for k in range(0, inner, STEP):
        mbarrier.wait(ring.empty.index(slot), phase)
        mbarrier.expect(ring.full.index(slot), (BLOCK_M + BLOCK_C) * STEP * 2, pred=c > 0)
        mbarrier.expect(
            ring.full.index(slot), (BLOCK_M + BLOCK_C + TERMS * BLOCK_R) * STEP * 2, pred=is_first
        )
        load_async(source, [m * BLOCK_M, k], ring.full.index(slot), ring.source.index(slot))
        load_async(
            W, [c * BLOCK_C, k] if FORWARD else [k, c * BLOCK_C], ring.full.index(slot), ring.W.index(slot)
        )
        for term in gl.static_range(TERMS):
            place = [term * pitch, k] if FORWARD else [term * pitch + k, 0]
            load_async(
                shrink, place, ring.full.index(slot), ring.shrink.index(slot * TERMS + term), pred=is_first
            )
        slot, phase = step_on(slot, phase, STAGES)
    mbarrier.wait(ring.empty.index(slot), phase)
    mbarrier.expect(ring.full.index(slot), BLOCK_C * STEP * 2)
    load_async(
        grow, [c * BLOCK_C, 0] if FORWARD else [0, c * BLOCK_C], ring.full.index(slot), ring.W.index(slot)
    )
    return step_on(slot, phase, STAGES)


@gluon.jit
def inner_first(tile, TRANSPOSED: gl.constexpr):
    """[inner, C] of a tile that lies as [C, inner] where TRANSPOSED."""
    if TRANSPOSED:
        tile = tile.permute((1, 0))
    return tile


@gluon.jit
def multiply(
    ring,
    slot,
    phase,
    inner,
    HALF: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STAGES: gl.constexpr,
    FIRST: gl.constexpr,
    FORWARD: gl.constexpr,
):
    """The main loop: (source W, source shrink where FIRST, slot, phase).

    The last products are left running, and their slot is not released.
    """
    warps: gl.constexpr = [gl.num_warps(), 1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps, [16, BLOCK_C, 16])
    small_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps, [16, BLOCK_R, 16])
    acc = gl.zeros([ROWS, BLOCK_C], gl.float32, layout)
    small = gl.zeros([ROWS, BLOCK_R], gl.float32, small_layout)
    for k in range(0, inner, STEP):
        mbarrier.wait(ring.full.index(slot), phase)
        source_tile = ring.source.index(slot).slice(HALF * ROWS, ROWS)
        if FIRST:
            for term in gl.static_range(TERMS):
                shrink_tile = inner_first(ring.shrink.index(slot * TERMS + term), FORWARD)
                small = warpgroup_mma(source_tile, shrink_tile, small, is_async=True)
        acc = warpgroup_mma(source_tile, inner_first(ring.W.index(slot), FORWARD), acc, is_async=True)
        if FIRST:
            acc, small = warpgroup_mma_wait(1 + TERMS, deps=[acc, small])
        else:
            acc = warpgroup_mma_wait(1, deps=[acc])
        # The products of the step before are done, and this step's run on.
        mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1, pred=k > 0)
        slot, phase = step_on(slot, phase, STAGES)
    return acc, small, slot, phase


@gluon.jit
def halves(tile, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """The left and the right half of a [ROWS, COLUMNS] tile."""
    return gl.split(gl.permute(gl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@gluon.jit
def store(
    out,
    stages,  # [BUFFERS, ROWS, STORE]
    acc,
    row,
    column,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STORE: gl.constexpr,
    BUFFERS: gl.constexpr,
    FIRST: gl.constexpr,
):
    """out[row:, column:] = acc, STORE columns after the other, and leave the last stores running.

    FIRST is the number of the first of these parts: they take turns at the buffers.
    """
    if COLUMNS == STORE:
        # The store before in this buffer must have left it.
        tma.store_wait(BUFFERS - 1)
        stage = stages.index(FIRST % BUFFERS)
        stage.store(acc.to(out.dtype))
        fence_async_shared()
        store_async(out, [row, column], stage)
    else:
        HALF: gl.constexpr = COLUMNS // 2
        PARTS: gl.constexpr = HALF // STORE
        left, right = halves(acc, ROWS, COLUMNS)
        store(out, stages, left, row, column, ROWS, HALF, STORE, BUFFERS, FIRST)
        store(out, stages, right, row, column + HALF, ROWS, HALF, STORE, BUFFERS, FIRST + PARTS)


@gluon.jit
def output_tile(
    out,
    stages,  # [BUFFERS, ROWS, STORE]
    ring,
    slot,
    phase,
    m,
    c,
    workspace_ptr,
    small_ptr,  # forward p, [M, r] contiguous fp32; backward the terms of q, see `terms`
    p_ptr,  # backward p, as forward; else None
    b_ptr,  # None backward, and without a bias
    scales,  # s, a power of two and its inverse, which are None where they are 1
    sizes,  # M, C, inner, r
    HALF: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STORE: gl.constexpr,
    BUFFERS: gl.constexpr,
    STAGES: gl.constexpr,
    FIRST: gl.constexpr,
    FORWARD: gl.constexpr,
):
    """A group's half of a tile; FIRST makes the same rows of small, and publishes them."""
    s, power, inverse = scales
    M, C, inner, r = sizes
    acc, small, slot, phase = multiply(
        ring, slot, phase, inner, HALF, ROWS, BLOCK_C, STEP, BLOCK_R, TERMS, STAGES, FIRST, FORWARD
    )
    row = m * (2 * ROWS) + HALF * ROWS
    flag_ptr = workspace_ptr + FLAGS + 2 * m + HALF
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_C, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    if b_ptr is not None:
        offs_c = c * BLOCK_C + gl.arange(0, BLOCK_C, gl.SliceLayout(0, layout))
        bias = gl.load(b_ptr + offs_c, mask=offs_c < C, other=0.0)
    if FIRST:
        small = warpgroup_mma_wait(1, deps=[small])
        small_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_R, 16])
        if FORWARD:
            pointers, inside = part_of(small_ptr, row, M, r, small_layout, ROWS, BLOCK_R)
            gl.store(pointers, small, mask=inside)
            publish(flag_ptr)
            small *= s
        else:
            rows = gl.cdiv(M, 2 * ROWS) * (2 * ROWS)
            small *= s
            store_terms(small_ptr, small, row, rows, ROWS, BLOCK_R, TERMS)
            publish(flag_ptr)
            p = load_part(p_ptr, row, M, r, small_layout, ROWS, BLOCK_R)
            store_terms(small_ptr + TERMS * rows * BLOCK_R, p, row, rows, ROWS, BLOCK_R, TERMS)
            fence_proxy()
            publish(workspace_ptr + ALL_ROWS)
        left = gl.convert_layout(small.to(out.dtype), operand)
    else:
        wait_for(flag_ptr, 1)
        if FORWARD:
            small = load_part(small_ptr, row, M, r, operand, ROWS, BLOCK_R) * s
            left = small.to(out.dtype)
        else:
            left = load_part(small_ptr, row, row + ROWS, BLOCK_R, operand, ROWS, BLOCK_R)
    mbarrier.wait(ring.full.index(slot), phase)
    if inverse is not None:
        acc = warpgroup_mma_wait(0, deps=[acc])
        acc *= inverse
    grow_tile = inner_first(ring.W.index(slot), FORWARD).slice(0, BLOCK_R)
    acc = warpgroup_mma(left, grow_tile, acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1)
    mbarrier.arrive(ring.empty.index(slot), count=1)
    slot, phase = step_on(slot, phase, STAGES)
    if power is not None:
        acc *= power
    if b_ptr is not None:
        acc += bias.to(gl.float32)[None, :]
    store(out, stages, acc, row, c * BLOCK_C, ROWS, BLOCK_C, STORE, BUFFERS, 0)
    return slot, phase
