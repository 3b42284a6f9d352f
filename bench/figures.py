"""What the README says of the results: multiples of ours, sentences, a picture; all from the files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.groups import OURS, Group, comparable
from bench.pictures import Bar, Panel, draw
from bench.results import Results

LINEAR: Final = "linear"
STARTUP: Final = "startup"

NOT_MEASURED: Final = "Not measured yet."

_FROZEN: Final = "frozen"

# Layers this large are bound by their products, not by Python.
_LARGE: Final = {"M": 128, "K": 1000, "N": 1000}


class Run(NamedTuple):
    """A results file: where it lies, and what it holds."""

    path: Path
    results: Results


class Multiple(NamedTuple):
    """How many times ours: median and quartiles of one comparison, or mean of several and their range."""

    low: float
    middle: float
    high: float


class Column(NamedTuple):
    """One thing that all methods do, and how they do it, by name."""

    head: str
    cells: dict[str, Multiple]
    is_time: bool = True


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
                yield Column(group.title, {name: Multiple(*ratio) for name, ratio in ratios.items() if ratio})


def _linear_columns(groups: list[Group]) -> Iterator[Column]:
    """One for each kind of layer (dtypes, dropout, bias, mode), over its shapes."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.title.partition(", ")[2], []).append(group)
    for kind, same in kinds.items():
        head = f"{same[0].whole} of a layer, {kind}, {len(same)} shape{'s'[: len(same) > 1]}"
        yield Column(head, _over_all(same, _time_over_ours))
        if same[0].any_row.dropout:
            yield Column(f"bytes saved for backward, {kind}", _over_all(same, _saved_over_ours), False)


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
    rows = (group.rows.get(name, {}).get(group.whole) for name in (method, OURS))
    theirs, ours = (None if row is None else row.saved_bytes for row in rows)
    return theirs / ours if theirs and ours else None


def figures(runs: Mapping[str, Run], picture: Path) -> Iterator[str]:
    """The lines of Markdown for one kind of device, from its runs by level, and a link to its picture."""
    if not runs:
        yield NOT_MEASURED
        return
    yield "Multiples of fastlora's time: above 1 fastlora is faster."
    yield ""
    yield from _table(list(columns(runs)))
    yield ""
    yield f"![How many times fastlora's time each method takes]({picture.as_posix()})"
    yield ""
    yield from _sentences(runs)
    yield from _origin(runs, picture.parent)


def _table(shown: Sequence[Column]) -> Iterator[str]:
    methods = list(dict.fromkeys(method for column in shown for method in column.cells))
    yield "| | " + " | ".join(f"**{name}**" if name == OURS else name for name in methods) + " |"
    yield "|---" * (1 + len(methods)) + "|"
    for head, cells, _ in shown:
        yield "| " + " | ".join([head, *(_cell(cells.get(method)) for method in methods)]) + " |"


def _cell(multiple: Multiple | None) -> str:
    if multiple is None:
        return "-"
    low, middle, high = (f"{value:.2f}" for value in multiple)
    return middle if low == high else f"{middle} ({low} .. {high})"


def _sentences(runs: Mapping[str, Run]) -> Iterator[str]:
    """How far ours is from the frozen layer, and how long one waits for it to start."""
    groups = comparable(runs[LINEAR].results.rows) if LINEAR in runs else []
    large = [(group, group.over(OURS, _FROZEN)) for group in groups if _is_large(group)]
    over = sorted((ratio.median, group.title) for group, ratio in large if ratio is not None)
    lines = []
    if over:
        sizes = ", ".join(f"{name} >= {least}" for name, least in _LARGE.items())
        what = f"fastlora over the frozen layer, which trains nothing, {large[0][0].whole}, {sizes}, r = 16"
        lines.append(f"- {what}: {over[0][0]:.2f} .. {over[-1][0]:.2f} ({over[-1][1]}).")
    for row in runs[STARTUP].results.rows if STARTUP in runs else ():
        if row.method == OURS and row.phase != "second step":
            what = f"{row.phase} of one layer in a fresh process, {row.mode}"
            what = "`import fastlora`, torch's own import not counted" if row.phase == "import" else what
            lines.append(f"- {what}: {1e-6 * row.median_us:.3f} s.")
    yield from lines
    yield from [""] if lines else []


def _is_large(group: Group) -> bool:
    row = group.any_row
    large = all(row.shape[name] >= least for name, least in _LARGE.items())
    return large and row.shape["r"] == 16 and not row.dropout


def _origin(runs: Mapping[str, Run], folder: Path) -> Iterator[str]:
    """Where the figures are from: device, versions, commit, command."""
    told = {run.path: run.results for run in runs.values()}
    here = next(iter(told.values())).environment
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items() if version)
    yield f"{here.device['name']}; {versions}. Medians of the ratios of pairs timed in the same round, with"
    yield "quartiles; over several shapes geometric means, with the range. Raw results:"
    yield ""
    for path, results in told.items():
        commit = (results.environment.commit or "unknown")[:10]
        link = (folder / path.name).as_posix()
        yield f"- [{path.name}]({link}): `{results.command}`, commit {commit}"


def draw_figures(runs: Mapping[str, Run], path: Path) -> None:
    """The picture of one kind of device: how much of fastlora's time does each method take?"""
    panels = [
        Panel(
            column.head,
            [
                Bar(method, cell.middle, cell.low, cell.high, f"{cell.middle:.2f}x")
                for method, cell in column.cells.items()
            ],
            mark=1.0,
        )
        for column in columns(runs)
        if column.is_time
    ]
    question = "How long does each method take, in multiples of fastlora's time?"
    draw(question, "times fastlora's; beyond 1 (dotted) fastlora takes less", panels, path)
