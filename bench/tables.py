"""What was measured, on the terminal: a table for each net or layer, and what comes of them together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from bench.ceilings import Ceilings
from bench.goals import Finding
from bench.groups import OURS, Group, columns, comparable
from bench.results import Results, Row

# Of the widest table: folded it cannot be read, and a file has no width.
_WIDTH = 190
_NONE = "-"


def wide_console(file: TextIO | None = None) -> Console:
    """A console that folds no table."""
    console = Console(file=file)
    console.width = max(console.width, _WIDTH)
    return console


def say(console: Console, line: str, style: str = "") -> None:
    """A line as it stands, however long."""
    console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def table_of(heads: Sequence[str], title: str | None = None) -> Table:
    """A table whose first column is words, the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def print_header(results: Results, console: Console) -> None:
    """What ran where."""
    here = results.environment
    say(console, f"device    {here.device['name']}")
    say(console, f"versions  {here.versions_in_words}")
    say(console, f"commit    {here.commit or 'unknown'}{', modified' if here.modified else ''}")


def print_tables(results: Results, console: Console, findings: Iterable[Finding] = ()) -> None:
    """Print the ceilings, a table for each group of comparable rows, multiples of ours, and what went wrong.

    Args:
        results: Of a level or a GPU run.
        console: Where to.
        findings: What was to be shown, if anything.
    """
    for measured in (results.ceilings, *results.other_ceilings):
        if measured is not None:
            say(console, f"ceilings  {Ceilings(**measured)}")
    for group in comparable(results.rows):
        _print_group(group, results, console)
    for column in columns(results.rows):
        cells = ", ".join(f"{method} {multiple}" for method, multiple in column.cells.items())
        say(console, f"multiples of {OURS}, {column.head}: {cells}")
    if found := list(findings):
        table = table_of(Finding._fields, "what is to be shown on an H200, by CUDA graphs, r=16")
        for finding in found:
            table.add_row(*finding)
        console.print(table)
    for name, step in results.correctness.items():
        say(console, f"{name}: {step['summary']}")
    left_out = Counter((entry["method"], entry["why"]) for entry in results.left_out)
    for (method, why), count in left_out.items():
        say(console, f"left out: {method} of {count} cases: {why}")
    for method, why in results.absent.items():
        say(console, f"absent    {method}: {why}")
    for failure in results.failures():
        say(console, f"FAILED    {failure}", style="bold red")


def _print_group(group: Group, results: Results, console: Console) -> None:
    measured = results.ceilings_of(group.any_row.dtype)
    ceilings = None if measured is None else Ceilings(**measured)
    lines = {method: dict(_cells(group, method, ceilings)) for method in group.rows}
    # Columns that no method has a value in are left out.
    heads = list(dict.fromkeys(head for line in lines.values() for head in line if line[head] != _NONE))
    table = table_of(["", *heads], group.title)
    for method, line in lines.items():
        style = "bold" if method == OURS else ""
        table.add_row(method, *(line.get(head, _NONE) for head in heads), style=style)
    console.print(table)


def _cells(group: Group, method: str, ceilings: Ceilings | None) -> Iterator[tuple[str, str]]:
    """(head of the column, cell) of one method."""
    rows = group.rows[method]
    us, unit = in_unit(group)
    for phase in group.phases:
        yield f"{phase}\n{unit}", _digits(rows[phase].median_us / us) if phase in rows else _NONE
    row = rows.get(group.whole)
    if row is None:
        return
    yield "quartiles\n", f"{_digits(row.q25_us / us)} .. {_digits(row.q75_us / us)}"
    over = group.over(method)
    yield f"over\n{OURS}", f"{over.median:.3f}" if over else _NONE
    yield "its\nquartiles", f"{over.q25:.2f} .. {over.q75:.2f}" if over else _NONE
    shape = row.shape
    if "batch" in shape:
        done, what = (shape["batch"] * shape["length"], "tokens/s") if "length" in shape else (1, "steps/s")
        yield f"{what}\n", f"{1e6 * done / row.median_us:,.0f}"
    yield "over\nfloor", f"{row.median_us / row.floor_us:.2f}" if row.floor_us else _NONE
    if ceilings is not None:
        yield "of matrix\nceiling", _share(row, row.flops, ceilings.matmul_flops)
        yield "of copy\nceiling", _share(row, row.moved_bytes, ceilings.copy_bytes_per_s)
    yield "saved\nMB", _megabytes(row.saved_bytes)
    yield "peak\nMB", _megabytes(row.peak_bytes)
    yield "launches\n", _NONE if row.launches is None else str(row.launches)


def in_unit(group: Group) -> tuple[float, str]:
    """(microseconds in the unit, the unit) that suits the group's times."""
    longest = max(row.median_us for phases in group.rows.values() for row in phases.values())
    return next(((us, name) for us, name in ((1e6, "s"), (1e3, "ms")) if longest >= 2 * us), (1.0, "us"))


def _share(row: Row, work: int | None, ceiling: float) -> str:
    return _NONE if work is None else f"{100 * work / (1e-6 * row.median_us) / ceiling:.0f}%"


def _megabytes(count: int | None) -> str:
    return _NONE if count is None else f"{count / 1e6:,.2f}"


def _digits(value: float) -> str:
    """Three digits and more."""
    digits = 0 if value >= 1000 else 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"
