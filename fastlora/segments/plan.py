"""The plan of a call: its rows sorted into runs, one for each set of operands. Made once for all layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Which rows belong to which run.

    x [T, K] has `copies` places for each row, T * copies = S in all: row t is computed at the places
    t * copies ... t * copies + copies - 1, each with the operands that it chose. Sorted by operand, the
    places make runs. Places behind the last run chose no operand and are computed by none.

    Attributes:
        offsets: [runs + 1] int64; run i is the sorted places offsets[i] ... offsets[i + 1] - 1.
        order: [S] int64; the place that each sorted place was before.
        copies: Places of a row.
    """

    offsets: Tensor
    order: Tensor
    copies: int

    def rows(self) -> Tensor:
        """[S] int64: the row of x at each sorted place."""
        return self.order if self.copies == 1 else self.order // self.copies

    def inverse(self) -> Tensor:
        """[S] int64: where among the sorted places each place is."""
        places = torch.arange(len(self.order), device=self.order.device)
        return torch.empty_like(self.order).index_copy_(0, self.order, places)


def plan_of(chosen: Tensor, runs: int) -> Plan:
    """The plan of rows that chose their operands.

    The sort is stable: the rows of a run keep their order, so that the same input gives the same bits.

    Args:
        chosen: [T] or [T, copies], integers; the operands of each place. Those from `runs` on mean none, as
            the numbers of experts do that lie on another process.
        runs: Number of operands, an empty run for each that nobody chose.
    """
    copies = chosen.shape[1] if chosen.dim() == 2 else 1
    ordered, order = torch.sort(chosen.reshape(-1), stable=True)
    bounds = torch.arange(runs + 1, device=chosen.device, dtype=ordered.dtype)
    return Plan(torch.searchsorted(ordered, bounds), order, copies)
