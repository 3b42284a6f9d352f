"""Two results files side by side: `python -m bench.compare OLD NEW`. What changed outside the noise?

A time has changed where its quartiles lie wholly beside the old ones. Between runs on a machine that is not
quiet, compare what was timed in the same rounds: with --over METHOD each method's ratio to that one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich import box
from rich.console import Console
from rich.table import Table

from bench.groups import title
from bench.results import Results, Row
from fastlora.measuring.timing import Quartiles, ratio

# Folded it cannot be read.
_TABLE_WIDTH: Final = 150

# Counts have no noise: any difference is a change.
_COUNTS: Final = ("saved_bytes", "peak_bytes", "launches")

SLOWER: Final = "slower"
FASTER: Final = "faster"
SAME: Final = ""


class Change(NamedTuple):
    """A row's "time", "ratio" or a count then and now, and the verdict; a count's quartiles are equal."""

    row: str
    what: str
    old: Quartiles
    new: Quartiles
    verdict: str


class Comparison(NamedTuple):
    """What became of rows that are in both; rows that one lacks, in words; how the runs differ."""

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    notes: list[str]


def compare(old: Results, new: Results, over: str | None = None) -> Comparison:
    """Hold the rows of two runs against each other.

    With `over`, a method, times are ratios to its times in the same rounds; rows without it are left aside.
    """
    before, after = _by_key(old.rows), _by_key(new.rows)
    changes = []
    for (what, method), was in before.items():
        now, under = after.get((what, method)), (what, over or "")
        if now is None:
            continue
        if over is None or (method != over and under in before and under in after):
            then, since = _time(was, before.get(under)), _time(now, after.get(under))
            changes.append(Change(_words(now), "ratio" if over else "time", then, since, judge(then, since)))
        changes += _counts(was, now)
    sides = (old.environment._asdict(), new.environment._asdict())
    notes = [
        f"another {name}: {was} then, {now} now"
        for name, was, now in ((name, *(side[name] for side in sides)) for name in ("device", "versions"))
        if was != now
    ]
    lacking = (
        [_words(one[key]) for key in one if key not in other]
        for one, other in ((before, after), (after, before))
    )
    return Comparison(changes, *lacking, notes)


def judge(old: Quartiles, new: Quartiles) -> str:
    """SLOWER or FASTER where the middle halves of the samples do not overlap, else SAME."""
    if new.q25 > old.q75:
        return SLOWER
    return FASTER if new.q75 < old.q25 else SAME


def _by_key(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """By the layer or net with the phase, and by method."""
    return {(f"{title(row)}: {row.phase} {row.shape}", row.method): row for row in rows}


def _time(row: Row, under: Row | None) -> Quartiles:
    if under is None:
        return Quartiles(row.q25_us, row.median_us, row.q75_us)
    return ratio(row.samples_us, under.samples_us)


def _counts(was: Row, now: Row) -> Iterator[Change]:
    for name in _COUNTS:
        old, new = getattr(was, name), getattr(now, name)
        if old is not None and new is not None:
            verdict = "more" if new > old else "fewer" if new < old else SAME
            yield Change(_words(now), name, Quartiles(old, old, old), Quartiles(new, new, new), verdict)


def _words(row: Row) -> str:
    return f"{title(row)}: {row.method}, {row.phase}"


def print_comparison(found: Comparison, console: Console, *, everything: bool) -> None:
    """A line for each change, or for each value that both files have."""
    for note in found.notes:
        console.print(f"NOTE  {note}", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("", "what", "old", "new", "new/old", ""):
        table.add_column(head, justify="left" if head in ("", "what") else "right")
    shown = [change for change in found.changes if everything or change.verdict]
    for change in shown:
        quotient = f"{change.new.median / change.old.median:.3f}" if change.old.median else "-"
        bad = change.verdict in (SLOWER, "more")
        style = "" if not change.verdict else "red" if bad else "green"
        cells = (_spread(change.old), _spread(change.new), quotient, change.verdict)
        table.add_row(change.row, change.what, *cells, style=style)
    if shown:
        console.print(table)
    same = sum(not change.verdict for change in found.changes)
    console.print(f"{len(found.changes) - same} changed, {same} within the noise", highlight=False)
    for where, rows in (("old", found.only_old), ("new", found.only_new)):
        for row in rows:
            console.print(f"only in the {where} file: {row}", highlight=False, soft_wrap=True)


def _spread(value: Quartiles) -> str:
    if value.q25 == value.q75:
        return f"{value.median:,.4g}"
    return f"{value.median:,.4g} ({value.q25:,.4g} .. {value.q75:,.4g})"


@click.command(help=__doc__)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--over", metavar="METHOD", help="Compare ratios to this method's times.")
@click.option("--all", "everything", is_flag=True, help="Also what did not change.")
def main(old: Path, new: Path, over: str | None, everything: bool) -> None:
    """Print the changes; exits with 1 if something became slower or a count larger."""
    try:
        before, after = Results.read(old), Results.read(new)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"OLD and NEW must be results files; {type(error).__name__}: {error}"
        raise click.UsageError(why) from error
    found = compare(before, after, over)
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    print_comparison(found, console, everything=everything)
    sys.exit(1 if any(change.verdict in (SLOWER, "more") for change in found.changes) else 0)


if __name__ == "__main__":
    main()
