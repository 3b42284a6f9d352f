"""Tickets: how a program finds its task (see `tasks.py`).

Every program draws a ticket when it starts. So tickets number programs in the order in which they start,
whatever order the hardware dispatches them in. A task waits only for tasks with smaller tickets. Those have
started, and do not wait for it, so no grid size or occupancy can deadlock.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton import knobs


def on_device(count: Callable[..., Any]) -> Any:
    """A function of tasks.py, jitted so that device code can call it.

    Unchanged for the interpreter, which runs it as Python and cannot jit code of a module without Triton.
    """
    return count if knobs.runtime.interpret else triton.jit(count)


@triton.jit
def take_ticket(ticket_ptr):
    """The number of programs of this launch that started before this one."""
    # Relaxed, because no data is handed over by it.
    return tl.atomic_add(ticket_ptr, 1, sem="relaxed")


@triton.jit
def grouped_order(tile, num_rows, num_columns, GROUP: tl.constexpr):
    """(row, column) of the tile-th output tile, column by column within groups of GROUP rows of tiles.

    Programs that run at the same time then share rows of one operand and columns of the other in L2.
    """
    per_band = GROUP * num_columns
    first = (tile // per_band) * GROUP
    height = tl.minimum(num_rows - first, GROUP)
    within = tile % per_band
    return first + within % height, within // height
