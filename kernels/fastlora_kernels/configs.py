"""The tiles and compiler options of a call, by architecture, element kind and shape."""

from typing import Final

from fastlora_kernels.tables import ARCHITECTURES, Entry, Table, Tile, Win, load_table, tile_of

_CAPABILITIES: Final = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_90": (9, 0), "sm_100": (10, 0)}

# The shape classes of a [M, C] output, in the order in which they are tried; a table may lack some.
#   few      up to FEW_ROWS rows: decoding
#   low      up to LOW_ROWS rows, or twice as many where square tiles would be split: small batches
#   narrow   up to NARROW_COLUMNS columns
#   wide     wide tiles are done sooner, by their waves, and operands come through TMA
#   square   everything else
FEW_ROWS: Final = 16
LOW_ROWS: Final = 64
NARROW_COLUMNS: Final = 64
# Time of a wide tile over that of square ones of its size (an H100, docs/kernel-log.md, 19).
_WIDE_TIME: Final = 0.85

# Up to so many rows a packed W is unpacked inside the product (few_rows.py), above by a launch of its own. W
# is the left operand there, so that its tile stays in registers: 64 rows of it are what wgmma takes.
PACKED_ROWS: Final = 16
PACKED_TILE: Final = tile_of("forward", PACKED_ROWS, 64, 64, 1, 4, 3)

# The largest block of ranks; more ranks are processed in several blocks, so that registers do not grow with
# the rank. fp32 elements take twice the registers for each rank. So do adapters in a wider dtype than x; they
# take four times if the matrix units read operands from registers (mma.sync) instead of from shared memory
# (wgmma, tcgen05).
_RANKS: Final = 64
_RANKS_FP32: Final = 32
_RANKS_WIDE_ADAPTERS: Final = {
    "sm_80": 16,
    "sm_86": 16,
    "sm_90": 32,
    "sm_100": 32,
    "gfx942": 32,
    "interpreter": 32,
}

# The table for the interpreter. Its tiles are small, so that small tests cross tile borders and split tiles.
INTERPRETER: Final = Table(
    multiprocessors=12,
    shared_memory=0,
    measured=None,
    entries={
        kind: {
            "square": Entry(
                forward=tile_of("forward", 32, 64, 64, 2, 4, 1),
                backward=tile_of("backward", 32, 64, 64, 2, 4, 1),
            )
        }
        for kind in ("half", "tf32", "ieee")
    },
)


def nearest_architecture(backend: str, capability: tuple[int, int], shared_memory: int) -> str:
    """The newest architecture with a table that is not newer than the GPU and fits its shared memory.

    Args:
        backend: "cuda" or "hip".
        capability: Compute capability of a CUDA GPU; unused for ROCm.
        shared_memory: Bytes of shared memory that one program may take on the GPU.
    """
    if backend == "hip":
        return "gfx942"
    fitting = [
        (number, name)
        for name, number in _CAPABILITIES.items()
        if number <= capability and load_table(name).shared_memory <= shared_memory
    ]
    return max(fitting)[1] if fitting else "sm_86"


def table_of(architecture: str, multiprocessors: int | None = None) -> Table:
    """The table of one of ARCHITECTURES, or of "interpreter", for a GPU of so many multiprocessors.

    None means those of the architecture's usual GPU.
    """
    if architecture != "interpreter" and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
    table = INTERPRETER if architecture == "interpreter" else load_table(architecture)
    return table if multiprocessors is None else table._replace(multiprocessors=multiprocessors)


def shape_class(table: Table, kind: str, M: int, C: int, direction: str, *, tma: bool = True) -> str:
    """The shape class of an output [M, C], among those that the table has for this element kind.

    Args:
        table: The architecture's.
        kind: As `element_kind` gives it.
        M: Rows.
        C: Columns: N forward, K backward.
        direction: "forward" or "backward".
        tma: Whether operands come through tensor descriptors.
    """
    classes = table.entries[kind]
    if "few" in classes and M <= FEW_ROWS:
        return "few"
    if "low" in classes and M <= 2 * LOW_ROWS:
        # On Hopper whole tiles of few columns beat parts of larger ones (docs/kernel-log.md, 22).
        parts = 2 * num_tiles(getattr(classes["square"], direction), direction, M, C) <= table.multiprocessors
        if M <= LOW_ROWS or (tma and "wide" in classes and parts):
            return "low"
    if "narrow" in classes and C <= NARROW_COLUMNS:
        return "narrow"
    # Without TMA, the addresses of a wide tile take too many registers: Triton 3.6.0 spilled 24 bytes.
    if tma and "wide" in classes:
        wide, square = (
            _waves(table, getattr(classes[name], direction), direction, M, C) for name in ("wide", "square")
        )
        if _WIDE_TIME * wide <= square:
            return "wide"
    return "square"


def _waves(table: Table, tile: Tile, direction: str, M: int, C: int) -> int:
    """Elements of tiles, one after the other, that a multiprocessor computes of an output [M, C]."""
    waves = num_blocks(num_tiles(tile, direction, M, C), table.multiprocessors)
    return waves * tile.block_m * tile.columns(direction)


