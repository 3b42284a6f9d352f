"""What a launch consists of: its tiles, the tickets that stand for them, and the counters that they share.

Plain arithmetic, stated once: the host sizes a launch by it, and device code, where a ticket is drawn, finds
its task by it (`on_device` in tickets.py). So only what both Python and Triton can run stands here: no
helper, as Triton calls none but its own, no `bool` among the annotations, which Triton reads too, and `//`
on positive numbers alone, where it means the same to both.

A tile may be shared by several programs (split-K, `split_k.py`); it has a ticket for each of them.
"""

from typing import NamedTuple


class ForwardTiles(NamedTuple):
    """Tiles of a forward pass.

    Attributes:
        rows: Blocks of M.
        columns: Blocks of N.
        ranks: Blocks of r.
        p: Tiles of p, [BLOCK_M, BLOCK_R]: those of one block of rows stand together.
        y: Tiles of y, [BLOCK_M, BLOCK_N].
    """

    rows: int
    columns: int
    ranks: int
    p: int
    y: int


class ForwardTickets(NamedTuple):
    """Tickets of a forward pass: from 0 on the p tiles, then the y tiles.

    Attributes:
        y: The first ticket of a y tile.
        end: How many tickets there are: the programs of the launch.
    """

    y: int
    end: int


class ForwardCounters(NamedTuple):
    """Where the int32 counters of a forward pass lie in its workspace, which is zero at launch.

    Attributes:
        tickets: The counter of tickets.
        flags: For each block of rows, how many of its p tiles are stored.
        p: For each p tile, how many of its splits have arrived.
        y: The same for each y tile.
        end: The size of the workspace.
    """

    tickets: int
    flags: int
    p: int
    y: int
    end: int


class BackwardTiles(NamedTuple):
    """Tiles of a backward pass; 0 of what is not needed.

    Attributes:
        rows: Blocks of M.
        columns: Blocks of K.
        ranks: Blocks of r.
        q: Tiles of q, [BLOCK_M, BLOCK_R]: those of one block of rows stand together.
        dx: Tiles of dx, [BLOCK_M, BLOCK_K].
        dB: Tiles of dB, [BLOCK_N, BLOCK_R].
        dA: Tiles of dA, [BLOCK_R, BLOCK_K_DA].
    """

    rows: int
    columns: int
    ranks: int
    q: int
    dx: int
    dB: int
    dA: int


class BackwardTickets(NamedTuple):
    """Tickets of a backward pass: from 0 on the q tiles, half of the dx tiles, dB and dA, the other dx tiles.

    dB and dA wait on memory, dx on the matrix units: in the middle they share the machine, at the end they
    would be its tail.

    Attributes:
        dx: The first ticket of a dx tile, and the end of q's.
        gradients: The first ticket of a dB tile; those of dA follow, split alike.
        num_gradients: The tickets of dB and dA together; the second half of dx comes so much later.
        end: How many tickets there are: the programs of the launch.
    """

    dx: int
    gradients: int
    num_gradients: int
    end: int


class BackwardCounters(NamedTuple):
    """Where the int32 counters of a backward pass lie in its workspace, which is zero at launch.

    Attributes:
        tickets: The counter of tickets.
        all_rows: How many q tiles are stored.
        flags: For each block of rows, how many of its q tiles are stored.
        q: For each q tile, how many of its splits have arrived.
        dx: The same for each dx tile.
        gradients: The same for each dB tile, then for each dA tile.
        end: The size of the workspace.
    """

    tickets: int
    all_rows: int
    flags: int
    q: int
    dx: int
    gradients: int
    end: int


def forward_tiles(M: int, N: int, r: int, BLOCK_M: int, BLOCK_N: int, BLOCK_R: int) -> ForwardTiles:
    """The ForwardTiles of a pass."""
    rows = (M + BLOCK_M - 1) // BLOCK_M
    columns = (N + BLOCK_N - 1) // BLOCK_N
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    return ForwardTiles(rows=rows, columns=columns, ranks=ranks, p=rows * ranks, y=rows * columns)


def forward_tickets(tiles: ForwardTiles, split_p: int, split_y: int) -> ForwardTickets:
    """The ForwardTickets of these tiles, each shared by so many programs."""
    y = tiles.p * split_p
    return ForwardTickets(y=y, end=y + tiles.y * split_y)


def forward_counters(tiles: ForwardTiles) -> ForwardCounters:
    """The ForwardCounters of these tiles."""
    flags = 1
    p = flags + tiles.rows
    y = p + tiles.p
    return ForwardCounters(tickets=0, flags=flags, p=p, y=y, end=y + tiles.y)


def backward_tiles(
    M: int,
    N: int,
    K: int,
    r: int,
    need_dx: int,
    need_dA: int,
    need_dB: int,
    BLOCK_M: int,
    BLOCK_N: int,
    BLOCK_K: int,
    BLOCK_R: int,
    BLOCK_K_DA: int,
) -> BackwardTiles:
    """The BackwardTiles of a pass that computes what is needed."""
    rows = (M + BLOCK_M - 1) // BLOCK_M
    columns = (K + BLOCK_K - 1) // BLOCK_K
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    return BackwardTiles(
        rows=rows,
        columns=columns,
        ranks=ranks,
        q=rows * ranks if need_dx or need_dA else 0,
        dx=rows * columns if need_dx else 0,
        dB=(N + BLOCK_N - 1) // BLOCK_N * ranks if need_dB else 0,
        dA=(K + BLOCK_K_DA - 1) // BLOCK_K_DA * ranks if need_dA else 0,
    )


def backward_tickets(
    tiles: BackwardTiles, split_q: int, split_dx: int, split_gradients: int
) -> BackwardTickets:
    """The BackwardTickets of these tiles, each shared by so many programs."""
    dx = tiles.q * split_q
    num_dx = tiles.dx * split_dx
    num_gradients = (tiles.dB + tiles.dA) * split_gradients
    return BackwardTickets(
        dx=dx, gradients=dx + num_dx // 2, num_gradients=num_gradients, end=dx + num_dx + num_gradients
    )


def backward_counters(tiles: BackwardTiles) -> BackwardCounters:
    """The BackwardCounters of these tiles."""
    flags = 2
    q = flags + tiles.rows
    dx = q + tiles.q
    gradients = dx + tiles.dx
    end = gradients + tiles.dB + tiles.dA
    return BackwardCounters(tickets=0, all_rows=1, flags=flags, q=q, dx=dx, gradients=gradients, end=end)
