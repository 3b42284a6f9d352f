"""The tiles and tickets of the persistent kernels in plain Triton; it imports nothing of Triton's."""

from typing import Final

from fastlora_kernels.table_content import tile_of

# 128 x 256 x 64, groups of 8 rows of tiles, 8 warps, and the 3 stages that fit beside a tile to be stored.
TILES: Final = {direction: tile_of(direction, 128, 256, 64, 8, 8, 3) for direction in ("forward", "backward")}
# Blocks of rows of p take a third of a tile's time: they wait for x, at some 80 GB/s a multiprocessor.
_MOST_ROWS_A_TICKET: Final = 3


def most_ranks(K: int, N: int) -> tuple[int, int]:
    """The most ranks that are taken, of adapters in x's dtype, and of fp32.

    With twice as many the backward spilled 160 to 584 bytes; with 32, 24 where K or N is no multiple of 16.
    """
    return 16 if K % 16 or N % 16 else 32, 16


def block_of_ranks(r: int) -> int:
    """Ranks in a block, which has all of them."""
    return max(16, 1 << (r - 1).bit_length())


def counters(rows: int) -> int:
    """The int32 counters of a launch with so many blocks of rows."""
    return 3 + rows


def rows_a_ticket(rows: int, tiles: int, programs: int) -> int:
    """Blocks of rows of p or q that a ticket stands for.

    So many that those programs make them that have a tile less than the others, if they can in a tile's time.
    """
    with_less = programs - tiles % programs
    return min(-(-rows // with_less), _MOST_ROWS_A_TICKET)
