"""Reports as people read them: plain text in a terminal, HTML in a notebook, both from the same parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias


class Table(NamedTuple):
    """Rows of cells, the header first.

    Attributes:
        header: The columns' names.
        rows: A cell a column.
        words: How many of the first columns hold words and stand left; numbers stand right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


# A line of text, or a table.
Part: TypeAlias = str | Table


class Shown:
    """A report that `str()` shows as text and a notebook as HTML; it says its parts once."""

    def parts(self) -> Iterable[Part]:
        """Lines and tables, from the top down."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.parts())

    def _repr_html_(self) -> str:
        return as_html(self.parts())


def as_text(parts: Iterable[Part]) -> str:
    """Lines as they are, tables with columns of equal width and a rule under the header."""
    return "\n".join(part if isinstance(part, str) else _table_text(part) for part in parts)


def as_html(parts: Iterable[Part]) -> str:
    """Every line and cell escaped: names of layers and adapters may come from a stranger's file."""
    return "\n".join(_line_html(part) if isinstance(part, str) else _table_html(part) for part in parts)


def decimal_size(count: int) -> str:
    """Bytes in decimal units, as files and memory are advertised in."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _table_text(table: Table) -> str:
    every = [tuple(table.header), *map(tuple, table.rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = []
    for row in every:
        cells = [
            cell.ljust(width) if place < table.words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _line_html(line: str) -> str:
    return f'<div style="white-space: pre-wrap">{_escaped(line)}</div>'


def _table_html(table: Table) -> str:
    body = "\n".join(_row_html("td", row, table.words) for row in table.rows)
    head = _row_html("th", table.header, table.words)
    return f"<table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _row_html(kind: str, cells: Sequence[str], words: int) -> str:
    sides = ("left" if place < words else "right" for place in range(len(cells)))
    inner = "".join(
        f'<{kind} style="text-align: {side}">{_escaped(cell)}</{kind}>'
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{inner}</tr>"


def _escaped(text: str) -> str:
    from html import escape  # loads a table of 2,000 names, which only a notebook needs

    return escape(text)
