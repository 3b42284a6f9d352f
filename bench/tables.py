"""What was measured, in lines and tables: one for each net or layer, and what comes of them together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from bench.ceilings import Ceilings
from bench.goals import Finding
from bench.groups import OURS, Group, columns, comparable, told
from bench.results import Results
from fastlora.tables import Part, Table

_NONE = "-"


def parts(results: Results, findings: Iterable[Finding] = ()) -> Iterator[Part]:
    """What ran where, a table for each group of comparable rows, multiples of ours, and what went wrong.

    Args:
        results: Of a level or a GPU run.
        findings: What was to be shown, if anything.
    """
    here = results.environment
    yield f"device    {here.device['name']}"
    yield f"versions  {here.versions_in_words}"
    yield f"commit    {here.commit or 'unknown'}{', modified' if here.modified else ''}"
    for measured in (results.ceilings, *results.other_ceilings):
        if measured is not None:
            yield f"ceilings  {Ceilings(**measured)}"
    for group in comparable(results.rows):
        measured = results.ceilings_of(group.any_row.dtype)
        yield f"\n{group.title}"
        yield _table(group, None if measured is None else Ceilings(**measured))
    yield ""
    for column in columns(results.rows):
        cells = ", ".join(f"{method} {told(multiple)}" for method, multiple in column.cells.items())
        yield f"multiples of {OURS}, {column.head}: {cells}"
    if found := list(findings):
        yield "what is to be shown on an H200, by CUDA graphs, r=16"
        yield Table(Finding._fields, found, words=2)
    for name, step in results.correctness.items():
        yield f"{name}: {step['summary']}"
    left_out = Counter((entry["method"], entry["why"]) for entry in results.left_out)
    for (method, why), count in left_out.items():
        yield f"left out: {method} of {count} cases: {why}"
    for method, why in results.absent.items():
        yield f"absent    {method}: {why}"
    for failure in results.failures():
        yield f"FAILED    {failure}"


def _table(group: Group, ceilings: Ceilings | None) -> Table:
    lines = {method: dict(_cells(group, method, ceilings)) for method in group.rows}
    # Columns that no method has a value in are left out.
    heads = list(dict.fromkeys(head for line in lines.values() for head in line if line[head] != _NONE))
    cells = [[method, *(line.get(head, _NONE) for head in heads)] for method, line in lines.items()]
    return Table(["", *heads], cells)


def _cells(group: Group, method: str, ceilings: Ceilings | None) -> Iterator[tuple[str, str]]:
    """(head of the column, cell) of one method."""
    rows, row = group.rows[method], group.row(method)
    for phase in group.phases:
        yield f"{phase}, ms", _ms(rows[phase].median_us) if phase in rows else _NONE
    if row is None:
        return
    yield "quartiles", f"{_ms(row.q25_us)} .. {_ms(row.q75_us)}"
    over, shape, seconds = group.over(method), row.shape, 1e-6 * row.median_us
    yield f"over {OURS}", f"{over.median:.3f}" if over else _NONE
    yield "its quartiles", f"{over.q25:.2f} .. {over.q75:.2f}" if over else _NONE
    if "batch" in shape:
        done, what = (shape["batch"] * shape["length"], "tokens/s") if "length" in shape else (1, "steps/s")
        yield what, f"{done / seconds:,.0f}"
    yield "over floor", f"{row.median_us / row.floor_us:.2f}" if row.floor_us else _NONE
    if ceilings is not None and row.flops is not None and row.moved_bytes is not None:
        yield "of matrix ceiling", f"{100 * row.flops / seconds / ceilings.matmul_flops:.0f}%"
        yield "of copy ceiling", f"{100 * row.moved_bytes / seconds / ceilings.copy_bytes_per_s:.0f}%"
    for head, count in (("saved MB", row.saved_bytes), ("peak MB", row.peak_bytes)):
        yield head, _NONE if count is None else f"{count / 1e6:,.2f}"
    yield "launches", _NONE if row.launches is None else str(row.launches)


def _ms(us: float) -> str:
    """Milliseconds, with three digits and more."""
    digits = 2 - math.floor(math.log10(us / 1e3)) if us > 0 else 0
    return f"{us / 1e3:,.{max(0, digits)}f}"


def say(line: str = "") -> None:
    """Print at once: a run that is killed loses what a buffer holds."""
    print(line, flush=True)  # noqa: T201
