"""Which tile a ticket stands for, and where the counters of a launch lie."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# In the workspace, int32 and zero at launch: how many tickets were drawn; backward, how many parts of q are
# stored; then for each group's part of each block of rows, whether its part of p or q is stored; backward,
# for each group's part of each tile of dB and dA, how many bands of rows are in its sum.
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


@gluon.jit
def band_of(ticket, num_rows, num_columns, num_gradients, GROUP: gl.constexpr):
    """The band of rows that a ticket of the backward pass behind the first column belongs to."""
    return (ticket - num_rows) // (GROUP * (num_columns - 1) + num_gradients)


@gluon.jit
def backward_task(ticket, num_rows, num_columns, num_gradients, GROUP: gl.constexpr):
    """(the row and the column of a dx tile, the number of a dB or dA tile), the last -1 of a dx tile.

    Tickets are the dx tiles of the first column, then band by band the others and behind them the tiles of dB
    and dA over its rows, which find dy in L2. They are short, and the last of them fill the end of the pass.
    """
    band = band_of(ticket, num_rows, num_columns, num_gradients, GROUP)
    first = band * GROUP
    height = gl.minimum(num_rows - first, GROUP)
    within = (ticket - num_rows) % (GROUP * (num_columns - 1) + num_gradients)
    gradient = within - height * (num_columns - 1)
    is_first = ticket < num_rows
    m = gl.where(is_first, ticket, first + within % height)
    c = gl.where(is_first, 0, 1 + within // height)
    return m, c, gl.where(is_first | (gradient < 0), -1, gradient)
