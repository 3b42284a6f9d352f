"""The formula run by run, by torch's products: for CPUs, and wherever there are no grouped products.

Each W_e is read where it lies, once a pass, and nothing of the size of a stack of W is allocated. What can be
done for all rows at once is, so that a run costs a few products alone. The numbers of rows are read on the
host, which on a GPU waits for the device once a pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import accumulation_dtype, outranges_fp16
from fastlora.routes.products import gram, grow, shrink, without_gaps
from fastlora.segments.operands import RunNeeds, RunOperands

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class _Runs(NamedTuple):
    """The runs that have rows.

    Attributes:
        numbers: The operands of each.
        sizes: Rows of each run, those without rows too; last, of the places that no run computes.
        x: [S, K], the row of x at each sorted place.
    """

    numbers: list[int]
    sizes: list[int]
    x: Tensor

    def split(self, rows: Tensor) -> list[Tensor]:
        """[S, C] -> views of the rows of each run."""
        return list(rows.split_with_sizes(self.sizes))


def forward(o: RunOperands) -> tuple[Tensor, Tensor]:
    """y [S, N], or [T, N] with weights, in x's dtype; and p [S, r] in fp32 (fp64 for fp64), or [0]."""
    runs = _runs_of(o)
    S, N = o.plan.order.shape[0], o.W.shape[1]
    y = runs.x.new_empty(S, N)
    p = _low_rank(o, runs)
    ys, xs, Ws = runs.split(y), runs.split(runs.x), o.W.transpose(1, 2).unbind()
    bs = None if o.b is None else o.b.unbind()
    if o.B is None:
        for e in runs.numbers:
            _base(ys[e], xs[e], Ws[e], None if bs is None else bs[e])
    else:
        wide = outranges_fp16(o.B.dtype, y.dtype)
        kind = p.dtype if wide else y.dtype
        ps, Bs = runs.split(p.to(kind)), o.B.to(kind).transpose(1, 2).contiguous().unbind()
        for e in runs.numbers:
            _base(ys[e], xs[e], Ws[e], None if bs is None else bs[e])
            if wide:
                ys[e].add_(grow(ps[e], Bs[e], y.dtype, o.s))
            else:
                ys[e].addmm_(ps[e], Bs[e], alpha=o.s)
    ys[-1].zero_()
    return (y if o.weights is None else summed(o, y, o.weights)), p


def backward(o: RunOperands, dy: Tensor, p: Tensor, needs: RunNeeds) -> Gradients:
    """Gradients of x, A, B and the weights, in their operands' shapes and dtypes; None if not needed.

    Args:
        o: The operands of `forward`; their seed gives the same masks again.
        dy: In the shape of y and x's dtype.
        p: As `forward` returned it.
        needs: Which gradients to compute.
    """
    runs, weights = _runs_of(o), o.weights
    w = None
    dy = without_gaps(dy)
    if weights is not None:
        dy = dy.index_select(0, o.plan.rows())
        w = weights.reshape(-1).index_select(0, o.plan.order).to(p.dtype)[:, None]
    dx = dA = dB = dw = q = None
    if needs.dB and o.B is not None:
        # With r for rows and not for columns a product takes a third of the time.
        like = o.B.transpose(1, 2)
        dB = _grams(runs, p if w is None else p * w, dy, like, o.s).transpose(1, 2).contiguous()
    if o.A is not None and o.B is not None and (needs.dx or needs.dA or needs.dweights):
        q = _shrunk(runs, dy, o.B, o.s)
    if needs.dA and o.A is not None and q is not None:
        dA = _grams(runs, q if w is None else q * w, _dropped(o, runs), o.A)
    if needs.dx or needs.dweights:
        dx = _input_gradient(o, runs, dy, q)
    if needs.dweights and weights is not None and dx is not None:
        dw = back_in_order(o, _weight_gradient(o, runs, dx, dy).to(weights.dtype)).view(weights.shape)
    if not needs.dx or dx is None:
        return None, dA, dB, dw
    if w is not None:
        dx *= w.to(dx.dtype)
    if o.gathers:
        dx = back_in_order(o, dx).view(o.x.shape[0], o.plan.copies, dx.shape[1]).sum(1)
    return dx, dA, dB, dw


def _runs_of(o: RunOperands) -> _Runs:
    sizes = o.plan.offsets.diff().tolist()
    numbers = [e for e, size in enumerate(sizes) if size]
    x = sorted_rows(o)
    return _Runs(numbers, [*sizes, x.shape[0] - sum(sizes)], x)


def sorted_rows(o: RunOperands) -> Tensor:
    """[S, K]: the row of x at each sorted place."""
    return o.x.index_select(0, o.plan.rows()) if o.gathers else without_gaps(o.x)


