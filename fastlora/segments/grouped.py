"""The formula by torch's grouped products: for GPUs, which a loop over many experts would leave waiting.

Transformers' own forward of experts runs on the same products by default. The numbers of rows stay on the
device. A and B are converted to x's dtype, in which grouped products come out: so p, q, dA and dB are rounded
to it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import accumulation_dtype
from fastlora.segments.by_runs import Gradients, back_in_order, mask_over, sorted_rows, summed
from fastlora.segments.operands import RunNeeds, RunOperands

# Grouped products read rows in units of 16 bytes.
_UNIT: Final = 16


def takes(o: RunOperands) -> bool:
    """Whether torch has grouped products for these operands on their device."""
    x, W, A = o.x, o.W, o.A
    if not x.is_cuda:
        return False
    fit = takes_sizes(x.dtype, *W.shape[1:], 0 if A is None else A.shape[1])
    return fit and W.data_ptr() % _UNIT == 0 and 1 in W.stride()[1:]


def takes_sizes(dtype: torch.dtype, *sizes: int) -> bool:
    """Whether a GPU's grouped products take rows of this dtype and these lengths: N, K and r."""
    return dtype == torch.bfloat16 and all(size * dtype.itemsize % _UNIT == 0 for size in sizes)


def forward(o: RunOperands) -> tuple[Tensor, Tensor]:
    """y and p as `by_runs.forward` returns them."""
    x = sorted_rows(o)
    y = _product(o, x, o.W.transpose(1, 2))
    if o.b is not None:
        y = y + o.b.index_select(0, _operand_of(o))
    p = x.new_empty(0)
    if o.A is not None and o.B is not None:
        p = _product(o, _dropped(o, x), o.A.to(x.dtype).transpose(1, 2))
        y = y.add_(_product(o, p, o.B.to(x.dtype).transpose(1, 2)), alpha=o.s)
    y = _inside(o, y)
    return (y if o.weights is None else summed(o, y, o.weights)), p.to(accumulation_dtype(x.dtype))


def backward(o: RunOperands, dy: Tensor, p: Tensor, needs: RunNeeds) -> Gradients:
    """As `by_runs.backward`."""
    x = sorted_rows(o)
    dy, w = sorted_gradient(o, dy, p.dtype)
    dy = dy.contiguous()
    dx = dA = dB = dw = q = None
    if needs.dB and o.B is not None:
        dB = (_grams(o, dy, p if w is None else p * w) * o.s).to(o.B.dtype)
    if o.A is not None and o.B is not None and (needs.dx or needs.dA or needs.dweights):
        q = _product(o, dy, o.B.to(dy.dtype)) * o.s
    if needs.dA and o.A is not None and q is not None:
        dA = _grams(o, q if w is None else q * w, _dropped(o, x)).to(o.A.dtype)
    if needs.dx or needs.dweights:
        dx = _product(o, dy, o.W)
        if q is not None and o.A is not None:
            update = _product(o, q, o.A.to(x.dtype))
            dx = dx + (update if o.dropout == 0 else _masked(o, x, update))
        dx = _inside(o, dx)
    if needs.dweights and o.weights is not None and dx is not None:
        dw = weight_gradient(o, x, dx, dy)
    return (input_gradient(o, dx, w) if needs.dx and dx is not None else None), dA, dB, dw


def weight_gradient(o: RunOperands, x: Tensor, g: Tensor, dy: Tensor) -> Tensor:
    """The gradient of the factors of y, in their shape and dtype: dy · y = g · x + dy · b_e.

    Args:
        o: The operands, with weights.
        x: [S, K], sorted by run.
        g: [S, K], the gradient of x without the factors.
        dy: [S, N], sorted by run.
    """
    wide = accumulation_dtype(x.dtype)
    found: Tensor = torch.linalg.vecdot(g.to(wide), x.to(wide))
    if o.b is not None:
        found = found + torch.linalg.vecdot(dy.to(wide), o.b.index_select(0, _operand_of(o)).to(wide))
    found = back_in_order(o, _inside(o, found))
    return found if o.weights is None else found.to(o.weights.dtype).view(o.weights.shape)


def input_gradient(o: RunOperands, g: Tensor, w: Tensor | None) -> Tensor:
    """dx in x's shape, of g [S, K] without the factors and of these, w [S, 1]."""
    dx = g if w is None else g * w.to(g.dtype)
    if o.gathers:
        dx = back_in_order(o, dx).view(o.x.shape[0], o.plan.copies, dx.shape[1]).sum(1)
    return dx


def sorted_gradient(o: RunOperands, dy: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """(dy [S, N] sorted by run, the factors of its rows [S, 1] in this dtype or None)."""
    if o.weights is None:
        return dy, None
    w = o.weights.reshape(-1).index_select(0, o.plan.order).to(dtype)[:, None]
    return dy.index_select(0, o.plan.rows()), w


def _product(o: RunOperands, rows: Tensor, factors: Tensor) -> Tensor:
    """The rows [S, C] of each run times its factor of [E, C, D] -> [S, D]; behind the runs is anything."""
    return torch._grouped_mm(rows, factors, offs=_ends(o))


def _grams(o: RunOperands, left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right over the rows of each run: [S, C] and [S, D] -> [E, C, D] in x's dtype."""
    left, right = (rows.to(o.x.dtype).contiguous() for rows in (left, right))
    return torch._grouped_mm(left.t(), right, offs=_ends(o))


def _ends(o: RunOperands) -> Tensor:
    return o.plan.offsets[1:].to(torch.int32)


def _operand_of(o: RunOperands) -> Tensor:
    """[S]: the number of the operands of each sorted place; the last one's behind the runs."""
    places = torch.arange(len(o.plan.order), device=o.x.device)
    return torch.searchsorted(o.plan.offsets[1:].contiguous(), places, right=True).clamp_max(len(o.W) - 1)


def _inside(o: RunOperands, rows: Tensor) -> Tensor:
    """Rows [S, ...] with zeros behind the last run, whatever is there."""
    inside = torch.arange(len(o.plan.order), device=rows.device) < o.plan.offsets[-1]
    return torch.where(inside if rows.dim() == 1 else inside[:, None], rows, 0)


def _masked(o: RunOperands, x: Tensor, rows: Tensor) -> Tensor:
    return (mask_over(o, x) * rows).mul_(dropout_constants(o.dropout)[1])


def _dropped(o: RunOperands, x: Tensor) -> Tensor:
    return x if o.dropout == 0 else _masked(o, x, x)
