"""Tickets, the order of tiles, and the hand-over of p and q between programs of one launch.

Every program draws a ticket when it starts, so tickets count programs in the order in which they start,
whatever order the hardware dispatches them in. A task waits only for tasks with smaller tickets: those have
started and run to their end without waiting for it, so no choice of grid or residency can deadlock.
"""

import triton
import triton.language as tl


@triton.jit
def take_ticket(ticket_ptr):
    """The number of programs of this launch that started before this one."""
    # Relaxed: a ticket orders starts, it hands over no data.
    return tl.atomic_add(ticket_ptr, 1, sem="relaxed")


@triton.jit
def publish(flag_ptr):
    """Count one tile of these rows as stored; call it after its stores."""
    # Every thread's stores come before the barrier, one thread's release after it: together they order the
    # whole tile before the count.
    tl.debug_barrier()
    tl.atomic_add(flag_ptr, 1, sem="release")


@triton.jit
def wait_for(flag_ptr, count):
    """Return once `count` tiles of these rows are stored; read them with cache_modifier=".cg"."""
    # An atomic add of 0 compiles to a plain acquiring load. L1 is not coherent, hence ".cg" at the readers.
    ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    while ready < count:
        ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def grouped_order(tile, num_rows, num_columns, GROUP: tl.constexpr):
    """(row, column) of the tile-th output tile, column by column within bands of GROUP rows.

    Programs that run at one time then share rows of one operand and columns of the other in L2.
    """
    per_band = GROUP * num_columns
    first = (tile // per_band) * GROUP
    height = tl.minimum(num_rows - first, GROUP)
    within = tile % per_band
    return first + within % height, within // height
