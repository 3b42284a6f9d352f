"""What the README says of the results: a table of methods, and sentences; every figure from the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.columns import LINEAR, STARTUP, Column, Multiple, Run, columns
from bench.groups import OURS, Group, comparable
from bench.results import Row

NOT_MEASURED: Final = "Not measured yet."

_FROZEN: Final = "frozen"

# Layers this large are bound by their products, not by Python.
_LARGE: Final = {"M": 128, "K": 1000, "N": 1000}


def figures(runs: Mapping[str, Run], picture: Path) -> Iterator[str]:
    """The lines of Markdown for one kind of device.

    Args:
        runs: By level; none where nothing was measured.
        picture: Where the picture lies, as the README links to it.
    """
    if not runs:
        yield NOT_MEASURED
        return
    yield "Multiples of fastlora's time: above 1 fastlora is faster."
    yield ""
    yield from _table(list(columns(runs)))
    yield ""
    yield f"![Multiples of fastlora's time, by method]({picture.as_posix()})"
    yield ""
    yield from _sentences(runs)
    yield from _origin(runs, picture.parent)


def _table(shown: Sequence[Column]) -> Iterator[str]:
    methods = list(dict.fromkeys(method for column in shown for method in column.cells))
    yield "| | " + " | ".join(f"**{name}**" if name == OURS else name for name in methods) + " |"
    yield "|---" * (1 + len(methods)) + "|"
    for head, cells in shown:
        yield "| " + " | ".join([head, *(_cell(cells.get(method)) for method in methods)]) + " |"


def _cell(multiple: Multiple | None) -> str:
    if multiple is None:
        return "-"
    low, middle, high = (f"{value:.2f}" for value in multiple)
    return middle if low == high else f"{middle} ({low} .. {high})"


def _sentences(runs: Mapping[str, Run]) -> Iterator[str]:
    lines = [*_floor_sentences(runs), *_startup_sentences(runs)]
    yield from lines
    yield from [""] if lines else []


def _floor_sentences(runs: Mapping[str, Run]) -> Iterator[str]:
    if LINEAR not in runs:
        return
    large = [group for group in comparable(runs[LINEAR].results.rows) if _is_large(group)]
    over = {group.title: ratio for group in large if (ratio := group.over(OURS, _FROZEN)) is not None}
    if over:
        worst = max(over, key=lambda title: over[title].median)
        medians = [ratio.median for ratio in over.values()]
        sizes = ", ".join(f"{name} >= {least}" for name, least in _LARGE.items())
        yield (
            f"- fastlora over the frozen layer, which trains nothing, {large[0].whole}, {sizes}, r = 16: "
            f"{min(medians):.2f} .. {max(medians):.2f} ({worst})."
        )


def _is_large(group: Group) -> bool:
    row = group.any_row
    return (
        row.shape["r"] == 16 and not row.dropout and all(row.shape[name] >= n for name, n in _LARGE.items())
    )


def _startup_sentences(runs: Mapping[str, Run]) -> Iterator[str]:
    if STARTUP in runs:
        for row in runs[STARTUP].results.rows:
            if row.method == OURS and row.phase != "second step":
                yield f"- {_startup(row)}: {1e-6 * row.median_us:.3f} s."


def _startup(row: Row) -> str:
    if row.phase == "import":
        return "`import fastlora`, torch's own import not counted"
    return f"{row.phase} of one layer in a fresh process, {row.mode}"


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
