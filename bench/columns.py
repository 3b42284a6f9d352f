"""Methods side by side over all that was measured: each one's times as multiples of ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.groups import OURS, Group, comparable
from bench.results import Results
from bench.timing import Quartiles

LINEAR: Final = "linear"
STARTUP: Final = "startup"


class Run(NamedTuple):
    """A results file.

    Attributes:
        path: Where it lies.
        results: What it holds.
    """

    path: Path
    results: Results


class Multiple(NamedTuple):
    """How many times ours.

    Attributes:
        low: Lower quartile of one comparison, or the least of several.
        middle: Median of one, or geometric mean of several medians.
        high: Upper quartile, or the most.
    """

    low: float
    middle: float
    high: float


class Column(NamedTuple):
    """One thing that all methods do.

    Attributes:
        head: What.
        cells: By method.
    """

    head: str
    cells: dict[str, Multiple]


def newest(runs: Iterable[Run], kind: str) -> dict[str, Run]:
    """The latest run of each level on a kind of device, by level."""
    found: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.results.started):
        if run.results.environment.device["kind"] == kind:
            for row in run.results.rows:
                found[row.level] = run
    return found


def columns(runs: Mapping[str, Run]) -> Iterator[Column]:
    """What there is to compare in the runs, by level, that ours took part in."""
    for level, run in runs.items():
        rows = [row for row in run.results.rows if row.level == level]
        groups = [group for group in comparable(rows) if OURS in group.rows]
        if level == LINEAR:
            yield from _linear_columns(groups)
        elif level != STARTUP:
            for group in groups:
                ratios = {method: group.over(method) for method in group.rows}
                yield Column(group.title, {name: _own(ratio) for name, ratio in ratios.items() if ratio})


def _own(ratio: Quartiles) -> Multiple:
    return Multiple(ratio.q25, ratio.median, ratio.q75)


def _linear_columns(groups: list[Group]) -> Iterator[Column]:
    """One for each kind of layer (dtypes, dropout, bias, mode), over its shapes."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.title.partition(", ")[2], []).append(group)
    for kind, same in kinds.items():
        head = f"{same[0].whole} of a layer, {kind}, {len(same)} shape{'s'[: len(same) > 1]}"
        yield Column(head, _over_all(same, _time_over_ours))
        if same[0].any_row.dropout:
            yield Column(f"bytes saved for backward, {kind}", _over_all(same, _saved_over_ours))


def _over_all(groups: Sequence[Group], value: Callable[[Group, str], float | None]) -> dict[str, Multiple]:
    cells = {}
    for method in dict.fromkeys(method for group in groups for method in group.rows):
        values = [found for group in groups if (found := value(group, method)) is not None]
        if values:
            low, high = min(values), max(values)
            # Its logarithms round: the mean of one value may lie a little beside it.
            mean = min(max(statistics.geometric_mean(values), low), high)
            cells[method] = Multiple(low, mean, high)
    return cells


def _time_over_ours(group: Group, method: str) -> float | None:
    ratio = group.over(method)
    return None if ratio is None else ratio.median


def _saved_over_ours(group: Group, method: str) -> float | None:
    theirs, ours = (_saved(group, name) for name in (method, OURS))
    return theirs / ours if theirs and ours else None


def _saved(group: Group, method: str) -> int | None:
    row = group.rows.get(method, {}).get(group.whole)
    return None if row is None else row.saved_bytes
