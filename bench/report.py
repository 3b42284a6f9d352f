"""The README's figures from the files in bench/results: `python -m bench.report`.

It writes between markers, one pair for each kind of device, and draws a picture for each beside the files.
With --check it writes nothing, and exits with status 1 where the README says anything else than the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from bench.environment import ROOT
from bench.goals import cpu_findings
from bench.groups import OURS, Column, Group, columns, comparable, told
from bench.layer import WHOLE_PASS
from bench.pictures import draw
from bench.results import Results, Row

README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "bench" / "results"

# The kind of a device, as in a results file.
KINDS: Final = ("cpu", "cuda")

NOT_MEASURED: Final = "Not measured yet."

# `bench.linear --base`, beside `bench.linear`.
PACKED: Final = "packed"

# Layers this large are bound by their products, not by Python.
_LARGE: Final = {"M": 128, "K": 1000, "N": 1000}


def read_runs(folder: Path) -> list[Results]:
    """Every results file of a folder.

    Raises:
        ValueError: If a file is no results file, or holds a dry run, whose times mean nothing.
    """
    runs = [Results.read(path) for path in sorted(folder.glob("*.json"))]
    for run in runs:
        if any(row.mode == "dry-run" for row in run.rows):
            raise ValueError(f"{run.path} must hold measured times; it holds a dry run")
    return runs


def newest(runs: Iterable[Results], kind: str) -> dict[str, Results]:
    """The latest run of each level on a kind of device, by level."""
    found: dict[str, Results] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.environment.device["kind"] == kind:
            # Layers over a packed W, with the same ones plain, are another level than plain ones.
            packed = any(row.base for row in run.rows)
            found |= {PACKED if packed else row.level: run for row in run.rows}
    return found


def compared(runs: Mapping[str, Results]) -> list[Column]:
    """What the table and the picture compare: levels that have no sentences of their own; layers first."""
    levels = sorted(runs.keys() - {"startup", "mixed"}, key=lambda level: (level != "linear", level))
    return list(columns(row for level in levels for row in _rows(runs, level)))


def with_figures(readme: str, runs: Iterable[Results], pictures: Path) -> str:
    """The text of the README with what lies between its markers written anew.

    Args:
        readme: Its text.
        runs: Of any devices and levels.
        pictures: The folder of the pictures, as the README links to it.

    Raises:
        ValueError: If a pair of markers is missing or stands twice.
    """
    runs = list(runs)
    for kind in KINDS:
        first, last = f"<!-- figures: {kind} -->", f"<!-- end of figures: {kind} -->"
        if readme.count(first) != 1 or readme.count(last) != 1:
            raise ValueError(f"the README must hold {first!r} and {last!r} once each")
        before, rest = readme.split(first)
        lines = _figures(newest(runs, kind), pictures / f"{kind}.png")
        readme = "\n".join([before + first, *lines, last + rest.split(last)[1]])
    return readme


def _figures(runs: Mapping[str, Results], picture: Path) -> Iterator[str]:
    """The lines of Markdown for one kind of device, from its runs by level, and a link to its picture."""
    if not runs:
        yield NOT_MEASURED
        return
    yield "Multiples of fastlora's time: above 1 fastlora is faster."
    yield ""
    yield from _table(compared(runs))
    yield ""
    yield f"![How many times fastlora's time each method takes]({picture.as_posix()})"
    yield ""
    packed = runs[PACKED].rows if PACKED in runs else []
    if found := list(cpu_findings(packed, _rows(runs, "model"))):
        yield from ("| to be shown | measured | reach | |", "|---|---|---|---|")
        yield from (f"| {one.what} | {one.measured} | {one.reach} | {one.verdict} |" for one in found)
        yield ""
    sentences = [
        *_floor(_rows(runs, "linear")),
        *_mixed(_rows(runs, "mixed")),
        *_start(_rows(runs, "startup")),
    ]
    if sentences:
        yield from [*sentences, ""]
    yield from _origin(runs, picture.parent)


def _rows(runs: Mapping[str, Results], level: str) -> list[Row]:
    """The rows of a level; of packed layers without the plain ones that they are compared with."""
    rows = runs[level].rows if level in runs else []
    return [row for row in rows if (row.base if level == PACKED else row.level == level)]


def _table(shown: list[Column]) -> Iterator[str]:
    methods = list(dict.fromkeys(method for column in shown for method in column.cells))
    yield "| | " + " | ".join(f"**{name}**" if name == OURS else name for name in methods) + " |"
    yield "|---" * (1 + len(methods)) + "|"
    for head, cells, _ in shown:
        multiples = (told(cells[method]) if method in cells else "-" for method in methods)
        yield f"| {' | '.join([head, *multiples])} |"


def _floor(rows: list[Row]) -> Iterator[str]:
    """How far ours is from the frozen layer."""
    large = (
        (group.median_over(OURS, "frozen"), group.title) for group in comparable(rows) if _is_large(group)
    )
    over = sorted((ratio, title) for ratio, title in large if ratio is not None)
    if over:
        sizes = ", ".join(f"{name} >= {least}" for name, least in _LARGE.items())
        what = f"fastlora over the frozen layer, which trains nothing, {WHOLE_PASS}, {sizes}, r = 16"
        yield f"- {what}: {over[0][0]:.2f} .. {over[-1][0]:.2f} ({over[-1][1]})."


def _is_large(group: Group) -> bool:
    row = group.any_row
    large = all(row.shape[name] >= least for name, least in _LARGE.items())
    return large and row.shape["r"] == 16 and not row.dropout


def _mixed(rows: list[Row]) -> Iterator[str]:
    """What it costs that the rows of a batch take different adapters."""
    by_rows: dict[int, list[str]] = {}
    for group in comparable(rows):
        row, ratio = group.any_row, group.median_over(OURS, "one")
        if ratio is not None:
            by_rows.setdefault(row.shape["M"], []).append(f"{row.mode.split()[0]}: {ratio:.2f}")
    for M, found in by_rows.items():
        yield f"- adapters mixed in a batch of {M:,} rows, over one for all, {OURS}: {', '.join(found)}."


def _start(rows: list[Row]) -> Iterator[str]:
    """How long one waits for ours to start."""
    for row in rows:
        if row.method == OURS and row.phase != "second step":
            what = f"{row.phase} of one layer in a fresh process, {row.mode}"
            what = "`import fastlora`, torch's own import not counted" if row.phase == "import" else what
            yield f"- {what}: {1e-6 * row.median_us:.3f} s."


def _origin(runs: Mapping[str, Results], folder: Path) -> Iterator[str]:
    """Where the figures are from: device, versions, commit, command."""
    files = {run.path.name: run for run in runs.values() if run.path is not None}
    here = next(iter(runs.values())).environment
    where = f"{here.device['name']}; {here.versions_in_words}"
    yield f"{where}. Medians of the ratios of pairs timed in the same round, with"
    yield "quartiles; over several shapes geometric means, with the range. Raw results:"
    yield ""
    for name, run in files.items():
        link = (folder / name).as_posix()
        yield f"- [{name}]({link}): `{run.command}`, commit {run.environment.short_commit}"


@click.command(help=__doc__.splitlines()[0])
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if they drifted.")
@click.option("--readme", type=click.Path(path_type=Path), default=README, show_default=True)
@click.option("--results", "folder", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(check: bool, readme: Path, folder: Path) -> None:
    """Write the figures and pictures, or check the README's text."""
    runs = read_runs(folder)
    old = readme.read_text(encoding="utf-8")
    new = with_figures(old, runs, Path(os.path.relpath(folder, readme.parent)))
    if check:
        sys.exit(int(new != old))
    for kind in KINDS:
        draw(compared(newest(runs, kind)), folder / f"{kind}.png")
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
