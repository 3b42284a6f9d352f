"""What the README says of the results: a table of methods, and sentences; every figure from the files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.groups import OURS, Group, comparable
from bench.results import Results, Row
from bench.timing import Quartiles

NOT_MEASURED: Final = "Not measured yet."

_FROZEN: Final = "frozen"

# A layer this large is bound by its products, not by Python.
_LARGE: Final = {"M": 128, "K": 1000, "N": 1000}

_LINEAR: Final = "linear"


class Run(NamedTuple):
    """A results file.

    Attributes:
        path: Where it lies.
        results: What it holds.
    """

    path: Path
    results: Results


def newest(runs: Iterable[Run], kind: str) -> dict[str, Run]:
    """The latest run of each level on a kind of device, by level."""
    found: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.results.started):
        if run.results.environment.device["kind"] == kind:
            for row in run.results.rows:
                found[row.level] = run
    return found


def figures(runs: Mapping[str, Run]) -> Iterator[str]:
    """The lines of Markdown for one kind of device.

    Args:
        runs: By level; none where nothing was measured.
    """
    if not runs:
        yield NOT_MEASURED
        return
    yield from _table(list(_columns(runs)))
    yield ""
    yield from _sentences(runs)
    yield ""
    yield from _origin(runs)


def _columns(runs: Mapping[str, Run]) -> Iterator[tuple[str, dict[str, str]]]:
    """(head, cell by method): times over ours, in every level that has them."""
    for level, run in runs.items():
        groups = [group for group in comparable(run.results.rows) if OURS in group.rows]
        if level == _LINEAR:
            yield from _linear_columns(groups)
        elif level != "startup":
            for group in groups:
                yield group.title, {method: _spread(group.over(method)) for method in group.rows}


def _linear_columns(groups: list[Group]) -> Iterator[tuple[str, dict[str, str]]]:
    """A column for each dtype, adapter dtype and dropout, over all shapes, in the last mode measured."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        _, *kind = group.title.split(", ")
        kinds.setdefault(", ".join(kind), []).append(group)
    for kind, same in kinds.items():
        heading = f"one layer, {kind}: {same[0].whole}, mean of {len(same)} shapes"
        yield heading, _over_all(same, lambda group, method: _median(group.over(method)))
        if any("dropout" in part for part in kind.split(", ")):
            yield f"bytes saved for backward, {kind}", _over_all(same, _saved_over_ours)


def _over_all(groups: Sequence[Group], value: Callable[[Group, str], float | None]) -> dict[str, str]:
    """Geometric mean and range over the groups, by method."""
    cells = {}
    for method in dict.fromkeys(method for group in groups for method in group.rows):
        values = [found for group in groups if (found := value(group, method)) is not None]
        if values:
            mean = math.exp(sum(map(math.log, values)) / len(values))
            cells[method] = _number(mean) if len(values) == 1 else f"{_number(mean)} ({_range(values)})"
    return cells


def _saved_over_ours(group: Group, method: str) -> float | None:
    theirs, ours = (_saved(group, name) for name in (method, OURS))
    return theirs / ours if theirs and ours else None


def _saved(group: Group, method: str) -> int | None:
    row = group.rows.get(method, {}).get(group.whole)
    return None if row is None else row.saved_bytes


def _table(columns: Sequence[tuple[str, dict[str, str]]]) -> Iterator[str]:
    if not columns:
        return
    methods = list(dict.fromkeys(method for _, cells in columns for method in cells))
    yield f"| over {OURS}'s | " + " | ".join(head for head, _ in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for method in methods:
        cells = [cells.get(method, "-") for _, cells in columns]
        line = [f"**{method}**" if method == OURS else method, *cells]
        yield "| " + " | ".join(line) + " |"


def _sentences(runs: Mapping[str, Run]) -> Iterator[str]:
    if _LINEAR in runs:
        large = [group for group in comparable(runs[_LINEAR].results.rows) if _is_large(group)]
        ratios = [ratio.median for group in large if (ratio := group.over(OURS, _FROZEN)) is not None]
        if ratios:
            sizes = ", ".join(f"{name} >= {least}" for name, least in _LARGE.items())
            whole = large[0].whole
            yield f"- {OURS} over the frozen layer, {whole}, {sizes}, r = 16: {_range(ratios)}."
    if "startup" in runs:
        for row in runs["startup"].results.rows:
            if row.method == OURS:
                yield f"- {_startup(row)}: {1e-6 * row.median_us:.3f} s."


def _is_large(group: Group) -> bool:
    row = next(iter(next(iter(group.rows.values())).values()))
    return (
        row.shape["r"] == 16 and not row.dropout and all(row.shape[n] >= least for n, least in _LARGE.items())
    )


def _startup(row: Row) -> str:
    if row.phase == "import":
        return f"`import {OURS}` {row.mode}"
    return f"{row.phase} of one layer in a fresh process, {row.mode}"


def _origin(runs: Mapping[str, Run]) -> Iterator[str]:
    """Where the figures are from: device, versions, commit, command."""
    told: dict[Path, Run] = {run.path: run for run in runs.values()}
    here = next(iter(told.values())).results.environment
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items() if version)
    yield f"{here.device['name']}; {versions}. Ratios are medians of pairs timed in the same round, with"
    yield "their quartiles; of several shapes, geometric means with the range. Raw results:"
    yield ""
    for path, run in told.items():
        where = f"commit {(run.results.environment.commit or 'unknown')[:10]}"
        yield f"- [{path.name}](bench/results/{path.name}): `{run.results.command}`, {where}"


def _spread(ratio: Quartiles | None) -> str:
    if ratio is None:
        return "-"
    return "1" if ratio == (1, 1, 1) else f"{_number(ratio.median)} ({_range([ratio.q25, ratio.q75])})"


def _range(values: Sequence[float]) -> str:
    return f"{_number(min(values))} .. {_number(max(values))}"


def _median(ratio: Quartiles | None) -> float | None:
    return None if ratio is None else ratio.median


def _number(value: float) -> str:
    return f"{value:.2f}"