def beaten(entry: Entry, direction: str, dtype: str, adapter_dtype: str, r: int) -> bool:
    """Whether the vendor's matrix product was measured to be faster in a pass with these dtypes and rank.

    Args:
        entry: The shape class's.
        direction: "forward" or "backward".
        dtype: Of x, such as "bfloat16".
        adapter_dtype: Of A; measurements have adapters in x's dtype.
        r: The rank.
    """
    return adapter_dtype == dtype and Win(direction, dtype, r) in entry.library


def num_tiles(tile: Tile, direction: str, M: int, C: int) -> int:
    """Number of tiles of an output [M, C]."""
    return num_blocks(M, tile.block_m) * num_blocks(C, tile.columns(direction))


def num_blocks(size: int, block: int) -> int:
    """Number of blocks that cover a size."""
    return -(-size // block)


def takes_tma(architecture: str, kind: str) -> bool:
    """Whether aligned operands and results go through tensor descriptors.

    Not for exact fp32 products, which read their operands into registers: with TMA they took 60 to 80
    registers more (sm_90, 64 x 64 tiles), for no gain.
    """
    return architecture in ("sm_90", "sm_100", "interpreter") and kind != "ieee"


def element_kind(bits: int, precision: str) -> str:
    """The element kind: "half" for 16 bits; for 32 bits, the dot precision "tf32" or "ieee"."""
    return "half" if bits == 16 else precision


def rank_block(
    r: int,
    architecture: str,
    kind: str,
    wide_adapters: bool,
    tf32_terms: bool = False,
    masked_rows: int = 0,
) -> int:
    """Ranks in a block: a power of two, at least the 16 that a matrix instruction takes.

    `tf32_terms` says that A and B are multiplied in tf32 with an fp16 x (`fp16_range.py`). Then it is the
    least: with more, Triton 3.6.0 spilled 32 bytes in a backward kernel of sm_90. `masked_rows` are those of
    a tile with dropout, 0 without: 256 of them and 64 ranks spilled 8 bytes (Triton 3.9.0).
    """
    if tf32_terms:
        return 16
    if masked_rows > 128:
        r = min(r, 32)
    most = _RANKS_WIDE_ADAPTERS[architecture] if wide_adapters else _RANKS if kind == "half" else _RANKS_FP32
    return min(max(16, 1 << (r - 1).bit_length()), most)


def group_rank_block(block_r: int, architecture: str, tf32_terms: bool) -> int:
    """Ranks in a block of projections that share x, from a layer's: a p tile holds three of them at once.

    With 32, Triton 3.6.0 spilled 8 bytes on gfx942.
    """
    return 16 if tf32_terms or architecture == "gfx942" else min(block_r, 32)


def takes_group(direction: str, shape_class: str, wide_adapters: bool, tf32_terms: bool) -> bool:
    """Whether the kernel of projections that share x fits into registers.

    With few rows the blocks of K are long: forward, three p tiles with wide adapters spilled 8 to 56 bytes on
    sm_80 and sm_90. Backward, the narrow tile spilled 8 bytes on sm_90 (Triton 3.9.0), and adapters that are
    multiplied in tf32 8 bytes on sm_80 and 40 on sm_90 (Triton 3.6.0).

    Args:
        direction: "forward" or "backward".
        shape_class: As `shape_class` gives it.
        wide_adapters: Whether the adapters are in another dtype than x.
        tf32_terms: As in `rank_block`.
    """
    if direction == "backward":
        return shape_class != "narrow" and not tf32_terms
    return not (shape_class == "few" and wide_adapters)


def segment_class(shape_class: str, architecture: str, direction: str, wide_adapters: bool) -> str:
    """The class whose tile the kernels for rows that choose their operands take.

    Square tiles backward, with adapters in a wider dtype than x, spilled 8 bytes where matrix units read
    operands from registers (sm_80, bf16, Triton 3.6.0).
    """
    from_registers = architecture in ("sm_80", "sm_86")
    spills = shape_class == "square" and direction == "backward" and wide_adapters and from_registers
    return "low" if spills else shape_class


def segment_rank_block(r: int, architecture: str, kind: str, wide_adapters: bool, tf32_terms: bool) -> int:
    """As `rank_block`, in the kernels for rows that choose their operands.

    They keep a tile's table entries in registers too. Blocks of 64 ranks spilled 24 bytes (sm_90, bf16), and
    blocks of 32 spilled 32 bytes on gfx942.
    """
    most = 16 if architecture == "gfx942" else 32
    return min(rank_block(r, architecture, kind, wide_adapters, tf32_terms), most)


def store_columns(tile: Tile, direction: str, dropout: bool) -> int:
    """Columns of an output tile that are stored at once: a quarter of them for dx with dropout, else all."""
    columns = tile.columns(direction)
    return columns // 4 if direction == "backward" and dropout else columns


def launch_options(tile: Tile, backend: str) -> dict[str, int | bool]:
    """The compiler options, block shapes aside; `backend` is "cuda" or "hip"."""
    options: dict[str, int | bool] = {
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }
    if backend == "cuda":
        # 255 is the hardware's limit. Without it, ptxas spills 8 to 32 bytes in some fp32 variants to fit one
        # more program on a multiprocessor; with it, no entry of the tables spills.
        options["maxnreg"] = 255
    return options
