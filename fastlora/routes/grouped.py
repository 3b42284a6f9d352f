"""Projections that share x, by torch's products.

The thin products of all members are one: p_1 ... p_n are x times all A side by side, which reads x once, and
dA and the low-rank part of dx are likewise one product each. dx is one tensor, onto which each member's dy W
is accumulated, where autograd would write one for each member and add them up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlora.formula.grouped import Grouped, GroupNeeds
from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import accumulation_dtype, plain
from fastlora.routes.cpu import LARGE, is_faster_transposed
from fastlora.routes.products import ACCUMULATED, gram, grow, scaled_product, shrink, without_gaps


def forward(o: Grouped) -> tuple[list[Tensor], list[Tensor | None]]:
    """y_i [M, N_i] in x's dtype, and p_i [M, r_i] in fp32 (fp64 for fp64); None without an update."""
    o = _without_gaps(o)
    x, dtype = o.x, o.x.dtype
    ys: list[Tensor] = []
    ps: list[Tensor | None] = []
    for (base, b, _, B, s, _, _), p_i in zip(o.members, _shrunk(o), strict=True):
        (W,) = base.tensors
        if B is None:
            ys.append(F.linear(x, W, b))
            ps.append(None)
            continue
        ps.append(p_i)
        if b is None and B.dtype == dtype in ACCUMULATED:
            y = scaled_product(p_i, B.t(), s)
        else:
            y = grow(p_i, B.t(), dtype, s, b)
        if base.N * base.K >= LARGE and is_faster_transposed(x):
            ys.append(y.add_(torch.mm(W, x.t()).t()))
        else:
            ys.append(y.addmm_(x, W.t()))
    return ys, ps


def backward(
    o: Grouped, dys: Sequence[Tensor | None], ps: Sequence[Tensor | None], needs: GroupNeeds
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """dx [M, K], and dA [r_i, K] and dB [N_i, r_i] of each member; None if not needed.

    Args:
        o: The operands of `forward`.
        dys: [M, N_i] in x's dtype; None where nothing used that y.
        ps: As `forward` returned them.
        needs: Which gradients to compute.
    """
    o = _without_gaps(o)
    if o.x.dtype == torch.bfloat16:
        dys = [None if dy is None else without_gaps(dy) for dy in dys]
    dA: list[Tensor | None] = [None] * len(dys)
    dB: list[Tensor | None] = [None] * len(dys)
    dx = _low_rank_gradients(o, dys, ps, needs, dA, dB)
    if needs.dx:
        for dy, member in zip(dys, o.members, strict=True):
            if dy is not None:
                (W,) = member.base.tensors
                dx = torch.mm(dy, W) if dx is None else dx.addmm_(dy, W)
    return dx, dA, dB


def _low_rank_gradients(
    o: Grouped,
    dys: Sequence[Tensor | None],
    ps: Sequence[Tensor | None],
    needs: GroupNeeds,
    dA: list[Tensor | None],
    dB: list[Tensor | None],
) -> Tensor | None:
    """Fill in dA and dB; the low-rank part of dx, or None. Members without dropout are computed together."""
    x, dx = o.x, None
    places: list[int] = []
    qs: list[Tensor] = []
    As: list[Tensor] = []
    for place, ((member, seed), dy, p_i) in enumerate(zip(o.each_seed(), dys, ps, strict=True)):
        A, B = member.A, member.B
        if dy is None or A is None or B is None or p_i is None:
            continue
        if needs.dB[place]:
            dB[place] = gram(dy, p_i, B.dtype, member.s)
        if not (needs.dx or needs.dA[place]):
            continue
        q = shrink(dy, B, member.s)
        if member.dropout == 0:
            places.append(place)
            qs.append(q)
            As.append(A)
            continue
        threshold, scale = dropout_constants(member.dropout)
        mask = draw_mask(x, threshold, seed)
        if needs.dA[place]:
            dA[place] = gram(q, torch.mul(x, mask), A.dtype, scale)
        if needs.dx:
            more = grow(q, A, x.dtype, scale).mul_(mask)
            dx = more if dx is None else dx.add_(more)
    if not places:
        return dx
    q, A = _joined(qs, 1), _joined(As, 0)
    if any(needs.dA[place] for place in places):
        for place, part in zip(places, _rows(gram(q, x, A.dtype), As), strict=True):
            dA[place] = part if needs.dA[place] else None
    if needs.dx:
        more = grow(q, A, x.dtype)
        dx = more if dx is None else dx.add_(more)
    return dx


def _shrunk(o: Grouped) -> Sequence[Tensor]:
    """Each p [M, r]: one product where nobody drops."""
    x = o.x
    As = [member.A for member in o.members if member.A is not None]
    if not As:
        return [x.new_empty(x.shape[0], 0, dtype=accumulation_dtype(x.dtype))] * len(o.members)
    if o.seeds is None:
        return torch.unsafe_split_with_sizes(shrink(x, _joined(As, 0).t()), o.ranks, 1)
    ps = []
    for member, seed in o.each_seed():
        x_d, scale = x, 1.0
        if member.dropout > 0:
            threshold, scale = dropout_constants(member.dropout)
            x_d = draw_mask(x, threshold, seed).mul_(x)
        ps.append(x.new_empty(0) if member.A is None else shrink(x_d, member.A.t(), scale))
    return ps


def _without_gaps(o: Grouped) -> Grouped:
    """The bundle whose bf16 operands have no gaps (see `without_gaps`)."""
    if o.x.dtype != torch.bfloat16:
        return o
    members = [
        member._replace(
            base=plain(without_gaps(member.base.tensors[0])),
            A=None if member.A is None else without_gaps(member.A),
            B=None if member.B is None else without_gaps(member.B),
        )
        for member in o.members
    ]
    return o._replace(x=without_gaps(o.x), members=tuple(members))


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _rows(joined: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """The rows of each; no views to autograd, as each becomes a gradient of its own."""
    if len(like) == 1:
        return [joined]
    return torch.unsafe_split_with_sizes(joined, [one.shape[0] for one in like])
