"""Calls whose rows choose their operands, as they run in the interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from tests.ptx.driver.cases import KINDS


class SegmentCase(NamedTuple):
    """One call of both passes.

    Attributes:
        architecture: The tile table's name.
        kind: (dtype, adapters' dtype, precision, kind of the table).
        rows: Rows of each run. Without `chosen` run e takes expert e; rows of the last take none.
        chosen: The adapter of each run, -1 for none; empty for experts.
        ranks: Of each adapter; of all experts the first.
        K, N: The shape.
        dropout: The rate; of adapters, every other has none.
        bias: Whether there is a b.
        weighted: Whether rows have factors.
        split: How many programs share a tile of (p, y) and of (q, dx); None as the plan says.
        seeds: Of the schedules; None is all warps in step.
        resident: CTAs at a time; 0 means as many as there is room for.
    """

    architecture: str
    kind: tuple[str, str, str, str] = KINDS[1]
    rows: tuple[int, ...] = (40, 0, 1, 37, 5)
    chosen: tuple[int, ...] = ()
    ranks: tuple[int, ...] = (16,)
    K: int = 200
    N: int = 104
    dropout: float = 0.0
    bias: bool = True
    weighted: bool = False
    split: tuple[int, int] | None = None
    seeds: tuple[int | None, ...] = (None,)
    resident: int = 0

    @property
    def target(self) -> int:
        """The capability to compile for."""
        return int(self.architecture.removeprefix("sm_"))

    @property
    def variant(self) -> str:
        """What is special about it, in words."""
        dtype, adapter, precision, _ = self.kind
        words = ["adapters" if self.chosen else "experts"]
        words.append(dtype + f"/{adapter}" * (adapter != dtype) + f" {precision}" * (dtype == "fp32"))
        words.append("rows " + " ".join(map(str, self.rows)))
        words += [f"dropout {self.dropout}"] * bool(self.dropout) + ["no bias"] * (not self.bias)
        words += ["factors"] * self.weighted + [f"split {self.split}"] * bool(self.split)
        words += [f"{self.resident} resident"] * bool(self.resident)
        return ", ".join(words)

    @property
    def shape(self) -> str:
        """M x K x N, and the ranks."""
        return f"{sum(self.rows)}x{self.K}x{self.N} r{','.join(map(str, self.ranks))}"

    @property
    def of_run(self) -> list[int]:
        """The number of the operands of each run; as many as there are, where it has none."""
        if self.chosen:
            return [a if a >= 0 else len(self.ranks) for a in self.chosen]
        return list(range(len(self.rows)))


MIXED = {"rows": (20, 3, 1, 40, 9, 30), "chosen": (1, 0, -1, 1, 2, 0), "ranks": (16, 5, 24)}


def segment_cases() -> Iterator[SegmentCase]:
    """All."""
    yield SegmentCase("sm_80", rows=(33, 0, 1, 3), K=72, N=40, dropout=0.25)
    for architecture, kind in itertools.product(("sm_80", "sm_90"), KINDS):
        for rows in ({}, MIXED):
            yield SegmentCase(architecture, kind, **rows)
            yield SegmentCase(architecture, kind, K=203, N=101, dropout=0.25, **rows)
    for architecture in ("sm_80", "sm_90"):
        yield SegmentCase(architecture, rows=(0, 90, 0, 0), N=128, weighted=True)
        yield SegmentCase(architecture, rows=(1, 1, 1, 1, 1), dropout=0.25, N=128)
        yield SegmentCase(architecture, rows=(0, 0, 7), N=128)
        yield SegmentCase(architecture, ranks=(40,), bias=False, weighted=True, dropout=0.25)
        for rows in ({}, MIXED):
            split = {"K": 264, "split": (3, 2), "seeds": (None, 0)}
            yield SegmentCase(architecture, N=192, **split, **rows)
            yield SegmentCase(architecture, N=200, dropout=0.25, resident=1, **split, **rows)
        yield SegmentCase(architecture, rows=(1,) * 9, chosen=(*range(8), -1), ranks=(1, 8, 16, 40) * 2)
        yield SegmentCase(architecture, rows=(70,), chosen=(0,), ranks=(8,))
