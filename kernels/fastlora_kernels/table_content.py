"""What a tile table holds, and the check of each value when a table is read.

A table may be written by hand. A value that no kernel can run with is refused here, with its name, before it
causes a division by zero or a failed compilation.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

CLASSES: Final = ("few", "low", "narrow", "square", "wide")
DTYPES: Final = ("float16", "bfloat16", "float32")
KINDS: Final = ("half", "tf32", "ieee")

# Matrix instructions take 16 rows, columns and steps; a tensor descriptor's block has at most 256 of each. A
# program has at most 1,024 threads, 32 or 64 in a warp. With dropout, a dx tile is stored in quarters.
_SIDES: Final = (16, 32, 64, 128, 256)
_ALLOWED: Final = {
    "block_m": _SIDES,
    "block_n": _SIDES,
    "block_k": _SIDES,
    "group": range(1, 1025),
    "num_warps": (1, 2, 4, 8, 16),
    "num_stages": range(1, 9),
}
# The field with the columns of the output tile, by direction.
_ALLOWED_COLUMNS: Final = {"forward": {"block_n": _SIDES[2:]}, "backward": {"block_k": _SIDES[2:]}}
_MULTIPROCESSORS: Final = range(1, 4097)
_SHARED_MEMORY: Final = range(2**24 + 1)
_RANKS: Final = range(1, 2**20)


class ContentError(ValueError):
    """A value that no table may hold; the message says where in the table it is."""


class Tile(NamedTuple):
    """The block sizes and launch options of one program's output tile, of y [M, N] or of dx [M, K].

    Attributes:
        block_m: Rows of the output tile.
        block_n: Columns of a y tile. Backward: the step of the main loop, and the columns of a dB tile.
        block_k: The step of the main loop forward; columns of a dx tile.
        group: Row tiles that are processed together, so that they share operands in L2.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    block_m: int
    block_n: int
    block_k: int
    group: int
    num_warps: int
    num_stages: int

    @property
    def block_k_dA(self) -> int:  # noqa: N802 - dA is the gradient of A
        """Columns of a dA tile: as many as a dB tile has. They are few, so that there are many tiles."""
        return self.block_n

    def columns(self, direction: str) -> int:
        """Columns of the output tile of a "forward" or a "backward" pass."""
        return self.block_n if direction == "forward" else self.block_k

    def step(self, direction: str) -> int:
        """The step of the main loop of a "forward" or a "backward" pass."""
        return self.block_k if direction == "forward" else self.block_n


def tile_of(direction: str, rows: int, columns: int, step: int, *rest: int) -> Tile:
    """A tile by its output's rows and columns and its main loop's step; `rest` is group, warps and stages."""
    blocks = (columns, step) if direction == "forward" else (step, columns)
    return Tile(rows, *blocks, *rest)


class Win(NamedTuple):
    """A pass, dtype and rank for which the vendor's matrix product was measured to be faster.

    Attributes:
        direction: "forward" or "backward".
        dtype: Of x, A and B, such as "bfloat16".
        r: The rank.
    """

    direction: str
    dtype: str
    r: int


class Entry(NamedTuple):
    """The entry of a shape class.

    Attributes:
        forward: Tile of the forward pass.
        backward: Tile of the backward pass.
        library: Cases in which the vendor's matrix product, with the low-rank product accumulated onto it,
            was measured to be faster than the kernel.
    """

    forward: Tile
    backward: Tile
    library: tuple[Win, ...] = ()


class Table(NamedTuple):
    """One architecture's tiles.

    Attributes:
        multiprocessors: Their number; if there are fewer tiles, these are split. In a file, that of the
            architecture's usual GPU; a launch takes its own GPU's.
        shared_memory: Bytes of shared memory that one program may take (CUDA programming guide, "compute
            capabilities"; the CDNA3 ISA guide for gfx942).
        measured: The results file, device and commit that chose the tiles; None if nothing was measured.
        entries: {element kind: {shape class: entry}}.
    """

    multiprocessors: int
    shared_memory: int
    measured: dict[str, str] | None
    entries: dict[str, dict[str, Entry]]


def read_content(content: object) -> Table:
    """A table from the parsed content of its JSON file.

    Raises:
        ContentError: If a value is missing, unknown, or out of its range.
    """
    table = fields("the table", content, ("multiprocessors", "shared_memory", "measured", "entries"))
    kinds = fields("entries", table["entries"], KINDS)
    entries = {
        kind: {
            name: _entry(f"entries.{kind}.{name}", entry)
            for name, entry in fields(f"entries.{kind}", classes, ("square",), CLASSES).items()
        }
        for kind, classes in kinds.items()
    }
    measured = table["measured"]
    if measured is not None and not (
        isinstance(measured, dict) and all(isinstance(value, str) for value in measured.values())
    ):
        raise ContentError(f"measured must map names to texts or be null; got {measured!r}")
    multiprocessors = number("multiprocessors", table["multiprocessors"], _MULTIPROCESSORS)
    return Table(
        multiprocessors, number("shared_memory", table["shared_memory"], _SHARED_MEMORY), measured, entries
    )


def _entry(place: str, content: object) -> Entry:
    entry = fields(place, content, ("forward", "backward"), ("library",))
    wins = entry.get("library", [])
    if not isinstance(wins, list):
        raise ContentError(f"{place}.library must be a list; got {wins!r}")
    forward, backward = (tile(f"{place}.{name}", name, entry[name]) for name in ("forward", "backward"))
    return Entry(forward, backward, tuple(_win(f"{place}.library", win) for win in wins))


def tile(place: str, direction: str, content: object) -> Tile:
    """The tile of a "forward" or a "backward" pass; `place` says where it stands, for the error."""
    values = fields(place, content, Tile._fields)
    allowed = _ALLOWED | _ALLOWED_COLUMNS[direction]
    return Tile(*(number(f"{place}.{name}", values[name], allowed[name]) for name in Tile._fields))


def _win(place: str, content: object) -> Win:
    win = fields(place, content, Win._fields)
    for name, known in (("direction", ("forward", "backward")), ("dtype", DTYPES)):
        if win[name] not in known:
            raise ContentError(f"{place}.{name} must be one of {', '.join(known)}; got {win[name]!r}")
    return Win(win["direction"], win["dtype"], number(f"{place}.r", win["r"], _RANKS))


def fields(
    place: str, content: object, needed: tuple[str, ...], allowed: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """The content of an object that has the fields that are needed, and no others than those allowed too."""
    if not isinstance(content, dict):
        raise ContentError(f"{place} must be an object; got {content!r}")
    for name in needed:
        if name not in content:
            raise ContentError(f"{place} has no {name}")
    for name in content:
        if name not in needed and name not in allowed:
            raise ContentError(f"{place} has an unknown {name!r}")
    return content


def number(place: str, value: object, allowed: range | tuple[int, ...]) -> int:
    """A whole number that is allowed."""
    # Not isinstance or ==: they would accept True and 16.0.
    if type(value) is int and value in allowed:
        return value
    what = (
        f"{allowed[0]} to {allowed[-1]}"
        if isinstance(allowed, range)
        else "one of " + ", ".join(map(str, allowed))
    )
    raise ContentError(f"{place} must be {what}; got {value!r}")
