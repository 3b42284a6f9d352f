"""A tile of dB or dA: columns of dy or x, transposed, times p or q, over all rows in their order.

The two groups have neighbouring columns. Blocks of the first one's come into the ring where dy's block of a
dx tile lies, those of the second where W's does. p and q become 16-bit terms on their way to shared memory,
in the buffer where a dx tile waits to be stored.
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

from fastlora_kernels.hopper.handover import load_part
from fastlora_kernels.hopper.names import load_async, meet, reinterpret
from fastlora_kernels.hopper.ring import step_back, step_on


@gluon.jit
def block_of(
    ring, slot, HALF: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_C: gl.constexpr, STEP: gl.constexpr
):
    """A group's [BLOCK_M, STEP] block of a slot."""
    if HALF == 0:
        block = ring.source.index(slot)
    else:
        shape: gl.constexpr = [BLOCK_C, STEP]
        layout: gl.constexpr = ring.source.layout
        block = reinterpret(ring.W.index(slot), shape, layout).slice(0, BLOCK_M)
    return block


@gluon.jit
def load_gradient_tile(
    source,  # descriptor of dy or x, blocks of [BLOCK_M, STEP]
    ring,
    slot,
    phase,
    column,
    M,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fill the ring with two blocks of columns, for all rows."""
    for row in range(0, M, BLOCK_M):
        mbarrier.wait(ring.empty.index(slot), phase)
        mbarrier.expect(ring.full.index(slot), 2 * BLOCK_M * STEP * 2)
        for half in gl.static_range(2):
            block = block_of(ring, slot, half, BLOCK_M, BLOCK_C, STEP)
            load_async(source, [row, column + half * STEP], ring.full.index(slot), block)
        slot, phase = step_on(slot, phase, STAGES)
    return slot, phase


@gluon.jit
def gradient_tile(
    out,  # [C, r] as (pointer, strides): dB or dAᵀ
    stage,
    ring,
    slot,
    phase,
    small_ptr,  # [M, r] contiguous fp32: p or q, which is there
    s,
    column,
    M,
    C,
    r,
    HALF: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    STORE: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
):
    """out[column:, :] = s sourceᵀ small for a group's STEP columns of source."""
    warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BLOCK_R, 16])
    loaded: gl.constexpr = gl.BlockedLayout([1, 4], [128 // BLOCK_R, BLOCK_R // 4], [warps, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(min(128, 2 * BLOCK_R), 16, 2)
    ROOM: gl.constexpr = BLOCK_M // 2 * STORE // (BLOCK_M * BLOCK_R)
    gl.static_assert(BUFFERS * TERMS <= ROOM)
    shape: gl.constexpr = [ROOM, BLOCK_M, BLOCK_R]
    buffers = reinterpret(stage, shape, shared)
    # The store of the dx tile before must have left the buffer.
    tma.store_wait(0)
    meet()
    # Those of the next rows are fetched ahead, where there are registers for them.
    AHEAD: gl.constexpr = BLOCK_R * TERMS < 64
    acc = gl.zeros([STEP, BLOCK_R], gl.float32, layout)
    if AHEAD:
        small = load_part(small_ptr, 0, M, r, loaded, BLOCK_M, BLOCK_R)
    buffer = 0
    for row in range(0, M, BLOCK_M):
        if not AHEAD:
            small = load_part(small_ptr, row, M, r, loaded, BLOCK_M, BLOCK_R)
        high = small.to(stage.dtype)
        buffers.index(buffer).store(high)
        if TERMS == 2:
            buffers.index(buffer + 1).store((small - high.to(gl.float32)).to(stage.dtype))
        fence_async_shared()
        meet()
        if AHEAD:
            small = load_part(small_ptr, row + BLOCK_M, M, r, loaded, BLOCK_M, BLOCK_R)
        mbarrier.wait(ring.full.index(slot), phase)
        block = block_of(ring, slot, HALF, BLOCK_M, BLOCK_C, STEP).permute((1, 0))
        for term in gl.static_range(TERMS):
            acc = warpgroup_mma(block, buffers.index(buffer + term), acc, is_async=True)
        if BUFFERS == 2:
            # The products of the step before are done, and its buffer is free.
            acc = warpgroup_mma_wait(TERMS, deps=[acc])
            mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1, pred=row > 0)
            buffer = TERMS - buffer
        else:
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(ring.empty.index(slot), count=1)
        slot, phase = step_on(slot, phase, STAGES)
    if BUFFERS == 2:
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1)
    out_ptr, stride_c, stride_r = out
    offs_c = column + HALF * STEP + gl.arange(0, STEP, gl.SliceLayout(1, layout))
    offs_r = gl.arange(0, BLOCK_R, gl.SliceLayout(0, layout))
    offsets = offs_c.to(gl.int64)[:, None] * stride_c + offs_r.to(gl.int64)[None, :] * stride_r
    inside = (offs_c < C)[:, None] & (offs_r < r)[None, :]
    gl.store(out_ptr + offsets, (acc * s).to(out_ptr.dtype.element_ty), mask=inside)
    return slot, phase
