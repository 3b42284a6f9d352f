"""What was measured, on the terminal: a table for each net or layer, or a line for each of a GPU run."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.ceilings import Ceilings
from bench.goals import Finding, findings
from bench.groups import OURS, Group, comparable, in_unit
from bench.results import Results, Row

_NONE = "-"


def print_header(results: Results, console: Console) -> None:
    """What ran where."""
    here = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items() if version)
    commit = f"{here.commit or 'unknown'}{', modified' if here.modified else ''}"
    for name, value in (("device", here.device["name"]), ("versions", versions), ("commit", commit)):
        _say(console, f"{name:8}  {value}")


def print_tables(results: Results, console: Console) -> None:
    """Print the ceilings, a table for each group of comparable rows, what is absent, and what went wrong."""
    for measured in (results.ceilings, *results.other_ceilings):
        if measured is not None:
            _say(console, f"ceilings  {Ceilings(**measured)}")
    for group in comparable(results.rows):
        measured = results.ceilings_of(group.any_row.dtype)
        ceilings = None if measured is None else Ceilings(**measured)
        lines = {method: dict(_cells(group, method, ceilings)) for method in group.rows}
        # Columns that no method has a value in are left out.
        heads = [
            head for head in lines[next(iter(lines))] if any(row[head] != _NONE for row in lines.values())
        ]
        table = _table(["", *heads], title=group.title)
        for method, line in lines.items():
            table.add_row(method, *(line[head] for head in heads), style="bold" if method == OURS else "")
        console.print(table)
    _print_failures(results, console)


def print_summary(results: Results, console: Console) -> None:
    """A GPU run: a line for each layer in each phase and mode, means, costs, and what was to be shown."""
    groups = comparable(results.rows)
    for phase, mode in dict.fromkeys((row.phase, row.mode) for row in results.rows):
        cases = [group for group in groups if group.any_row.mode == mode and phase in group.phases]
        methods = list(dict.fromkeys(method for group in cases for method in group.rows))
        _say(console, f"\n{phase}, {mode}: median us of one call, and its ratio to frozen")
        table = _table(["case", *(h for m in methods for h in (m, "")), f"full/{OURS}", f"{OURS}/floor"])
        for group in cases:
            table.add_row(_case(group), *_medians(group, methods, phase))
        console.print(table)
        for line in _means(cases, methods, phase):
            _say(console, line)
    for phase in dict.fromkeys(row.phase for row in results.rows):
        first = next(group for group in groups if phase in group.phases)
        _say(console, f"\n{phase}, {_case(first)}: one call takes")
        table = _table(["", "launches", "peak MB"])
        for method, phases in first.rows.items():
            if row := phases.get(phase):
                table.add_row(method, _count(row.launches), _megabytes(row.peak_bytes))
        console.print(table)
    _say(
        console,
        "\nwhat is to be shown on an H200, r=16, by CUDA graphs; means over Llama 3.1 8B, 70B, M >= 2048",
    )
    table = _table(list(Finding._fields))
    for finding in findings(results):
        table.add_row(*finding)
    console.print(table)
    for name, step in results.correctness.items():
        _say(console, f"{name}: {step['summary']}")
    left_out = Counter((entry["method"], entry["why"]) for entry in results.left_out)
    for (method, why), count in left_out.items():
        _say(console, f"left out: {method} of {count} cases: {why}")
    _print_failures(results, console)


def _print_failures(results: Results, console: Console) -> None:
    """What went wrong stands last."""
    for method, why in results.absent.items():
        _say(console, f"absent    {method}: {why}")
    for failure in results.failures():
        _say(console, f"FAILED    {failure}", style="bold red")


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def _table(heads: Sequence[str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


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
    yield f"over\n{OURS}", _NONE if over is None else f"{over.median:.3f}"
    yield "its\nquartiles", _NONE if over is None else f"{over.q25:.2f} .. {over.q75:.2f}"
    shape = row.shape
    done = shape["batch"] * shape["length"] if "length" in shape else 1
    rate = f"{1e6 * done / row.median_us:,.0f}"
    yield "tokens/s\n", rate if "length" in shape else _NONE
    yield "steps/s\n", rate if "batch" in shape and "length" not in shape else _NONE
    yield "over\nfloor", f"{row.median_us / row.floor_us:.2f}" if row.floor_us else _NONE
    matrix, copy = (None, None) if ceilings is None else (ceilings.matmul_flops, ceilings.copy_bytes_per_s)
    yield "of matrix\nceiling", _share(row, row.flops, matrix)
    yield "of copy\nceiling", _share(row, row.moved_bytes, copy)
    yield "saved\nMB", _megabytes(row.saved_bytes)
    yield "peak\nMB", _megabytes(row.peak_bytes)
    yield "launches\n", _count(row.launches)


def _case(group: Group) -> str:
    """Its title without the level and the mode, which stand above."""
    _, _, rest = group.title.partition(" ")
    return rest.removesuffix(f", {group.any_row.mode}")


def _medians(group: Group, methods: Sequence[str], phase: str) -> Iterator[str]:
    for method in methods:
        row = group.rows.get(method, {}).get(phase)
        yield _NONE if row is None else f"{row.median_us:.1f}"
        yield _ratio(_over(group, method, "frozen", phase))
    yield _ratio(_over(group, "full", OURS, phase))
    ours = group.rows.get(OURS, {}).get(phase)
    yield _ratio(ours.median_us / ours.floor_us if ours and ours.floor_us else None)


def _means(cases: Sequence[Group], methods: Sequence[str], phase: str) -> Iterator[str]:
    """Geometric means over the cases of one pair of dtypes, with dropout and without."""
    pairs = [(OURS, "frozen"), *((method, OURS) for method in methods if method not in (OURS, "frozen"))]
    kinds: dict[str, list[Group]] = {}
    for group in cases:
        kinds.setdefault(group.kind, []).append(group)
    for kind, same in kinds.items():
        means = []
        for over, under in pairs:
            ratios = [found for group in same if (found := _over(group, over, under, phase)) is not None]
            if ratios:
                means.append(f"{over}/{under} {_ratio(statistics.geometric_mean(ratios))}")
        yield f"mean of {len(same)}, {kind}: " + ", ".join(means)


def _over(group: Group, over: str, under: str, phase: str) -> float | None:
    found = group.over(over, under, phase)
    return None if found is None else found.median


def _share(row: Row, work: int | None, ceiling: float | None) -> str:
    return _NONE if work is None or not ceiling else f"{100 * work / (1e-6 * row.median_us) / ceiling:.0f}%"


def _megabytes(count: int | None) -> str:
    return _NONE if count is None else f"{count / 1e6:,.2f}"


def _count(value: int | None) -> str:
    return _NONE if value is None else str(value)


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _digits(value: float) -> str:
    """Three digits and more."""
    digits = 0 if value >= 1000 else 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"
