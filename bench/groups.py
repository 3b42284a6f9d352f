"""Rows that may be compared with each other, and how many times fastlora's time the other methods take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from bench.cases import options_in_words
from bench.results import Row
from fastlora.measuring.timing import Quartiles, ratio

OURS: Final = "fastlora"

# Phases that are the whole of what a method does, in the order of preference.
_WHOLES: Final = ("step", "forward+backward", "first step")

# Of x, as in training; with fewer a GPU waits for its host, or for memory.
_MANY_ROWS: Final = 1024


class Group(NamedTuple):
    """Rows of one net or layer, one dtype and one mode, by method and then phase; phases in their order."""

    title: str
    phases: list[str]
    rows: dict[str, dict[str, Row]]

    @property
    def whole(self) -> str:
        """The phase that methods are judged by."""
        return next((phase for phase in _WHOLES if phase in self.phases), self.phases[-1])

    @property
    def any_row(self) -> Row:
        """One of its rows: they are of the same net or layer."""
        return next(iter(next(iter(self.rows.values())).values()))

    @property
    def is_layer(self) -> bool:
        """Whether it is of a layer, which others of its kind are compared with together."""
        return self.any_row.level == "linear"

    @property
    def kind(self) -> str:
        """The title, of a layer without its shape."""
        return self.title.partition(", ")[2] if self.is_layer else self.title

    def row(self, method: str, phase: str | None = None) -> Row | None:
        """A method's row of a phase, or of the whole; None where it has none."""
        return self.rows.get(method, {}).get(phase or self.whole)

    def over(self, method: str, under: str = OURS, phase: str | None = None) -> Quartiles | None:
        """Quartiles of a method's times over another's, pair by pair; None where one is missing."""
        above, below = self.row(method, phase), self.row(under, phase)
        return ratio(above.samples_us, below.samples_us) if above and below else None

    def median_over(self, method: str, under: str = OURS, phase: str | None = None) -> float | None:
        """The median of these."""
        found = self.over(method, under, phase)
        return found and found.median

    def saved_over(self, method: str) -> float | None:
        """Bytes that a method saves for backward, over what ours does; None where one is missing."""
        theirs, ours = (row and row.saved_bytes for row in (self.row(method), self.row(OURS)))
        return theirs / ours if theirs and ours else None


def comparable(rows: Iterable[Row]) -> list[Group]:
    """The groups of the rows, in order of their first row."""
    groups: dict[str, Group] = {}
    for row in rows:
        group = groups.setdefault(title(row), Group(title(row), [], {}))
        if row.phase not in group.phases:
            group.phases.append(row.phase)
        group.rows.setdefault(row.method, {})[row.phase] = row
    return list(groups.values())


def title(row: Row) -> str:
    """Such as "linear 128x1000->2000 r16, fp32, eager"."""
    parts = (f"{row.level} {subject(row)}".strip(), options_in_words(row.labels), row.optimizer, row.mode)
    return ", ".join(filter(None, parts))


def subject(row: Row) -> str:
    """What was run: a layer's M x K -> N and rank, or a net's name with what tells its runs apart."""
    shape = row.shape
    if row.model is None:
        return "{M}x{K}->{N} r{r}".format(**shape) if "M" in shape else ""
    rows = f"batch {shape['batch']}" + (f" x {shape['length']}" if "length" in shape else "")
    return f"{row.model}, {rows}, r{shape['r']}"


class Column(NamedTuple):
    """One thing that all methods do, and how many times ours they take, by name.

    Of one comparison median and quartiles, of several their mean and range.
    """

    head: str
    cells: dict[str, Quartiles]
    is_time: bool = True


def told(multiple: Quartiles) -> str:
    """Such as "1.20 (1.10 .. 1.30)"; the middle alone where there is nothing around it."""
    low, middle, high = (f"{value:.2f}" for value in multiple)
    return middle if low == high else f"{middle} ({low} .. {high})"


def columns(rows: Iterable[Row]) -> Iterator[Column]:
    """What there is to compare with ours: one for each net, and for each kind of layer over its shapes."""
    for kind, same in kinds(group for group in comparable(rows) if OURS in group.rows).items():
        first = same[0]
        if not first.is_layer:
            yield Column(kind, {name: ratio for name in first.rows if (ratio := first.over(name))})
            continue
        for how_many, of_rows in _by_rows(same):
            head = (
                f"{first.whole} of a layer, {kind}, {len(of_rows)} shape{'s'[: len(of_rows) > 1]}{how_many}"
            )
            yield Column(head, _over_all(of_rows, Group.median_over))
        if first.any_row.dropout and (saved := _over_all(same, Group.saved_over)):
            yield Column(f"bytes saved for backward, {kind}", saved, is_time=False)


def _by_rows(layers: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Layers with many rows apart from those with few, which take microseconds; with how many."""
    many = [layer for layer in layers if layer.any_row.shape["M"] >= _MANY_ROWS]
    few = [layer for layer in layers if layer.any_row.shape["M"] < _MANY_ROWS]
    if not (many and few):
        return [("", [*many, *few])]
    return [(f" from {_MANY_ROWS:,} rows", many), (" with fewer rows", few)]


def kinds(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Groups of one kind together."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.kind, []).append(group)
    return found


def _over_all(groups: Sequence[Group], value: Callable[[Group, str], float | None]) -> dict[str, Quartiles]:
    cells = {}
    for method in dict.fromkeys(method for group in groups for method in group.rows):
        values = [found for group in groups if (found := value(group, method)) is not None]
        if values:
            low, high = min(values), max(values)
            # Its logarithms round: the mean of one value may lie a little beside it.
            cells[method] = Quartiles(low, min(max(statistics.geometric_mean(values), low), high), high)
    return cells
