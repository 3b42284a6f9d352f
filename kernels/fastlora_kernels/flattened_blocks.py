"""The tiles and tickets of the persistent kernels in plain Triton; it imports nothing of Triton's."""

from typing import Final

from fastlora_kernels.table_content import tile_of

# 128 x 256 x 64 in groups of 8 rows of tiles, 8 warps and 3 stages: what shared memory holds beside a tile of 64 KiB.
TILES: Final = {direction: tile_of(direction, 128, 256, 64, 8, 8, 3) for direction in ("forward", "backward")}
# With 64, or with 32 of fp32, the backward spilled 160 to 584 bytes.
MOST_RANKS: Final = 32
MOST_WIDE_RANKS: Final = 16
# Blocks of rows of p take a third of a tile's time: they wait for x, at some 80 GB/s a multiprocessor.
_MOST_ROWS_A_TICKET: Final = 3


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
