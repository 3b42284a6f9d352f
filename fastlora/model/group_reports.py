"""What is told about groups: what was grouped, and what became of the groups in forward passes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastlora.tables import Part, Shown, Table


@dataclass(frozen=True)
class GroupReport(Shown):
    """What was grouped; `str()` of it is a table in which layers that differ in numbers alone are one row.

    Attributes:
        grouped: The names of each group's members.
        alone: Every other layer with LoRA, and why it is in no group.
    """

    grouped: tuple[tuple[str, ...], ...]
    alone: Mapping[str, str]

    def parts(self) -> Iterator[Part]:
        """A line, the groups, and the layers in none."""
        members = sum(map(len, self.grouped))
        layers = members + len(self.alone)
        yield f"{members} of {layers} layers are computed in {len(self.grouped)} groups"
        groups = Counter(tuple(map(_pattern, names)) for names in self.grouped)
        if groups:
            rows = [
                (
                    first.rpartition(".")[0],
                    ", ".join(name.rpartition(".")[2] for name in (first, *rest)),
                    str(count),
                )
                for (first, *rest), count in groups.items()
            ]
            yield Table(("module", "computed together", "groups"), rows, words=2)
        others = Counter((_pattern(name), why) for name, why in self.alone.items())
        if others:
            rows = [(name, why, str(count)) for (name, why), count in others.items()]
            yield Table(("layer", "alone, because", "layers"), rows, words=2)


@dataclass(frozen=True)
class GroupCounts(Shown):
    """What became of the groups in eager forward passes; compiled ones do not count.

    Attributes:
        groups: Groups that are computed together.
        rounds: How often a group was computed.
        hits: How often a member took its output of such a round.
        misses: Rounds in which not every member took its own, by the reason.
        alone: Calls of members that could not be grouped, by the reason.
        dissolved: The groups that are no longer computed together, by name, and why.
    """

    groups: int
    rounds: int
    hits: int
    misses: Mapping[str, int]
    alone: Mapping[str, int]
    dissolved: Mapping[str, str]

    def parts(self) -> Iterator[Part]:
        """Lines of counts, each reason with its own."""
        yield f"{self.groups} groups: computed {self.rounds:,} times, {self.hits:,} outputs taken"
        for what, reasons in (("rounds missed", self.misses), ("calls alone", self.alone)):
            for why, count in reasons.items():
                yield f"{count:,} {what}: {why}"
        for name, why in self.dissolved.items():
            yield f"dissolved: {name}: {why}"


def _pattern(name: str) -> str:
    """A name with every number in it as a star."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
