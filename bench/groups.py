"""Rows that may be compared with each other: one net or layer, one dtype, one mode; by method and phase."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bench.results import Row
from fastlora.measuring.timing import Quartiles, ratio

OURS = "fastlora"

# Phases that are the whole of what a method does, in the order of preference.
_WHOLES = ("step", "forward+backward", "first step")

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


class Group(NamedTuple):
    """Comparable rows, by method and then phase; the phases are in the order of their first row."""

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
    def kind(self) -> str:
        """What tells its layer or net from others besides the shape and the mode: "bf16, dropout 0.1"."""
        return ", ".join(_options(self.any_row))

    def over(self, method: str, under: str = OURS, phase: str | None = None) -> Quartiles | None:
        """Quartiles of a method's times over another's, pair by pair; None where one is missing."""
        phase = phase or self.whole
        above, below = (self.rows.get(name, {}).get(phase) for name in (method, under))
        if above is None or below is None:
            return None
        return ratio(above.samples_us, below.samples_us)


def comparable(rows: Iterable[Row]) -> list[Group]:
    """The groups of the rows, in order of their first row."""
    groups: dict[str, Group] = {}
    for row in rows:
        name = title(row)
        group = groups.setdefault(name, Group(name, [], {}))
        if row.phase not in group.phases:
            group.phases.append(row.phase)
        group.rows.setdefault(row.method, {})[row.phase] = row
    return list(groups.values())


def title(row: Row) -> str:
    """Such as "linear 128x1000->2000 r16, fp32, eager"."""
    return ", ".join([f"{row.level} {subject(row)}".strip(), *_options(row), row.mode])


def _options(row: Row) -> list[str]:
    dtypes = dict.fromkeys(_SHORT.get(dtype, dtype) for dtype in (row.dtype, row.adapter_dtype))
    parts = [", adapters ".join(dtypes), f"dropout {row.dropout:g}" if row.dropout else ""]
    parts += ["bias" if row.bias else "", row.optimizer or ""]
    return [part for part in parts if part]


def subject(row: Row) -> str:
    """What was run: a layer's M x K -> N and rank, or a net's name with what tells its runs apart."""
    shape = row.shape
    if row.model is None:
        return "{M}x{K}->{N} r{r}".format(**shape) if "M" in shape else ""
    rows = f"batch {shape['batch']}" + (f" x {shape['length']}" if "length" in shape else "")
    return f"{row.model}, {rows}, r{shape['r']}"


def in_unit(group: Group) -> tuple[float, str]:
    """(microseconds in the unit, the unit) that suits the group's times."""
    longest = max(row.median_us for phases in group.rows.values() for row in phases.values())
    return next(((us, name) for us, name in ((1e6, "s"), (1e3, "ms")) if longest >= 2 * us), (1.0, "us"))
