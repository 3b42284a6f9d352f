"""RunsCall: the operands of a call whose rows choose theirs, as the kernels for that take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastlora.formula.cost import Problem
from fastlora.formula.runs import Run
from fastlora.routes.run_tables import Adapters


class RunsCall(NamedTuple):
    """The operands of a call whose rows choose theirs.

    Attributes:
        x: [S, K].
        W: [E, N, K] in x's dtype, any strides. E is 1 where all rows take the same W.
        b: [E, N] in x's dtype, or None.
        A: The adapters' A [r, K], one after the other, contiguous.
        B: The adapters' B [N, r], one after the other, contiguous.
        r: The largest rank.
        s: The scaling, where all adapters are alike.
        runs: Which rows take which operands: [E + 1] int64 on x's device, where rows are sorted by operand
            and run e is rows runs[e] ... runs[e + 1] - 1; or the runs where rows lie as they come.
        adapters: Of runs as they come; None where all are alike.
        dropout: As in `formula.operands.Operands`, where all adapters are alike.
        seed: [1] int64, the seed of the mask; None without dropout.
    """

    x: Tensor
    W: Tensor
    b: Tensor | None
    A: Tensor
    B: Tensor
    r: int
    s: float
    runs: Tensor | tuple[Run, ...]
    adapters: Adapters | None = None
    dropout: float = 0.0
    seed: Tensor | None = None

    @property
    def problem(self) -> Problem:
        """Shape and dtypes."""
        _, N, K = self.W.shape
        return Problem(self.x.shape[0], K, N, self.r, self.x.dtype, self.A.dtype)
