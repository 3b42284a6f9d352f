"""The blocks of the kernels for sm_90, and which calls they take; it imports nothing of Triton's.

Tickets are the y tiles of the first column, which make p too, then the others in bands of rows; backward the
dx tiles, and q, and behind each band the tiles of dB and dA over its rows.
"""

from typing import Final, NamedTuple

BLOCK_M: Final = 128  # rows of a tile, half of them for each multiplying group
BLOCK_C: Final = 256  # columns of a tile
STEP: Final = 64  # of the contraction
# Rows of tiles in a band, whose tiles run together: half of the wave's rows of x and half of its rows of W.
GROUP: Final = 16
GRADIENT_COLUMNS: Final = 128  # columns of dy or x of a dB or dA tile, half of them for each group
WARPS: Final = 4  # of a multiplying group
# Registers of a thread of the second multiplying group and of the loading warp; the first group has the rest.
MULTIPLY_REGISTERS: Final = 240
LOAD_REGISTERS: Final = 24
# Bytes of shared memory that a program may take on sm_90.
SHARED_MEMORY: Final = 232_448

_DTYPES: Final = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16"))
# Of adapters in x's dtype, and of fp32: with 64 of these the backward spilled 8 and 24 bytes (3.6.0, 3.9.0).
MOST_RANKS: Final = (64, 32)


class Blocks(NamedTuple):
    """Block shapes of a launch.

    Attributes:
        m: Rows of a tile.
        c: Columns of a tile of y or dx.
        step: Of the contraction.
        r: Ranks: the next power of two, at least 16.
        terms: Terms of 16 bits that A, B, p and q are written as in the products that make p, q, dB and dA.
        store: Columns in which a tile is stored.
        buffers: Of a group, in which so many columns wait to be stored.
        stages: Of the ring.
        group: Rows of tiles in a band.
    """

    m: int
    c: int
    step: int
    r: int
    terms: int
    store: int
    buffers: int
    stages: int
    group: int


def blocks_for(r: int, wide_adapters: bool, c: int = BLOCK_C) -> Blocks:
    """The blocks for a rank; adapters of fp32 on bf16 are wide. Another `c` is for tests."""
    block_r, terms = max(16, 1 << (r - 1).bit_length()), 2 if wide_adapters else 1
    # Four stages leave room for few columns that wait to be stored; of many ranks they leave none.
    store, buffers, stages = (c // 8, 2, 4) if block_r * terms <= 32 else (c // 2, 1, 3)
    return Blocks(BLOCK_M, c, STEP, block_r, terms, store, buffers, stages, GROUP)


def refusal(
    architecture: str, dtype: str, adapter: str, r: int, *, aligned: bool = True, dropout: bool = False
) -> str | None:
    """Why these kernels do not take a call, as a phrase; None if they do.

    Args:
        architecture: The tile table's name; "sm_90" stands for compute capability 9.0 alone.
        dtype: Of x and W, such as "bfloat16".
        adapter: Of A and B.
        r: The rank.
        aligned: Whether TMA can address x, W, y and dx.
        dropout: Whether there is dropout.
    """
    if architecture != "sm_90":
        return f"they are written for sm_90, not for {architecture}"
    if (dtype, adapter) not in _DTYPES:
        return f"they take bf16 and fp16, and fp32 adapters on bf16, not {adapter} on {dtype}"
    most = MOST_RANKS[adapter == "float32"]
    if r > most:
        return f"they take ranks up to {most}, not {r}"
    if dropout:
        return "they have no dropout"
    return None if aligned else "rows of x, W, y or dx do not start on 16 bytes"
