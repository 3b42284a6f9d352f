"""The tiles of a launch whose rows choose their operands; tickets and counters are those of `tasks.py`.

Rows lie in runs; all rows of a run take the same operands. A tile is a block of at most BLOCK_M rows with one
W. A segment is the part of a tile whose rows take the same A and B: an expert's tile is one segment, a tile
of rows with several adapters may have several. p and q are made by segment, y and dx by tile, dA and dB by
operand. As in `tasks.py`, the functions run in Python and in Triton.
"""

from fastlora_kernels.tasks import BackwardTiles, ForwardTiles


def segment_forward_tiles(
    num_tiles: int, num_segments: int, N: int, r: int, BLOCK_N: int, BLOCK_R: int
) -> ForwardTiles:
    """The ForwardTiles of a pass; p's tiles are of a segment each, and those of one segment are adjacent."""
    columns = (N + BLOCK_N - 1) // BLOCK_N
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    return ForwardTiles(
        rows=num_tiles, columns=columns, ranks=ranks, p=num_segments * ranks, y=num_tiles * columns
    )


def segment_backward_tiles(
    num_tiles: int,
    num_segments: int,
    num_operands: int,
    N: int,
    K: int,
    r: int,
    need_dx: int,
    need_dA: int,
    need_dB: int,
    BLOCK_N: int,
    BLOCK_K: int,
    BLOCK_R: int,
    BLOCK_K_DA: int,
) -> BackwardTiles:
    """The BackwardTiles of a pass; the tiles of dB and dA of one operand are adjacent."""
    columns = (K + BLOCK_K - 1) // BLOCK_K
    ranks = (r + BLOCK_R - 1) // BLOCK_R
    return BackwardTiles(
        rows=num_tiles,
        columns=columns,
        ranks=ranks,
        q=num_segments * ranks if need_dx or need_dA else 0,
        dx=num_tiles * columns if need_dx else 0,
        dB=num_operands * ((N + BLOCK_N - 1) // BLOCK_N) * ranks if need_dB else 0,
        dA=num_operands * ((K + BLOCK_K_DA - 1) // BLOCK_K_DA) * ranks if need_dA else 0,
    )
