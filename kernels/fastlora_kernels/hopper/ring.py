"""The ring of stages between the loading warp and the multiplying groups, and the mailbox of tickets.

Each slot of the ring has two mbarriers: `full` completes when its bytes have come, `empty` when both groups
have released it. The ring runs on from tile to tile, so that loads of the next one are under way in an
epilogue. The mailbox has two slots, filled and drained in the same way: the loading warp draws tickets ahead.
"""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

GROUPS = gl.constexpr(2)  # that multiply
_LETTERS = gl.constexpr(2)


class Ring(NamedTuple):
    """The ring in shared memory.

    Attributes:
        source: [STAGES, BLOCK_M, STEP] of x or dy.
        W: [STAGES, BLOCK_C, STEP], backward [STAGES, STEP, BLOCK_C].
        shrink: [STAGES * TERMS, BLOCK_R, STEP] of A; backward [STAGES * TERMS, STEP, BLOCK_R] of B.
        full: An mbarrier for each slot.
        empty: The same.
    """

    source: object
    W: object
    shrink: object
    full: object
    empty: object


@gluon.jit
def make_ring_barriers(STAGES: gl.constexpr):
    """(full, empty) of a ring."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    return full, empty


@gluon.jit
def make_mail():
    """(tickets, filled, drained) of a mailbox."""
    tickets = gl.allocate_shared_memory(gl.int32, [_LETTERS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    filled = gl.allocate_shared_memory(gl.int64, [_LETTERS, 1], mbarrier.MBarrierLayout())
    drained = gl.allocate_shared_memory(gl.int64, [_LETTERS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(_LETTERS):
        mbarrier.init(filled.index(i), count=1)
        mbarrier.init(drained.index(i), count=GROUPS)
    return tickets, filled, drained


@gluon.jit
def step_on(slot, phase, STAGES: gl.constexpr):
    """(the next slot of the ring, the parity of its next completion)."""
    is_last = slot == STAGES - 1
    return gl.where(is_last, 0, slot + 1), gl.where(is_last, phase ^ 1, phase)


@gluon.jit
def step_back(slot, STAGES: gl.constexpr):
    """The slot before this one.

    Computed, and not kept in a variable that starts as `slot`: Triton 3.6.0 and 3.9.0 take such an alias for
    invariant in the loop.
    """
    return gl.where(slot == 0, STAGES - 1, slot - 1)


@gluon.jit
def hand_out(ticket_ptr, mail, count):
    """Draw the ticket after `count` others and put it into the mailbox; the loading warp calls it."""
    tickets, filled, drained = mail
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    # Relaxed, because no data is handed over by it.
    ticket = gl.atomic_add(ticket_ptr, 1, sem="relaxed")
    # An empty mailbox counts as drained once, hence the other parity.
    mbarrier.wait(drained.index(count & 1), ((count >> 1) & 1) ^ 1)
    tickets.index(count & 1).store(gl.full([1], ticket, gl.int32, one))
    mbarrier.arrive(filled.index(count & 1), count=1)
    return ticket


@gluon.jit
def take(mail, count):
    """The ticket after `count` others; each multiplying group calls it."""
    tickets, filled, drained = mail
    one: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    mbarrier.wait(filled.index(count & 1), (count >> 1) & 1)
    ticket = gl.max(tickets.index(count & 1).load(one), 0)
    mbarrier.arrive(drained.index(count & 1), count=1)
    return ticket
