"""What a run found, as text: tables of times, means, launches and memory, and what was to be shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.goals import Finding, findings
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
    """Such as "8192x4096->14336 r16 p0.1 bias": rows, K to N, rank, and dropout and bias where there are."""
    M, K, N, r = (row.shape[name] for name in "MKNr")
    dropout = f" p{row.dropout:g}" if row.dropout else ""
    return f"{M}x{K}->{N} r{r}{dropout}{' bias' * row.bias}"


def dtype_names(row: Row) -> str:
    """Such as "bf16+fp32": of the layer, and of the adapters where theirs is another."""
    return "+".join(_short(dtype) for dtype in dict.fromkeys((row.dtype, row.adapter_dtype)))


def summary(results: Results) -> Iterator[str]:
    """The lines to print at the end of a run; what went wrong stands last."""
    for phase, mode in sections(results.rows):
        cases = groups(results.rows, phase, mode)
        yield ""
        yield f"{phase}, {mode}: median us of one call, and its ratio to {FROZEN}"
        yield from aligned(_table(cases))
        yield from _means(cases)
    yield from _costs(results.rows)
    yield ""
    yield "what is to be shown on an H200, r=16, by CUDA graphs; means over Llama 3.1 8B and 70B, M >= 2048"
    yield from aligned([list(Finding._fields), *(list(finding) for finding in findings(results))])
    yield ""
    yield from (f"{name}: {step['summary']}" for name, step in results.correctness.items())
    yield from (f"absent: {method}: {why}" for method, why in results.absent.items())
    left_out = Counter((entry["method"], entry["why"]) for entry in results.left_out)
    yield from (f"left out: {method} of {count} cases: {why}" for (method, why), count in left_out.items())
    yield from (f"FAILED: {failure}" for failure in results.failures())


def _table(cases: list[Group]) -> Iterator[list[str]]:
    methods = _methods(cases)
    heads = [part for method in methods for part in (method, "")]
    yield ["case", "dtypes", *heads, f"{FULL}/{OURS}", f"{OURS}/floor"]
    for group in cases:
        row, ours = any_row(group), group.get(OURS)
        cells = []
        for method in methods:
            cells.append(f"{group[method].median_us:.1f}" if method in group else "-")
            cells.append(_number(_median_ratio(group, method, FROZEN)))
        gap = None if ours is None else ours.median_us / ours.floor_us
        yield [
            shape_name(row),
            dtype_names(row),
            *cells,
            _number(_median_ratio(group, FULL, OURS)),
            _number(gap),
        ]


def _means(cases: list[Group]) -> Iterator[str]:
    """Geometric means over the cases of one pair of dtypes, with dropout and without."""
    pairs = [(OURS, FROZEN), *((method, OURS) for method in _methods(cases) if method not in (OURS, FROZEN))]
    for kind in dict.fromkeys(map(_kind, cases)):
        same = [group for group in cases if _kind(group) == kind]
        means = {f"{over}/{under}": _mean_ratio(same, over, under) for over, under in pairs}
        parts = [f"{name} {_number(mean)}" for name, mean in means.items() if mean is not None]
        yield f"mean of {len(same)}, {kind}: " + ", ".join(parts)


def _kind(group: Group) -> str:
    row = any_row(group)
    return dtype_names(row) + (f", dropout {row.dropout:g}" if row.dropout else "")


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    """Launches and memory in the first case: the same in eager and in graph mode."""
    for phase in dict.fromkeys(row.phase for row in rows):
        group = groups(rows, phase, rows[0].mode)[0]
        case = any_row(group)
        yield ""
        yield f"{phase}, {shape_name(case)}, {dtype_names(case)}: one call takes"
        heads = ["", "launches", "peak MB"]
        yield from aligned(
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


def aligned(lines: Iterable[list[str]]) -> Iterator[str]:
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
