"""Two results files side by side: `python -m bench.compare OLD NEW`. What changed outside the noise?

A time has changed where its quartiles lie wholly beside the old ones. Between runs on a machine that is not
quiet, compare what was timed in the same rounds: with --over METHOD each method's ratio to that one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

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

    Args:
        old: The earlier run.
        new: The later one.
        over: A method; times are then taken as ratios to its times in the same rounds, and rows without it
            are left aside.
    """
    before, after = _by_key(old.rows), _by_key(new.rows)
    changes = []
    for key in before:
        if key in after:
            changes += _times(before, after, key, over)
            changes += _counts(before[key], after[key])
    return Comparison(
        changes=changes,
        only_old=[_words(row) for key, row in before.items() if key not in after],
        only_new=[_words(row) for key, row in after.items() if key not in before],
        notes=list(_notes(old, new)),
    )


def judge(old: Quartiles, new: Quartiles) -> str:
    """SLOWER or FASTER where the middle halves of the samples do not overlap, else SAME."""
    if new.q25 > old.q75:
        return SLOWER
    return FASTER if new.q75 < old.q25 else SAME


_Key = tuple[str, ...]


def _key(row: Row, method: str) -> _Key:
    labels = json.dumps([row.labels, row.shape, row.dropout], sort_keys=True)
    return (row.level, row.model or "", method, row.phase, row.mode, labels)


def _by_key(rows: Sequence[Row]) -> dict[_Key, Row]:
    return {_key(row, row.method): row for row in rows}


def _times(before: dict[_Key, Row], after: dict[_Key, Row], key: _Key, over: str | None) -> list[Change]:
    was, now = before[key], after[key]
    if over is None:
        old, new = (Quartiles(row.q25_us, row.median_us, row.q75_us) for row in (was, now))
        return [Change(_words(now), "time", old, new, judge(old, new))]
    under = _key(now, over)
    if now.method == over or under not in before or under not in after:
        return []
    old = ratio(was.samples_us, before[under].samples_us)
    new = ratio(now.samples_us, after[under].samples_us)
    return [Change(_words(now), "ratio", old, new, judge(old, new))]


def _counts(was: Row, now: Row) -> list[Change]:
    changes = []
    for name in _COUNTS:
        old, new = getattr(was, name), getattr(now, name)
        if old is not None and new is not None:
            verdict = "more" if new > old else "fewer" if new < old else SAME
            changes.append(
                Change(_words(now), name, Quartiles(old, old, old), Quartiles(new, new, new), verdict)
            )
    return changes


def _words(row: Row) -> str:
    return f"{title(row)}: {row.method}, {row.phase}"


def _notes(old: Results, new: Results) -> Sequence[str]:
    pairs: list[tuple[str, Any, Any]] = [
        ("device", old.environment.device, new.environment.device),
        ("versions", old.environment.versions, new.environment.versions),
    ]
    return [f"another {name}: {was} then, {now} now" for name, was, now in pairs if was != now]


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
