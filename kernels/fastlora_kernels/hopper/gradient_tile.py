"""A tile of dB or dA: columns of dy or x, transposed, times p or q, over a band of rows after the other.

The two groups have neighbouring columns. Blocks of the first one's come into the ring where dy's block of a
dx tile lies, those of the second where W's does, and behind them those of p or q, in terms of 16 bits.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from fastlora_kernels.hopper.handover import load_part, part_of, publish, wait_for
from fastlora_kernels.hopper.names import load_async, reinterpret
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
def terms_of(
    ring, slot, BLOCK_M: gl.constexpr, BLOCK_C: gl.constexpr, STEP: gl.constexpr, BLOCK_R: gl.constexpr
):
    """The terms of p or q in a slot, [.., BLOCK_M, BLOCK_R]: behind the second group's block."""
    layout: gl.constexpr = gl.NVMMASharedLayout(min(128, 2 * BLOCK_R), 16, 2)
    BEHIND: gl.constexpr = STEP // BLOCK_R
    shape: gl.constexpr = [BLOCK_C * STEP // (BLOCK_M * BLOCK_R), BLOCK_M, BLOCK_R]
    return reinterpret(ring.W.index(slot), shape, layout), BEHIND


@gluon.jit
def load_gradient_tile(
    source,  # descriptor of dy or x, blocks of [BLOCK_M, STEP]
    terms,  # descriptor of the terms of q, then of p, each padded to whole blocks of rows
    first,  # of terms, the first one
    ring,
    slot,
    phase,
    column,
    M,
    band,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fill the ring with two blocks of columns and the terms of p or q, for a band of rows."""
    rows = gl.cdiv(M, BLOCK_M) * BLOCK_M
    for row in range(band * (GROUP * BLOCK_M), gl.minimum(M, (band + 1) * (GROUP * BLOCK_M)), BLOCK_M):
        mbarrier.wait(ring.empty.index(slot), phase)
        mbarrier.expect(ring.full.index(slot), BLOCK_M * (2 * STEP + TERMS * BLOCK_R) * 2)
        for half in gl.static_range(2):
            block = block_of(ring, slot, half, BLOCK_M, BLOCK_C, STEP)
            load_async(source, [row, column + half * STEP], ring.full.index(slot), block)
        small, behind = terms_of(ring, slot, BLOCK_M, BLOCK_C, STEP, BLOCK_R)
        for term in gl.static_range(TERMS):
            load_async(
                terms, [(first + term) * rows + row, 0], ring.full.index(slot), small.index(behind + term)
            )
        slot, phase = step_on(slot, phase, STAGES)
    return slot, phase


@gluon.jit
def gradient_tile(
    out,  # [C, r] as (pointer, strides): dB or dAᵀ
    sums,  # pointers of the group's sum so far, [STEP, BLOCK_R] fp32, and of how many bands are in it
    ring,
    slot,
    phase,
    s,
    column,
    band,
    M,
    C,
    r,
    HALF: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_C: gl.constexpr,
    STEP: gl.constexpr,
    BLOCK_R: gl.constexpr,
    TERMS: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """out[column:, :] = s sourceᵀ small for a group's STEP columns; a band adds to the sum so far."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_R, 16])
    sums_ptr, bands_ptr = sums
    acc = gl.zeros([STEP, BLOCK_R], gl.float32, layout)
    start = band * (GROUP * BLOCK_M)
    stop = gl.minimum(M, start + GROUP * BLOCK_M)
    for row in range(start, stop, BLOCK_M):
        mbarrier.wait(ring.full.index(slot), phase)
        block = block_of(ring, slot, HALF, BLOCK_M, BLOCK_C, STEP).permute((1, 0))
        small, behind = terms_of(ring, slot, BLOCK_M, BLOCK_C, STEP, BLOCK_R)
        for term in gl.static_range(TERMS):
            acc = warpgroup_mma(block, small.index(behind + term), acc, is_async=True)
        # The products of the step before are done, and this step's run on.
        acc = warpgroup_mma_wait(TERMS, deps=[acc])
        mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1, pred=row > start)
        slot, phase = step_on(slot, phase, STAGES)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(ring.empty.index(step_back(slot, STAGES)), count=1)
    if band > 0:
        # Added here: with an accumulator that is loaded, ptxas lets no two products of the kernel overlap.
        wait_for(bands_ptr, band)
        acc += load_part(sums_ptr, 0, STEP, BLOCK_R, layout, STEP, BLOCK_R)
    if stop < M:
        pointers, _ = part_of(sums_ptr, 0, STEP, BLOCK_R, layout, STEP, BLOCK_R)
        gl.store(pointers, acc)
        publish(bands_ptr)
    else:
        out_ptr, stride_c, stride_r = out
        offs_c = column + HALF * STEP + gl.arange(0, STEP, gl.SliceLayout(1, layout))
        offs_r = gl.arange(0, BLOCK_R, gl.SliceLayout(0, layout))
        offsets = offs_c.to(gl.int64)[:, None] * stride_c + offs_r.to(gl.int64)[None, :] * stride_r
        inside = (offs_c < C)[:, None] & (offs_r < r)[None, :]
        gl.store(out_ptr + offsets, (acc * s).to(out_ptr.dtype.element_ty), mask=inside)
    return slot, phase