def _base(y: Tensor, x: Tensor, W: Tensor, b: Tensor | None) -> None:
    if b is None:
        torch.mm(x, W, out=y)
    else:
        torch.addmm(b, x, W, out=y)


def _low_rank(o: RunOperands, runs: _Runs) -> Tensor:
    """p = x_d A_eᵀ [S, r]."""
    if o.A is None:
        return runs.x.new_empty(0, dtype=accumulation_dtype(runs.x.dtype))
    return _shrunk(runs, _dropped(o, runs), o.A.transpose(1, 2))


def _shrunk(runs: _Runs, rows: Tensor, factors: Tensor, s: float = 1.0) -> Tensor:
    """s times the rows [S, C] of each run times its factor of [E, C, r] -> [S, r], as accumulators are."""
    out = rows.new_empty(rows.shape[0], factors.shape[2], dtype=accumulation_dtype(rows.dtype))
    outs, parts, each = runs.split(out), runs.split(rows), factors.unbind()
    alike = rows.dtype == factors.dtype == out.dtype
    for e in runs.numbers:
        if alike:
            outs[e].addmm_(parts[e], each[e], beta=0, alpha=s)
        else:
            outs[e].copy_(shrink(parts[e], each[e], s))
    outs[-1].zero_()
    return out


def _grams(runs: _Runs, left: Tensor, right: Tensor, like: Tensor, s: float = 1.0) -> Tensor:
    """s times leftᵀ right over the rows of each run -> [E, C, D], in the shape and dtype of `like`."""
    out = torch.zeros_like(like, memory_format=torch.contiguous_format)
    outs, lefts, rights = out.unbind(), runs.split(left), runs.split(right)
    alike = left.dtype == right.dtype == out.dtype
    for e in runs.numbers:
        if alike:
            outs[e].addmm_(lefts[e].t(), rights[e], beta=0, alpha=s)
        else:
            outs[e].copy_(gram(lefts[e], rights[e], out.dtype, s))
    return out


def _input_gradient(o: RunOperands, runs: _Runs, dy: Tensor, q: Tensor | None) -> Tensor:
    """dy W_e + D * (q A_e) [S, K], without the weights."""
    out = torch.empty_like(runs.x)
    outs, dys, Ws = runs.split(out), runs.split(dy), o.W.unbind()
    if q is None or o.A is None:
        for e in runs.numbers:
            torch.mm(dys[e], Ws[e], out=outs[e])
    else:
        kind = q.dtype if outranges_fp16(o.A.dtype, out.dtype) else out.dtype
        qs, As = runs.split(q.to(kind)), o.A.to(kind).unbind()
        for e in runs.numbers:
            grow(qs[e], As[e], out.dtype, out=outs[e])
        if o.dropout > 0:
            out.mul_(mask_over(o, runs.x)).mul_(dropout_constants(o.dropout)[1])
        for e in runs.numbers:
            outs[e].addmm_(dys[e], Ws[e])
    outs[-1].zero_()
    return out


def _weight_gradient(o: RunOperands, runs: _Runs, g: Tensor, dy: Tensor) -> Tensor:
    """The gradient [S] of the factors of y: dy · y = g · x + dy · b_e."""
    wide = accumulation_dtype(g.dtype)
    found: Tensor = torch.linalg.vecdot(g.to(wide), runs.x.to(wide))
    if o.b is not None:
        parts, dys, bs = runs.split(found), runs.split(dy), o.b.to(wide).unbind()
        for e in runs.numbers:
            parts[e].add_(dys[e].to(wide) @ bs[e])
    # Places without operands have an x, but no y.
    runs.split(found)[-1].zero_()
    return found


def summed(o: RunOperands, sorted_y: Tensor, weights: Tensor) -> Tensor:
    """[S, N] sorted by run -> [T, N]: each place's y times its factor, summed over the places of a row."""
    y = back_in_order(o, sorted_y).view(*weights.shape, sorted_y.shape[1])
    wide = accumulation_dtype(sorted_y.dtype)
    return torch.mul(y, weights.to(wide)[..., None]).sum(1).to(sorted_y.dtype)


def back_in_order(o: RunOperands, rows: Tensor) -> Tensor:
    """[S, ...] sorted by run -> [S, ...] in the order of the places."""
    return rows.index_select(0, o.plan.inverse())


def mask_over(o: RunOperands, x: Tensor) -> Tensor:
    """1 where an entry of x is kept and 0 where it is dropped; all runs draw from one sequence."""
    return draw_mask(x, dropout_constants(o.dropout)[0], o.seed)


def _dropped(o: RunOperands, runs: _Runs) -> Tensor:
    if o.dropout == 0:
        return runs.x
    return mask_over(o, runs.x).mul_(runs.x).mul_(dropout_constants(o.dropout)[1])
