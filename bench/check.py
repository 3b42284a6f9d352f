"""Before a method is timed: is what it computes right, on the very operands that it is timed on?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bench.dropout_mask import read_mask, seeded_run
from bench.methods import Method
from bench.methods.method import Formula
from tests.testing import Operands, assert_within_budget, relative_error


class Check(NamedTuple):
    """What a check found.

    Attributes:
        method: Its name.
        errors: ‖result - truth‖ / ‖truth‖ against fp64 of y and of each gradient; None where not finite.
        failure: What is wrong, None where nothing is.
    """

    method: str
    errors: dict[str, float | None]
    failure: str | None


def check(method: Method, ops: Operands, dropout: float = 0.0) -> Check:
    """Hold a method's output and gradients to its formula in fp64.

    The budget is the tests': twice the error of the formula in plain torch and one rounding, all of it in x's
    dtype, also where the adapters are wider: a method that rounds those is not wrong, and its error is on
    record beside the others'. With dropout the formula gets the very mask that the method drew.

    Args:
        method: What to check.
        ops: x must take a gradient.
        dropout: Of the low-rank branch.
    """
    names = ["y", "dx", *(f"d{name}" for name in method.trained)]
    try:
        mask = read_mask(method, ops, dropout) if dropout and method.drops else None
    except AssertionError as failure:
        return Check(method.name, dict.fromkeys(names), str(failure))
    y, gradients = seeded_run(method.build(ops, dropout), ops)
    ours = dict(zip(names, (y.detach(), *gradients), strict=True))
    torchs = _computed(method.formula, ops.to(ops.x.dtype), mask, method.trained)
    truth = _computed(method.formula, ops.to(torch.float64), mask, method.trained)
    measured = {name: relative_error(ours[name], truth[name]) for name in names}
    errors = {name: error if math.isfinite(error) else None for name, error in measured.items()}
    try:
        for name in names:
            assert_within_budget(name, ours[name], torchs[name], truth[name])
    except AssertionError as failure:
        return Check(method.name, errors, str(failure))
    return Check(method.name, errors, None)


def _computed(
    formula: Formula, ops: Operands, mask: Tensor | None, trained: tuple[str, ...]
) -> dict[str, Tensor]:
    """Y and the gradients of x and of the operands named, by autograd through the formula."""
    leaves = {name: getattr(ops, name).detach().requires_grad_() for name in ("x", "W", "A", "B")}
    y = formula(leaves["x"], leaves["W"], ops.b, leaves["A"], leaves["B"], ops.s, mask)
    names = ("x", *trained)
    gradients = torch.autograd.grad(y, [leaves[name] for name in names], ops.dy)
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(names, gradients, strict=True)}}
