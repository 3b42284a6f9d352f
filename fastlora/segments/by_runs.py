"""The formula run by run, by torch's products: for CPUs, and wherever there are no kernels.

Each W_e is read where it lies, once a pass, and nothing of the size of a stack of W is allocated. The numbers
of rows are read on the host, which on a GPU waits for the device once a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import accumulation_dtype
from fastlora.routes.products import gram, grow, shrink
from fastlora.segments.operands import RunNeeds, RunOperands

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class _Run(NamedTuple):
    """The rows of one run: its number, its part of the sorted places, and their x."""

    e: int
    part: slice
    x: Tensor


def forward(o: RunOperands) -> tuple[Tensor, Tensor]:
    """y [S, N], or [T, N] with weights, in x's dtype; and p [S, r] in fp32 (fp64 for fp64), or [0]."""
    x, W, b, A, B, s, plan, _, weights, _, _ = o
    S, N = plan.order.shape[0], W.shape[1]
    sorted_y = x.new_empty(S, N)
    p = x.new_empty((0,) if A is None else (S, A.shape[1]), dtype=accumulation_dtype(x.dtype))
    end = 0
    for run in _runs(o):
        e, part, rows = run
        y, end = sorted_y[part], part.stop
        if A is None or B is None:
            _base(y, rows, W[e], None if b is None else b[e])
            continue
        p[part] = shrink(_dropped(o, run), A[e].t())
        grow(p[part], B[e].t(), x.dtype, s, None if b is None else b[e], out=y)
        y.addmm_(rows, W[e].t())
    sorted_y[end:] = 0
    p[end:] = 0
    return (sorted_y if weights is None else _summed(o, sorted_y, weights)), p


def backward(o: RunOperands, dy: Tensor, p: Tensor, needs: RunNeeds) -> Gradients:
    """Gradients of x, A, B and the weights, in their operands' shapes and dtypes; None if not needed.

    Args:
        o: The operands of `forward`; their seed gives the same masks again.
        dy: In the shape of y and x's dtype.
        p: As `forward` returned it.
        needs: Which gradients to compute.
    """
    x, _, b, A, B, s, plan, gathers, weights, _, _ = o
    S = plan.order.shape[0]
    dx = x.new_zeros(S, x.shape[1]) if needs.dx else None
    dA = None if A is None or not needs.dA else torch.zeros_like(A, memory_format=torch.contiguous_format)
    dB = None if B is None or not needs.dB else torch.zeros_like(B, memory_format=torch.contiguous_format)
    dw = None if weights is None or not needs.dweights else weights.new_zeros(S)
    takes = plan.rows() if weights is not None else None
    w = None if weights is None else weights.reshape(-1)[plan.order].to(p.dtype)
    for run in _runs(o):
        e, part, rows = run
        g_y = dy[part] if takes is None else dy[takes[part]]
        w_run = None if w is None else w[part, None]
        g = q = None
        if A is not None and B is not None:
            q = shrink(g_y, B[e], s)
            if dB is not None:
                dB[e] = gram(g_y, p[part] if w_run is None else p[part] * w_run, B.dtype, s)
            if dA is not None:
                dA[e] = gram(q if w_run is None else q * w_run, _dropped(o, run), A.dtype)
        if dx is not None or dw is not None:
            g = _input_gradient(o, run, g_y, q, x.new_empty(rows.shape) if dx is None else dx[part])
        if g is not None and dw is not None:
            dw[part] = _weight_gradient(g, rows, g_y, None if b is None else b[e], dw.dtype)
        if dx is not None and w_run is not None:
            dx[part] *= w_run.to(x.dtype)
    if dx is not None and gathers:
        dx = _back_in_order(o, dx).view(x.shape[0], plan.copies, x.shape[1]).sum(1)
    if dw is not None and weights is not None:
        dw = _back_in_order(o, dw).view(weights.shape)
    return dx, dA, dB, dw


def _runs(o: RunOperands) -> Iterator[_Run]:
    """Each run that has rows, with x's rows at its places."""
    rows = o.plan.rows() if o.gathers else None
    for e, (start, end) in enumerate(pairwise(o.plan.offsets.tolist())):
        if start < end:
            part = slice(start, end)
            yield _Run(e, part, o.x[part] if rows is None else o.x[rows[part]])


def _base(y: Tensor, x: Tensor, W: Tensor, b: Tensor | None) -> None:
    if b is None:
        torch.mm(x, W.t(), out=y)
    else:
        torch.addmm(b, x, W.t(), out=y)


def _input_gradient(o: RunOperands, run: _Run, dy: Tensor, q: Tensor | None, out: Tensor) -> Tensor:
    """dy W + D * (q A) [m, K], written to `out`; without the weights."""
    W = o.W[run.e]
    if q is None or o.A is None:
        return torch.mm(dy, W, out=out)
    grow(q, o.A[run.e], out.dtype, out=out)
    if o.dropout > 0:
        out.mul_(_mask(o, run)).mul_(dropout_constants(o.dropout)[1])
    return out.addmm_(dy, W)


def _weight_gradient(g: Tensor, x: Tensor, dy: Tensor, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient [m] of the factors of y: dy · y = g · x + dy · b."""
    wide = accumulation_dtype(x.dtype)
    found: Tensor = torch.linalg.vecdot(g.to(wide), x.to(wide))
    if b is not None:
        found += dy.to(wide) @ b.to(wide)
    return found.to(dtype)


def _summed(o: RunOperands, sorted_y: Tensor, weights: Tensor) -> Tensor:
    """[S, N] sorted by run -> [T, N]: each place's y times its factor, summed over the places of a row."""
    y = _back_in_order(o, sorted_y).view(*weights.shape, sorted_y.shape[1])
    wide = accumulation_dtype(sorted_y.dtype)
    return torch.mul(y, weights.to(wide)[..., None]).sum(1).to(sorted_y.dtype)


def _back_in_order(o: RunOperands, rows: Tensor) -> Tensor:
    """[S, C] sorted by run -> [S, C] in the order of the places."""
    return rows.index_select(0, o.plan.inverse())


def _mask(o: RunOperands, run: _Run) -> Tensor:
    seed = None if o.seed is None else o.seed + run.e
    return draw_mask(run.x, dropout_constants(o.dropout)[0], seed)


def _dropped(o: RunOperands, run: _Run) -> Tensor:
    if o.dropout == 0:
        return run.x
    return _mask(o, run).mul_(run.x).mul_(dropout_constants(o.dropout)[1])
