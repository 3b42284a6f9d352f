"""The formula by the fused kernels: one launch a pass, and one for the table of its tiles.

Rows are sorted by operand first, by one copy of x. The numbers of rows stay on the device. torch multiplies y
by its factors, and sums over the places of a row.
"""

from __future__ import annotations

from torch import Tensor

from fastlora.formula.operands import Needs
from fastlora.routes import fused_runs
from fastlora.routes.runs_call import RunsCall
from fastlora.segments.by_runs import Gradients, sorted_rows, summed
from fastlora.segments.grouped import input_gradient, sorted_gradient, weight_gradient
from fastlora.segments.operands import RunNeeds, RunOperands


def forward(o: RunOperands) -> tuple[Tensor, Tensor]:
    """y and p as `by_runs.forward` returns them."""
    y, p = fused_runs.forward(_call(o))
    return (y if o.weights is None else summed(o, y, o.weights)), p


def backward(o: RunOperands, dy: Tensor, p: Tensor, needs: RunNeeds) -> Gradients:
    """As `by_runs.backward`."""
    call = _call(o)
    dy, w = sorted_gradient(o, dy, p.dtype)
    needs_g = Needs(needs.dx or (needs.dweights and o.weights is not None), needs.dA, needs.dB)
    g, dA, dB = fused_runs.backward(call, dy, p, needs_g, w)
    dw = (
        weight_gradient(o, call.x, g, dy)
        if needs.dweights and o.weights is not None and g is not None
        else None
    )
    return (input_gradient(o, g, w) if needs.dx and g is not None else None), dA, dB, dw


def _call(o: RunOperands) -> RunsCall:
    assert o.A is not None
    assert o.B is not None
    return RunsCall(
        x=sorted_rows(o),
        W=o.W,
        b=o.b,
        A=o.A.contiguous(),
        B=o.B.contiguous(),
        r=o.A.shape[1],
        s=o.s,
        runs=o.plan.offsets,
        dropout=o.dropout,
        seed=o.seed if o.dropout > 0 else None,
    )
