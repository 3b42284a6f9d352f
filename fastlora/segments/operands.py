"""The operands of one call whose rows choose theirs, in one bundle."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastlora.segments.plan import Plan


class RunOperands(NamedTuple):
    """The operands of y = w (x W_eᵀ + s (x_d A_eᵀ) B_eᵀ + b_e) for the rows of run e.

    Attributes:
        x: [T, K] with `gathers`, which takes the rows of each run from it; else [S, K], sorted by run.
        W: [E, N, K] in x's dtype, any strides.
        b: [E, N] in x's dtype, or None.
        A: [E, r, K], in any floating dtype; None where there is no update.
        B: [E, N, r], in A's dtype.
        s: The scaling.
        plan: The runs.
        gathers: Whether x has its rows as they were before they were sorted.
        weights: [T, copies], the factor w of each place; then y is [T, N], the sum over the places of a row.
            None means 1 and y [S, N], sorted by run.
        dropout: As in `formula.operands.Operands`.
        seed: [1] int64, the seed of the mask; None without dropout. Each place has entries of its own.
        setting: The backend setting that decides the code of both passes: "auto", "triton" or "torch".
    """

    x: Tensor
    W: Tensor
    b: Tensor | None
    A: Tensor | None
    B: Tensor | None
    s: float
    plan: Plan
    gathers: bool = False
    weights: Tensor | None = None
    dropout: float = 0.0
    seed: Tensor | None = None
    setting: str = "auto"


class RunNeeds(NamedTuple):
    """Which gradients a backward pass must compute."""

    dx: bool = True
    dA: bool = True
    dB: bool = True
    dweights: bool = True
