"""From a program to its task: the ticket that it draws, and what `tasks.py` says that ticket stands for.

Every program draws a ticket when it starts, so tickets count programs in the order in which they start,
whatever order the hardware dispatches them in. A task waits only for tasks with smaller tickets: those have
started and run to their end without waiting for it, so no choice of grid or residency can deadlock.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton import knobs


def on_device(count: Callable[..., Any]) -> Any:
    """A function of tasks.py for device code to call.

    The interpreter runs it as it stands: it refuses to make device code of what does not import Triton.
    """
    return count if knobs.runtime.interpret else triton.jit(count)


@triton.jit
def take_ticket(ticket_ptr):
    """The number of programs of this launch that started before this one."""
    # Relaxed: a ticket orders starts, it hands over no data.
    return tl.atomic_add(ticket_ptr, 1, sem="relaxed")


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
