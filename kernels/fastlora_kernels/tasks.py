"""The tasks of a launch: its tiles, the tickets that number its programs, and the counters that they share.

One launch computes several kinds of tiles. Each program draws a ticket, which decides its tile. A tile that
several programs share (split-K, `split_k.py`) has a ticket for each of them.

This arithmetic is stated once. The host uses it to size a launch, and device code (through `on_device` in
tickets.py) to find a program's tile. So the functions must run both in Python and in Triton: they call no
helpers, because Triton calls only jitted functions; their annotations have no `bool`, because Triton reads
them too; and they use `//` on positive numbers alone, for which it is the same in both.
"""

from typing import NamedTuple


class ForwardTiles(NamedTuple):
    """Tiles of a forward pass.

    Attributes:
        rows: Blocks of M.
        columns: Blocks of N.
        ranks: Blocks of r.
        p: Tiles of p, [BLOCK_M, BLOCK_R]; those of one block of rows are adjacent.
        y: Tiles of y, [BLOCK_M, BLOCK_N].
    """

    rows: int
    columns: int
    ranks: int
    p: int
    y: int


class ForwardTickets(NamedTuple):
    """Tickets of a forward pass: the p tiles, from 0 on, then the y tiles.

    Attributes:
        y: The first ticket of a y tile.
        end: The number of tickets, which is the number of programs.
    """

    y: int
    end: int


class ForwardCounters(NamedTuple):
    """Offsets of the int32 counters of a forward pass in its workspace, which is zero at launch.

    Attributes:
        tickets: How many tickets were drawn.
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
    """Tiles of a backward pass; 0 of a gradient that is not needed.

    Attributes:
        rows: Blocks of M.
        columns: Blocks of K.
        ranks: Blocks of r.
        q: Tiles of q, [BLOCK_M, BLOCK_R]; those of one block of rows are adjacent.
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
    """Tickets of a backward pass: q, the first half of the dx tiles, dB, dA, the second half of dx.

    dB and dA are bound by memory, dx by the matrix units. In the middle they overlap with dx; at the end they
    would run alone. But few dx tiles all come before dB and dA: they can all start at once, and those of the
    second half would start late. So only where a dx tile takes longer than one of dB or dA, by M <= N.

    Attributes:
        dx: The first ticket of a dx tile, and the end of q's.
        gradients: The first ticket of a dB tile; those of dA follow, with the same number of splits.
        num_gradients: The number of tickets of dB and dA together, by which what follows of dx is shifted.
        end: The number of tickets, which is the number of programs.
    """

    dx: int
    gradients: int
    num_gradients: int
    end: int


class BackwardCounters(NamedTuple):
    """Offsets of the int32 counters of a backward pass in its workspace, which is zero at launch.

    Attributes:
        tickets: How many tickets were drawn.
        all_rows: How many q tiles are stored, of all rows.
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


def group_forward_tiles(
    M: int, N0: int, N1: int, N2: int, r: int, BLOCK_M: int, BLOCK_N: int, BLOCK_R: int
) -> ForwardTiles:
    """The ForwardTiles of projections that share x: p tiles for all at once, columns one after the other.

    r is the largest of their ranks; N2 is 0 for two projections.
    """
    rows = (M + BLOCK_M - 1) // BLOCK_M
    columns = (N0 + BLOCK_N - 1) // BLOCK_N + (N1 + BLOCK_N - 1) // BLOCK_N + (N2 + BLOCK_N - 1) // BLOCK_N
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    return ForwardTiles(rows=rows, columns=columns, ranks=ranks, p=rows * ranks, y=rows * columns)


def forward_tickets(tiles: ForwardTiles, split_p: int, split_y: int) -> ForwardTickets:
    """The ForwardTickets of these tiles; split_p programs share a p tile, split_y programs a y tile."""
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
    """The BackwardTiles of a pass that computes the gradients that are needed."""
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


def group_backward_tiles(
    M: int,
    N0: int,
    N1: int,
    N2: int,
    K: int,
    r: int,
    members: int,
    BLOCK_M: int,
    BLOCK_N: int,
    BLOCK_K: int,
    BLOCK_R: int,
    BLOCK_K_DA: int,
) -> BackwardTiles:
    """The BackwardTiles of projections that share x: dx tiles for all at once, of the others each its own.

    r is the largest of their ranks; N2 is 0 for two projections.
    """
    rows = (M + BLOCK_M - 1) // BLOCK_M
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    blocks = (N0 + BLOCK_N - 1) // BLOCK_N + (N1 + BLOCK_N - 1) // BLOCK_N + (N2 + BLOCK_N - 1) // BLOCK_N
    columns = (K + BLOCK_K - 1) // BLOCK_K
    return BackwardTiles(
        rows=rows,
        columns=columns,
        ranks=ranks,
        q=rows * ranks * members,
        dx=rows * columns,
        dB=blocks * ranks,
        dA=(K + BLOCK_K_DA - 1) // BLOCK_K_DA * ranks * members,
    )


def backward_tickets(
    tiles: BackwardTiles, M: int, N: int, split_q: int, split_dx: int, split_gradients: int
) -> BackwardTickets:
    """The BackwardTickets of these tiles; split_... programs share a tile (gradients: of dB or dA)."""
    dx = tiles.q * split_q
    num_dx = tiles.dx * split_dx
    num_gradients = (tiles.dB + tiles.dA) * split_gradients
    # 128 tiles: about as many as a GPU has multiprocessors.
    early = num_dx if M <= N and tiles.dx <= 128 else num_dx // 2
    return BackwardTickets(
        dx=dx, gradients=dx + early, num_gradients=num_gradients, end=dx + num_dx + num_gradients
    )


def backward_counters(tiles: BackwardTiles) -> BackwardCounters:
    """The BackwardCounters of these tiles."""
    flags = 2
    q = flags + tiles.rows
    dx = q + tiles.q
    gradients = dx + tiles.dx
    end = gradients + tiles.dB + tiles.dA
    return BackwardCounters(tickets=0, all_rows=1, flags=flags, q=q, dx=dx, gradients=gradients, end=end)
