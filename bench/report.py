"""The README's figures from the files in bench/results: `python -m bench.report`.

It writes between markers, one pair for each kind of device, and draws a picture for each beside the files.
With --check it writes nothing, and exits with status 1 where the README says anything else than the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from bench.environment import ROOT
from bench.figures import Run, draw_figures, figures, newest
from bench.results import Results

README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "bench" / "results"

# The kind of a device, as in a results file.
KINDS: Final = ("cpu", "cuda")


def read_runs(folder: Path) -> list[Run]:
    """Every results file of a folder.

    Raises:
        ValueError: If a file is no results file, or holds a dry run, whose times mean nothing.
    """
    runs = [Run(path, Results.read(path)) for path in sorted(folder.glob("*.json"))]
    for run in runs:
        if any(row.mode == "dry-run" for row in run.results.rows):
            raise ValueError(f"{run.path} must hold measured times; it holds a dry run")
    return runs


def with_figures(readme: str, runs: Iterable[Run], pictures: Path) -> str:
    """The README with what lies between its markers written anew.

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
        after = rest.split(last)[1]
        lines = figures(newest(runs, kind), pictures / f"{kind}.png")
        readme = "\n".join([before + first, *lines, last + after])
    return readme


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
        if found := newest(runs, kind):
            draw_figures(found, folder / f"{kind}.png")
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
