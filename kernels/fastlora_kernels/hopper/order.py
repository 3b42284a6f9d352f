"""Which tile a ticket stands for, and where the counters of a launch lie."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# In the workspace, int32 and zero at launch: how many tickets were drawn; backward, how many parts of q are
# stored; then for each group's part of each block of rows, whether its part of p or q is stored.
ALL_ROWS = gl.constexpr(1)
FLAGS = gl.constexpr(2)


@gluon.jit
def grouped_order(tile, num_rows, num_columns, GROUP: gl.constexpr):
    """As `fastlora_kernels.tickets.grouped_order`; Gluon calls functions of its own alone."""
    per_band = GROUP * num_columns
    first = (tile // per_band) * GROUP
    height = gl.minimum(num_rows - first, GROUP)
    within = tile % per_band
    return first + within % height, within // height


@gluon.jit
def place_of(tile, num_rows, num_columns, GROUP: gl.constexpr):
    """(row, column) of the tile-th output tile: those of the first column, then the others in bands."""
    m = tile
    c = 0
    if tile >= num_rows:
        m, c = grouped_order(tile - num_rows, num_rows, num_columns - 1, GROUP)
        c += 1
    return m, c
