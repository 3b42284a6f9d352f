"""Which rows of a batch take which adapter. Planned once a batch, and read by every layer.

A batch is a sequence of items: sequences, or tokens. A layer sees the same number of rows of x for each item.
Successive items with the same adapter make a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Adapters whose runs are shorter than this on average have their rows gathered: one product over a copy of
# them costs less than a product for each run.
_SHORT: Final = 32
# Numbers of rows whose parts are kept: texts of ever other lengths would add up.
_KEPT: Final = 16


class Run(NamedTuple):
    """Rows [begin, end) take the adapter of this index; -1 means none."""

    adapter: int
    begin: int
    end: int


class Part(NamedTuple):
    """Rows that are computed together with one adapter: a slice, or int64 indices of rows in any order."""

    adapter: int
    rows: slice | Tensor


class Runs:
    """The runs of a batch.

    Args:
        ids: For each item the index of its adapter; -1 means none.

    Attributes:
        items: The number of items.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.items = len(ids)
        self._runs: list[Run] = []
        begin = 0
        for adapter, group in groupby(ids):
            end = begin + sum(1 for _ in group)
            self._runs.append(Run(adapter, begin, end))
            begin = end
        self._parts: dict[tuple[int, torch.device], list[Part]] = {}

    def scaled(self, rows: int) -> list[Run]:
        """The runs in rows of x [rows, K], in order. `rows` is a multiple of `items`."""
        unit = rows // self.items if self.items else 0
        return [Run(adapter, begin * unit, end * unit) for adapter, begin, end in self._runs]

    def parts(self, rows: int, device: torch.device) -> list[Part]:
        """Every row of x [rows, K] once, in parts to be computed together; short runs are gathered."""
        key = rows, device
        if key not in self._parts:
            if len(self._parts) == _KEPT:
                self._parts.clear()
            self._parts[key] = self._gathered(rows, device)
        return self._parts[key]

    def _gathered(self, rows: int, device: torch.device) -> list[Part]:
        own: dict[int, list[Run]] = {}
        for run in self.scaled(rows):
            own.setdefault(run.adapter, []).append(run)
        parts: list[Part] = []
        for adapter, runs in own.items():
            count = sum(run.end - run.begin for run in runs)
            if len(runs) > 1 and count < _SHORT * len(runs):
                indices = [row for run in runs for row in range(run.begin, run.end)]
                parts.append(Part(adapter, torch.tensor(indices, device=device)))
            else:
                parts += [Part(adapter, slice(run.begin, run.end)) for run in runs]
        return parts
