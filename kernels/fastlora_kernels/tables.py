"""The tile tables, one JSON file for each architecture: a lookup, never a search at run time.

A table is data so that a tuning run can write a new one (`python -m bench.tuning`), to be committed with the
measurement that chose it, or kept beside one's own code and named by FASTLORA_TABLES. Every entry of the
package's compiles without a spill within its architecture's shared memory; the gate holds it (`gate.py`).
"""

import functools
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

ARCHITECTURES: Final = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")

FOLDER: Final = Path(__file__).parent / "tables"


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
    """What a shape class takes.

    Attributes:
        forward: Tile of the forward.
        backward: Tile of the backward.
        library: The passes in which the vendor's matrix product, with the low-rank part accumulated onto it,
            was measured to be faster than the kernel.
    """

    forward: Tile
    backward: Tile
    library: tuple[str, ...] = ()


class Table(NamedTuple):
    """One architecture's tiles.

    Attributes:
        multiprocessors: Of its usual GPU; what few tiles are cut into parts for.
        shared_memory: Bytes that one program may take (CUDA programming guide, "compute capabilities"; the
            CDNA3 ISA guide for gfx942).
        measured: The results file, device and commit that chose the tiles; None if nothing was measured.
        entries: By element kind and shape class.
    """

    multiprocessors: int
    shared_memory: int
    measured: dict[str, str] | None
    entries: dict[str, dict[str, Entry]]


@functools.cache
def load_table(architecture: str) -> Table:
    """The table of one of ARCHITECTURES: of the folder that FASTLORA_TABLES names where it has one.

    Raises:
        ValueError: If the file is no tile table.
    """
    own = Path(os.environ.get("FASTLORA_TABLES", FOLDER)) / f"{architecture}.json"
    return read_table(own if own.exists() else FOLDER / own.name)


def read_table(path: Path) -> Table:
    """A table from its file.

    Raises:
        ValueError: If the file is no tile table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {
            kind: {
                name: Entry(Tile(**made["forward"]), Tile(**made["backward"]), tuple(made.get("library", ())))
                for name, made in classes.items()
            }
            for kind, classes in content["entries"].items()
        }
        return Table(content["multiprocessors"], content["shared_memory"], content["measured"], entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tile table: {type(error).__name__}: {error}") from error


def write_table(table: Table, path: Path) -> None:
    """Write a table so that a difference between two of them reads tile by tile."""
    kinds = []
    for kind, classes in table.entries.items():
        entries = []
        for name, entry in classes.items():
            fields = [
                f'"{what}": {json.dumps(getattr(entry, what)._asdict())}' for what in ("forward", "backward")
            ]
            if entry.library:
                fields.append(f'"library": {json.dumps(entry.library)}')
            entries.append(f'      "{name}": {{\n        ' + ",\n        ".join(fields) + "\n      }")
        kinds.append(f'    "{kind}": {{\n' + ",\n".join(entries) + "\n    }")
    text = (
        f'{{\n  "multiprocessors": {table.multiprocessors},\n  "shared_memory": {table.shared_memory},\n'
        f'  "measured": {json.dumps(table.measured)},\n  "entries": {{\n' + ",\n".join(kinds) + "\n  }\n}\n"
    )
    path.write_text(text, encoding="utf-8")
