"""Reads and writes the tile tables, one JSON file for each architecture. Nothing is tuned at run time.

A tuning run (`python -m bench.tuning`) writes a new table. It is either committed with the measurement that
chose it, or kept by a user in the folder that FASTLORA_TABLES names. `compile_check/` checks that every entry
of the package's tables compiles without spills and within its architecture's shared memory.
"""

import functools
import json
import os
from pathlib import Path
from typing import Final

from fastlora_kernels.table_content import ContentError, Entry, Table, Tile, Win, read_content, tile_of

__all__ = [
    "ARCHITECTURES",
    "FOLDER",
    "Entry",
    "Table",
    "Tile",
    "Win",
    "load_table",
    "read_table",
    "tile_of",
    "write_table",
]

ARCHITECTURES: Final = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")

FOLDER: Final = Path(__file__).parent / "tables"

# The largest table file that is read; the package's have 4 kB.
_MOST_BYTES: Final = 256 * 1024


@functools.cache
def load_table(architecture: str) -> Table:
    """The table of one of ARCHITECTURES: from the folder FASTLORA_TABLES if it has one, else the package's.

    Raises:
        ValueError: If FASTLORA_TABLES names no folder, or the file is no tile table.
    """
    folder = os.environ.get("FASTLORA_TABLES")
    if folder is None:
        return read_table(FOLDER / f"{architecture}.json")
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise ValueError(f"FASTLORA_TABLES must name a folder of tile tables; got {_short(repr(folder))}")
    own = Path(folder) / f"{architecture}.json"
    return read_table(own if os.path.lexists(own) else FOLDER / own.name)


def read_table(path: Path) -> Table:
    """A table from its file, with every value checked.

    Raises:
        ValueError: If the file is no tile table.
    """
    try:
        return read_content(json.loads(text_of(path, _MOST_BYTES)))
    except (ValueError, OSError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ContentError) else str(error)
        raise ValueError(f"{_short(str(path))} is no tile table: {_short(why)}") from error


def text_of(path: Path, most_bytes: int) -> str:
    """The text of a file that may be a stranger's.

    Raises:
        ContentError: If it is no regular file, or larger.
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ContentError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ContentError(f"it has more than {most_bytes:,} bytes")
    return content.decode("utf-8")


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:140] + " ... " + text[-140:]


def write_table(table: Table, path: Path) -> None:
    """Write a table, with one line for each tile, so that a diff of two tables is readable."""
    kinds = []
    for kind, classes in table.entries.items():
        entries = []
        for name, entry in classes.items():
            fields = [
                f'"{what}": {json.dumps(getattr(entry, what)._asdict())}' for what in ("forward", "backward")
            ]
            if entry.library:
                wins = [win._asdict() for win in entry.library]
                fields.append(f'"library": {json.dumps(wins)}')
            entries.append(f'      "{name}": {{\n        ' + ",\n        ".join(fields) + "\n      }")
        kinds.append(f'    "{kind}": {{\n' + ",\n".join(entries) + "\n    }")
    text = (
        f'{{\n  "multiprocessors": {table.multiprocessors},\n  "shared_memory": {table.shared_memory},\n'
        f'  "measured": {json.dumps(table.measured)},\n  "entries": {{\n' + ",\n".join(kinds) + "\n  }\n}\n"
    )
    path.write_text(text, encoding="utf-8")
