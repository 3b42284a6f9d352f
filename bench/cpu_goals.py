"""What runs on a CPU are to show, and what they have shown: the README's table of them.

Over a packed W: PEFT beside fastlora, and what the packing costs beside the same layer plain. In a net:
projections that share x, computed together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bench.groups import OURS, Group, comparable, title
from bench.layer import UNPACKING, WHOLE_PASS
from bench.methods import GROUPED
from bench.results import Row

_ROWS = 512  # of x, from which on packed layers are judged
_MANY_ROWS = 2048


class Shown(NamedTuple):
    """A line of the table: a ratio, no more than `most` and no less than `least`."""

    what: str
    ratio: float
    most: float = math.inf
    least: float = 0.0

    def __str__(self) -> str:
        measured = round(self.ratio, 2)  # judged as printed
        reach = f"<= {self.most:.2f}" if self.most < math.inf else f">= {self.least:.2f}"
        verdict = "met" if self.least <= measured <= self.most else "NOT MET"
        return f"| {self.what} | {measured:.2f} | {reach} | {verdict} |"


def lines(packed: Iterable[Row], nets: Iterable[Row]) -> Iterator[str]:
    """The table in Markdown, of rows over a packed W and of nets; nothing where there are none."""
    found = [*_packed(list(packed)), *_grouped(comparable(nets))]
    if found:
        yield from ("| to be shown | measured | reach | |", "|---|---|---|---|", *map(str, found))


def _packed(rows: list[Row]) -> Iterator[Shown]:
    plain = {
        title(row): row for row in rows if row.phase == WHOLE_PASS and row.method == OURS and not row.base
    }
    groups = [group for group in comparable(rows) if group.any_row.base and group.any_row.shape["M"] >= _ROWS]
    kinds = dict.fromkeys(group.title.partition(", ")[2] for group in groups)
    for kind in kinds:
        same = [group for group in groups if group.title.partition(", ")[2] == kind]
        ratios = [ratio.median for group in same if (ratio := group.over("peft"))]
        if ratios:
            what = f"peft over fastlora, {WHOLE_PASS}, {kind}, mean of {len(ratios)} shapes"
            yield Shown(what, statistics.geometric_mean(ratios), least=1.2)
        if same[0].any_row.dtype != same[0].any_row.adapter_dtype and (saved := _saved(same)):
            yield Shown(f"bytes saved for backward, peft over fastlora, {kind}", min(saved), least=1.5)
        for group in same:
            yield from _cost_of_packing(group, plain)


def _saved(groups: Sequence[Group]) -> list[float]:
    found = []
    for group in groups:
        theirs, ours = (group.rows.get(name, {}).get(WHOLE_PASS) for name in ("peft", OURS))
        if theirs and ours and theirs.saved_bytes and ours.saved_bytes:
            found.append(theirs.saved_bytes / ours.saved_bytes)
    return found


def _cost_of_packing(group: Group, plain: dict[str, Row]) -> Iterator[Shown]:
    """Ours over the packed W, over ours plain and the time that unpacking takes alone."""
    row, unpacking = (group.rows.get(name, {}).get(WHOLE_PASS) for name in (OURS, UNPACKING))
    if row is None or unpacking is None or row.shape["M"] != _MANY_ROWS:
        return
    same = plain.get(group.title.replace(f", base {row.base}", ""))
    if same is not None:
        what = f"fastlora over {row.base}, over fastlora plain and the unpacking alone, {group.title}"
        yield Shown(what, row.median_us / (same.median_us + unpacking.median_us), most=1.03)


def _grouped(groups: list[Group]) -> Iterator[Shown]:
    for group in groups:
        row = group.any_row
        if row.model is None or GROUPED.name not in group.rows or row.mode != "eager":
            continue
        full = {"llama-10M": 1.10, "llama-60M": 1.25}.get(row.model)
        if ratio := group.over(GROUPED.name):
            yield Shown(f"grouped over fastlora, {group.title}", ratio.median, most=0.97)
        for name, least in (("peft", 1.10), ("full", full)):
            ratio = group.over(name, GROUPED.name)
            if ratio and least:
                yield Shown(f"{name} over grouped, {group.title}", ratio.median, least=least)
