"""What a run found, as text: tables of times for each phase and mode, means, launches and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.results import Results, Row
from bench.timing import ratio

OURS = "fastlora"
FROZEN = "frozen"
FULL = "full"

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

Group = dict[str, Row]


def groups(rows: Sequence[Row], phase: str, mode: str) -> list[Group]:
    """The rows of one phase and mode by method, a group for each case, in order."""
    cases: dict[str, Group] = {}
    for row in rows:
        if (row.phase, row.mode) == (phase, mode):
            cases.setdefault(str(row.labels), {})[row.method] = row
    return list(cases.values())


def any_row(group: Group) -> Row:
    """A row of the group; all of them are of the same case."""
    return next(iter(group.values()))


def sections(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(phase, mode) pairs in order of their first row."""
    return list(dict.fromkeys((row.phase, row.mode) for row in rows))


def shape_name(row: Row) -> str:
    """Such as "8192x4096->14336 r16": rows, K to N, rank."""
    M, K, N, r = (row.shape[name] for name in "MKNr")
    return f"{M}x{K}->{N} r{r}"


def summary(results: Results) -> Iterator[str]:
    """The lines to print at the end of a run; what went wrong stands last."""
    for phase, mode in sections(results.rows):
        cases = groups(results.rows, phase, mode)
        yield ""
        yield f"{phase}, {any_row(cases[0]).dtype}, {mode}: median us of one call, and its ratio to {FROZEN}"
        yield from _aligned(_table(cases))
        yield from _means(cases)
    yield from _costs(results.rows)
    yield ""
    yield from (f"absent: {method}: {why}" for method, why in results.absent.items())
    yield from (f"FAILED: {failure}" for failure in results.failures())


def _table(cases: list[Group]) -> Iterator[list[str]]:
    methods = _methods(cases)
    heads = [part for method in methods for part in (method, "")]
    yield ["case", "adapters", *heads, f"{FULL}/{OURS}", f"{OURS}/floor"]
    for group in cases:
        row, ours = any_row(group), group.get(OURS)
        cells = []
        for method in methods:
            cells.append(f"{group[method].median_us:.1f}" if method in group else "-")
            cells.append(_number(_median_ratio(group, method, FROZEN)))
        gap = None if ours is None else ours.median_us / ours.floor_us
        yield [
            shape_name(row),
            _short(row.adapter_dtype),
            *cells,
            _number(_median_ratio(group, FULL, OURS)),
            _number(gap),
        ]


def _means(cases: list[Group]) -> Iterator[str]:
    """Geometric means over the cases of one adapter dtype."""
    pairs = [(OURS, FROZEN), *((method, OURS) for method in _methods(cases) if method not in (OURS, FROZEN))]
    for dtype in dict.fromkeys(any_row(group).adapter_dtype for group in cases):
        same = [group for group in cases if any_row(group).adapter_dtype == dtype]
        parts = [f"{over}/{under} {_number(_mean_ratio(same, over, under))}" for over, under in pairs]
        yield f"mean, adapters {_short(dtype)}: " + ", ".join(parts)


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    """Launches and memory in the first case: the same in eager and in graph mode."""
    for phase in dict.fromkeys(row.phase for row in rows):
        group = groups(rows, phase, rows[0].mode)[0]
        case = any_row(group)
        yield ""
        yield f"{phase}, {shape_name(case)}, adapters {_short(case.adapter_dtype)}: one call takes"
        heads = ["", "launches", "peak MB"]
        yield from _aligned(
            [heads, *([m, _count(row.launches), _megabytes(row.peak_bytes)] for m, row in group.items())]
        )


def _methods(cases: list[Group]) -> list[str]:
    return list(dict.fromkeys(method for group in cases for method in group))


def _median_ratio(group: Group, over: str, under: str) -> float | None:
    """Median of the pairwise ratios of two methods; None where one is missing."""
    if over not in group or under not in group:
        return None
    return ratio(group[over].samples_us, group[under].samples_us).median


def _mean_ratio(cases: list[Group], over: str, under: str) -> float | None:
    ratios = [found for group in cases if (found := _median_ratio(group, over, under)) is not None]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _aligned(lines: Iterable[list[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    table = list(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *rest in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([f"{first:{widths[0]}}", *cells])


def _short(dtype: str) -> str:
    return _SHORT.get(dtype, dtype)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"
