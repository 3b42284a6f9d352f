"""What a level found, as tables on the terminal: a table for each net or layer, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from bench.ceilings import Ceilings
from bench.groups import OURS, Group, comparable
from bench.results import Results, Row

_NONE = "-"


def print_tables(results: Results, console: Console) -> None:
    """Print the ceilings, a table for each group of comparable rows, what is absent, and what went wrong."""
    for measured in (results.ceilings, *results.other_ceilings):
        if measured is not None:
            console.print(f"ceilings  {Ceilings(**measured)}", highlight=False, soft_wrap=True)
    for group in comparable(results.rows):
        measured = results.ceilings_of(group.any_row.dtype)
        console.print(_table(group, None if measured is None else Ceilings(**measured)))
    for method, why in results.absent.items():
        console.print(f"absent    {method}: {why}", highlight=False, soft_wrap=True)
    for failure in results.failures():
        console.print(f"FAILED    {failure}", style="bold red", highlight=False, soft_wrap=True)


def _table(group: Group, ceilings: Ceilings | None) -> Table:
    """Columns that no method has a value in are left out."""
    table = Table(title=group.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    lines = {method: dict(_cells(group, method, ceilings)) for method in group.rows}
    heads = [
        head for head in next(iter(lines.values())) if any(line[head] != _NONE for line in lines.values())
    ]
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for method, line in lines.items():
        style = "bold" if method == OURS else ""
        table.add_row(method, *(line[head] for head in heads), style=style)
    return table


def _cells(group: Group, method: str, ceilings: Ceilings | None) -> Iterator[tuple[str, str]]:
    """(head of the column, cell) of one method."""
    rows = group.rows[method]
    unit, name = scale(group)
    for phase in group.phases:
        yield f"{phase}\n{name}", _number(rows[phase].median_us / unit) if phase in rows else _NONE
    row = rows.get(group.whole)
    yield (
        "quartiles\n",
        _NONE if row is None else f"{_number(row.q25_us / unit)} .. {_number(row.q75_us / unit)}",
    )
    over = group.over(method)
    yield f"over\n{OURS}", _NONE if over is None else f"{over.median:.3f}"
    yield "its\nquartiles", _NONE if over is None else f"{over.q25:.2f} .. {over.q75:.2f}"
    yield "tokens/s\n", _rate(row, "length")
    yield "steps/s\n", _rate(row, "batch") if row is not None and "length" not in row.shape else _NONE
    yield "over\nfloor", _NONE if row is None or not row.floor_us else f"{row.median_us / row.floor_us:.2f}"
    matrix, copy = (None, None) if ceilings is None else (ceilings.matmul_flops, ceilings.copy_bytes_per_s)
    flops, moved = (None, None) if row is None else (row.flops, row.moved_bytes)
    yield "of matrix\nceiling", _share(row, flops, matrix)
    yield "of copy\nceiling", _share(row, moved, copy)
    saved, peak, launches = (
        (None, None, None) if row is None else (row.saved_bytes, row.peak_bytes, row.launches)
    )
    yield "saved\nMB", _megabytes(saved)
    yield "peak\nMB", _megabytes(peak)
    yield "launches\n", _NONE if launches is None else str(launches)


def scale(group: Group) -> tuple[float, str]:
    """(microseconds in the unit, the unit) that suits the group's times."""
    longest = max(row.median_us for phases in group.rows.values() for row in phases.values())
    return next(((us, name) for us, name in ((1e6, "s"), (1e3, "ms")) if longest >= 2 * us), (1.0, "us"))


def _rate(row: Row | None, needs: str) -> str:
    """What is done in a second: tokens where a row of the batch has several, else steps."""
    if row is None or needs not in row.shape:
        return _NONE
    done = row.shape["batch"] * row.shape["length"] if needs == "length" else 1
    return f"{1e6 * done / row.median_us:,.0f}"


def _share(row: Row | None, work: int | None, ceiling: float | None) -> str:
    if row is None or work is None or not ceiling:
        return _NONE
    return f"{100 * work / (1e-6 * row.median_us) / ceiling:.0f}%"


def _megabytes(count: int | None) -> str:
    return _NONE if count is None else f"{count / 1e6:,.2f}"


def _number(value: float) -> str:
    """Three digits and more."""
    digits = 0 if value >= 1000 else 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"
