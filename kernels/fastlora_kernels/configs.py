"""The tile table: block shapes by architecture, element kind, rows and pass.

A lookup, never a search: nothing is timed or compiled to choose a tile. Every entry compiles without a spill
within its architecture's shared memory (`offline.py` checks it).
"""

from typing import Final, NamedTuple


class Tile(NamedTuple):
    """One program's share of a matrix product.

    Attributes:
        rows: Rows of the output tile (along M).
        out: Columns of the output tile (N forward, K backward).
        inner: Step of the main loop (along K forward, N backward); also the columns of a dB or dA tile.
        group: Row tiles that share a band of L2.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    rows: int
    out: int
    inner: int
    group: int
    num_warps: int
    num_stages: int


class Entry(NamedTuple):
    """The tiles of one architecture, element kind and row class."""

    forward: Tile
    backward: Tile


# Shared memory that one program may take, in bytes (CUDA programming guide, "compute capabilities"; the CDNA3
# ISA guide for gfx942).
SHARED_MEMORY: Final = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}

_CAPABILITIES: Final = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_90": (9, 0), "sm_100": (10, 0)}

# Up to this many rows (decoding, small batches) an output tile is as low as the matrix units allow.
FEW_ROWS: Final = 64

# Ranks beyond these are taken in several blocks, so that registers do not grow with the rank. fp32 elements
# take twice the registers a rank; so do split adapters, and four times where the matrix units read their
# operands from registers (mma.sync) rather than from shared memory (wgmma, tcgen05).
_RANKS: Final = 64
_RANKS_FP32: Final = 32
_RANKS_SPLIT: Final = {"sm_80": 16, "sm_86": 16, "sm_90": 32, "sm_100": 32, "gfx942": 32, "interpreter": 32}

_WIDE = Tile(rows=128, out=256, inner=64, group=8, num_warps=8, num_stages=3)
_SQUARE = Tile(rows=128, out=128, inner=64, group=8, num_warps=8, num_stages=3)
_SQUARE_32 = Tile(rows=128, out=128, inner=32, group=8, num_warps=8, num_stages=3)
_SQUARE_SHALLOW = Tile(rows=128, out=128, inner=64, group=8, num_warps=8, num_stages=2)
_SQUARE_32_SHALLOW = Tile(rows=128, out=128, inner=32, group=8, num_warps=8, num_stages=2)
_LOW = Tile(rows=64, out=128, inner=64, group=1, num_warps=4, num_stages=3)
_LOW_32 = Tile(rows=64, out=64, inner=32, group=1, num_warps=4, num_stages=3)
_EXACT = Tile(rows=64, out=64, inner=16, group=8, num_warps=4, num_stages=2)

# (architecture, element kind, row class). The kinds are those of `element_kind`.
TABLE: Final[dict[tuple[str, str, str], Entry]] = {
    ("sm_80", "half", "many"): Entry(_SQUARE, _SQUARE),
    ("sm_80", "half", "few"): Entry(_LOW, _LOW),
    ("sm_80", "tf32", "many"): Entry(_SQUARE_32, _SQUARE_32),
    ("sm_80", "tf32", "few"): Entry(_LOW_32, _LOW_32),
    ("sm_80", "ieee", "many"): Entry(_EXACT, _EXACT),
    ("sm_80", "ieee", "few"): Entry(_EXACT, _EXACT),
    # Three stages of the backward took 112 KiB at r=64 with dropout: p and q are fp32 in the pipeline.
    ("sm_86", "half", "many"): Entry(_SQUARE, _SQUARE_SHALLOW),
    ("sm_86", "half", "few"): Entry(_LOW, _LOW),
    ("sm_86", "tf32", "many"): Entry(_SQUARE_32, _SQUARE_32),
    ("sm_86", "tf32", "few"): Entry(_LOW_32, _LOW_32),
    ("sm_86", "ieee", "many"): Entry(_EXACT, _EXACT),
    ("sm_86", "ieee", "few"): Entry(_EXACT, _EXACT),
    ("sm_90", "half", "many"): Entry(_WIDE, _WIDE),
    ("sm_90", "half", "few"): Entry(_LOW, _LOW),
    ("sm_90", "tf32", "many"): Entry(_SQUARE_32, _SQUARE_32),
    ("sm_90", "tf32", "few"): Entry(_LOW_32, _LOW_32),
    ("sm_90", "ieee", "many"): Entry(_EXACT, _EXACT),
    ("sm_90", "ieee", "few"): Entry(_EXACT, _EXACT),
    ("sm_100", "half", "many"): Entry(_WIDE, _WIDE),
    ("sm_100", "half", "few"): Entry(_LOW, _LOW),
    ("sm_100", "tf32", "many"): Entry(_SQUARE_32, _SQUARE_32),
    ("sm_100", "tf32", "few"): Entry(_LOW_32, _LOW_32),
    ("sm_100", "ieee", "many"): Entry(_EXACT, _EXACT),
    ("sm_100", "ieee", "few"): Entry(_EXACT, _EXACT),
    ("gfx942", "half", "many"): Entry(_SQUARE_SHALLOW, _SQUARE_SHALLOW),
    ("gfx942", "half", "few"): Entry(_LOW, _LOW),
    ("gfx942", "tf32", "many"): Entry(_SQUARE_32_SHALLOW, _SQUARE_32_SHALLOW),
    ("gfx942", "tf32", "few"): Entry(_LOW_32, _LOW_32),
    ("gfx942", "ieee", "many"): Entry(_EXACT, _EXACT),
    ("gfx942", "ieee", "few"): Entry(_EXACT, _EXACT),
}


# What the interpreter runs: small, so that small tests cross tile borders.
INTERPRETER: Final = Entry(
    forward=Tile(rows=32, out=64, inner=64, group=2, num_warps=4, num_stages=1),
    backward=Tile(rows=32, out=64, inner=64, group=2, num_warps=4, num_stages=1),
)


def nearest_architecture(backend: str, capability: tuple[int, int], shared_memory: int) -> str:
    """The table's newest architecture that is no newer than the GPU and fits its shared memory.

    Args:
        backend: "cuda" or "hip".
        capability: Compute capability of a CUDA GPU; unused for ROCm.
        shared_memory: Bytes that one program may take on the GPU.
    """
    if backend == "hip":
        return "gfx942"
    fitting = [
        (number, name)
        for name, number in _CAPABILITIES.items()
        if number <= capability and SHARED_MEMORY[name] <= shared_memory
    ]
    return max(fitting)[1] if fitting else "sm_86"


def entry(architecture: str, kind: str, rows: str) -> Entry:
    """The tiles for an element kind and a row class, "few" or "many"."""
    if architecture == "interpreter":
        return INTERPRETER
    return TABLE[architecture, kind, rows]


def takes_tma(architecture: str, kind: str) -> bool:
    """Whether aligned operands come through tensor descriptors.

    Exact fp32 products read their operands into registers; through TMA they took 60 to 80 registers more
    (sm_90, 64 x 64 tiles) and nothing is won.
    """
    return architecture in ("sm_90", "sm_100", "interpreter") and kind != "ieee"


def element_kind(bits: int, precision: str) -> str:
    """The kind "half" for 16-bit elements; for 32-bit ones the dot precision, "tf32" or "ieee"."""
    return "half" if bits == 16 else precision


def row_class(M: int) -> str:
    """The row class "few" or "many"."""
    return "few" if M <= FEW_ROWS else "many"


def rank_block(r: int, architecture: str, kind: str, split: bool) -> int:
    """The block of ranks: a power of two, at least the 16 that a matrix instruction takes."""
    most = _RANKS_SPLIT[architecture] if split else _RANKS if kind == "half" else _RANKS_FP32
    return min(max(16, 1 << (r - 1).bit_length()), most)


def launch_options(tile: Tile, backend: str) -> dict[str, int | bool]:
    """What the compiler is told besides the block shapes; `backend` is "cuda" or "hip"."""
    options: dict[str, int | bool] = {
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }
    if backend == "cuda":
        # Without a bound ptxas spills 8 to 32 bytes in some fp32 variants to fit one more program on a
        # multiprocessor; with the hardware's own bound no entry of the table spills.
        options["maxnreg"] = 255
    return options
