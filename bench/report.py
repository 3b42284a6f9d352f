"""The README's figures from the files in bench/results: `python -m bench.report`.

It writes between markers, one pair for each kind of device, and draws a picture for each beside the files.
With --check it writes nothing, and exits with status 1 where the README says anything else than the files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bench.columns import Run, newest
from bench.environment import ROOT
from bench.figures import figures
from bench.overview import draw_overview
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures and pictures, or check the README's text; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if they drifted")
    parser.add_argument("--readme", type=Path, default=README, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    runs = read_runs(options.results)
    old = options.readme.read_text(encoding="utf-8")
    linked = Path(os.path.relpath(options.results, options.readme.parent))
    new = with_figures(old, runs, linked)
    if options.check:
        return int(new != old)
    for kind in KINDS:
        if found := newest(runs, kind):
            draw_overview(found, options.results / f"{kind}.png")
    options.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
