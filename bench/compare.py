"""Two results files side by side: `python -m bench.compare OLD NEW`. What changed outside the noise?

A time has changed where its quartiles lie wholly beside the old ones. Between runs on a machine that is not
quiet, compare what was timed in the same rounds: with --over METHOD each method's ratio to that one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from bench.groups import title
from bench.results import Results, Row
from bench.tables import say
from fastlora.measuring.timing import Quartiles, quartiles, ratio
from fastlora.tables import Table, as_text

# Counts have no noise: any difference is a change.
_COUNTS: Final = ("saved_bytes", "peak_bytes", "launches")

_WORSE: Final = ("slower", "more")


class Change(NamedTuple):
    """A row's "time", "ratio" or a count then and now, and the verdict, "" where nothing changed."""

    row: str
    what: str
    old: Quartiles
    new: Quartiles
    verdict: str

    def cells(self) -> list[str]:
        """Of a table."""
        quotient = f"{self.new.median / self.old.median:.3f}" if self.old.median else "-"
        return [self.row, self.what, _spread(self.old), _spread(self.new), quotient, self.verdict]


def compare(old: Results, new: Results, over: str | None = None) -> Iterator[Change]:
    """What became of the rows that two runs both have.

    With `over`, a method, times are ratios to its times in the same rounds; rows without it are left aside.
    """
    before, after = _by_key(old.rows), _by_key(new.rows)
    for (what, method), was in before.items():
        now, under = after.get((what, method)), (what, over or "")
        if now is None:
            continue
        if over is None or (method != over and under in before and under in after):
            then, since = _time(was, before.get(under)), _time(now, after.get(under))
            verdict = "slower" if since.q25 > then.q75 else "faster" if since.q75 < then.q25 else ""
            yield Change(_words(now), "ratio" if over else "time", then, since, verdict)
        for name in _COUNTS:
            one, other = getattr(was, name), getattr(now, name)
            if one is not None and other is not None:
                verdict = "more" if other > one else "fewer" if other < one else ""
                yield Change(
                    _words(now), name, Quartiles(one, one, one), Quartiles(other, other, other), verdict
                )


def differences(old: Results, new: Results) -> Iterator[str]:
    """How the runs differ besides, a line each: device, versions, and rows that only one of them has."""
    for name in ("device", "versions"):
        was, now = (getattr(side.environment, name) for side in (old, new))
        if was != now:
            yield f"another {name}: {was} then, {now} now"
    before, after = _by_key(old.rows), _by_key(new.rows)
    for where, one, other in (("old", before, after), ("new", after, before)):
        yield from (f"only in the {where} file: {_words(one[key])}" for key in one if key not in other)


def _by_key(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """By the layer or net with the phase, and by method."""
    return {(f"{title(row)}: {row.phase} {row.shape}", row.method): row for row in rows}


def _time(row: Row, under: Row | None) -> Quartiles:
    return ratio(row.samples_us, under.samples_us) if under else quartiles(row.samples_us)


def _words(row: Row) -> str:
    return f"{title(row)}: {row.method}, {row.phase}"


def _spread(value: Quartiles) -> str:
    low, middle, high = (f"{one:,.4g}" for one in value)
    return middle if low == high else f"{middle} ({low} .. {high})"


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
    found = list(compare(before, after, over))
    shown = [change.cells() for change in found if everything or change.verdict]
    same = sum(not change.verdict for change in found)
    lines = [f"{len(found) - same} changed, {same} within the noise", *differences(before, after)]
    table = Table(["", "what", "old", "new", "new/old", ""], shown, words=2)
    say(as_text([table, *lines] if shown else lines))
    sys.exit(int(any(change.verdict in _WORSE for change in found)))


if __name__ == "__main__":
    main()
