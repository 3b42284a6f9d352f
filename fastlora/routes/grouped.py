"""Projections that share x, by torch's products; by the kernels one member after the other.

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
from fastlora.formula.operands import EVERYTHING, accumulation_dtype, plain
from fastlora.routes import vendor
from fastlora.routes.cpu import LARGE, is_faster_transposed
from fastlora.routes.decide import Decision, decide
from fastlora.routes.products import ACCUMULATED, gram, grow, scaled_product, shrink, without_gaps

# The routes of each member's two passes, where kernels run; None where torch computes them together.
Decisions = list[Decision | None] | None


def decided(o: Grouped, setting: str | None) -> Decisions:
    """Which code computes the members, decided once for both passes.

    Args:
        o: The operands.
        setting: "auto", "triton" or "torch"; None means the current backend setting.

    Raises:
        BackendError: As by `decide`.
    """
    if o.x.is_cpu and setting in ("auto", "torch"):
        return None
    alone = [None if one is None else decide(one, EVERYTHING, setting) for one in o.alone()]
    fused = any(one is not None and (one.forward.is_fused or one.backward.is_fused) for one in alone)
    return alone if fused else None


def forward(o: Grouped, decisions: Decisions = None) -> tuple[list[Tensor], Tensor]:
    """y_i [M, N_i] in x's dtype, and p [M, r_1 + ... + r_n] in fp32 (fp64 for fp64)."""
    if decisions is not None:
        return _forward_in_turn(o, decisions)
    o = _without_gaps(o)
    x, dtype = o.x, o.x.dtype
    p = _shrunk(o)
    ys = []
    for (base, b, _, B, s, _, _), p_i in zip(
        o.members, torch.unsafe_split_with_sizes(p, o.ranks, 1), strict=True
    ):
        (W,) = base.tensors
        if B is None:
            ys.append(F.linear(x, W, b))
            continue
        if b is None and B.dtype == dtype in ACCUMULATED:
            y = scaled_product(p_i, B.t(), s)
        else:
            y = grow(p_i, B.t(), dtype, s, b)
        if base.N * base.K >= LARGE and is_faster_transposed(x):
            ys.append(y.add_(torch.mm(W, x.t()).t()))
        else:
            ys.append(y.addmm_(x, W.t()))
    return ys, p


def backward(
    o: Grouped, dys: Sequence[Tensor | None], p: Tensor, needs: GroupNeeds, decisions: Decisions = None
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """dx [M, K], and dA [r_i, K] and dB [N_i, r_i] of each member; None if not needed.

    Args:
        o: The operands of `forward`.
        dys: [M, N_i] in x's dtype; None where nothing used that y.
        p: As `forward` returned it.
        needs: Which gradients to compute.
        decisions: Those of `forward`.
    """
    if decisions is not None:
        return _backward_in_turn(o, dys, p, needs, decisions)
    o = _without_gaps(o)
    if o.x.dtype == torch.bfloat16:
        dys = [None if dy is None else without_gaps(dy) for dy in dys]
    dA: list[Tensor | None] = [None] * len(dys)
    dB: list[Tensor | None] = [None] * len(dys)
    dx = _low_rank_gradients(o, dys, p, needs, dA, dB)
    if needs.dx:
        for dy, member in zip(dys, o.members, strict=True):
            if dy is not None:
                (W,) = member.base.tensors
                dx = torch.mm(dy, W) if dx is None else dx.addmm_(dy, W)
    return dx, dA, dB


def _low_rank_gradients(
    o: Grouped,
    dys: Sequence[Tensor | None],
    p: Tensor,
    needs: GroupNeeds,
    dA: list[Tensor | None],
    dB: list[Tensor | None],
) -> Tensor | None:
    """Fill in dA and dB; the low-rank part of dx, or None. Members without dropout are computed together."""
    x, dx = o.x, None
    places: list[int] = []
    qs: list[Tensor] = []
    As: list[Tensor] = []
    for place, ((member, seed), p_i) in enumerate(
        zip(o.each_seed(), torch.unsafe_split_with_sizes(p, o.ranks, 1), strict=True)
    ):
        dy, A, B = dys[place], member.A, member.B
        if dy is None or A is None or B is None:
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
            dA[place] = gram(q, torch.mul(x, mask).mul_(scale), A.dtype)
        if needs.dx:
            more = grow(q, A, x.dtype).mul_(mask).mul_(scale)
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


def _shrunk(o: Grouped) -> Tensor:
    """p [M, r_1 + ... + r_n]: one product where nobody drops."""
    x = o.x
    As = [member.A for member in o.members if member.A is not None]
    if not As:
        return x.new_empty(x.shape[0], 0, dtype=accumulation_dtype(x.dtype))
    if all(member.dropout == 0 for member in o.members):
        return shrink(x, _joined(As, 0).t())
    ps = []
    for member, seed in o.each_seed():
        if member.A is None:
            continue
        x_d = x
        if member.dropout > 0:
            threshold, scale = dropout_constants(member.dropout)
            x_d = draw_mask(x, threshold, seed).mul_(x).mul_(scale)
        ps.append(shrink(x_d, member.A.t()))
    return _joined(ps, 1)


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


def _forward_in_turn(o: Grouped, decisions: Decisions) -> tuple[list[Tensor], Tensor]:
    """Each member by its own route."""
    ys, ps = [], []
    for member, alone, routes in zip(o.members, o.alone(), decisions or (), strict=True):
        if alone is None or routes is None:
            ys.append(F.linear(o.x, member.base.tensors[0], member.b))
            continue
        if routes.forward.is_fused:
            from fastlora.routes import fused

            y, p = fused.forward(alone)
        else:
            y, p = vendor.forward(alone)
        ys.append(y)
        ps.append(p)
    return ys, _joined(ps, 1)


def _backward_in_turn(
    o: Grouped, dys: Sequence[Tensor | None], p: Tensor, needs: GroupNeeds, decisions: Decisions
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    dx = None
    dA: list[Tensor | None] = [None] * len(dys)
    dB: list[Tensor | None] = [None] * len(dys)
    ps = p.split(o.ranks, 1)
    for place, (alone, routes) in enumerate(zip(o.alone(), decisions or (), strict=True)):
        dy = dys[place]
        if dy is None:
            continue
        if alone is None or routes is None:
            more = torch.mm(dy, o.members[place].base.tensors[0]) if needs.dx else None
        elif routes.backward.is_fused:
            from fastlora.routes import fused

            more, dA[place], dB[place] = fused.backward(alone, dy, ps[place].contiguous(), needs.of(place))
        else:
            more, dA[place], dB[place] = vendor.backward(alone, dy, ps[place], needs.of(place))
        if more is not None:
            dx = more if dx is None else dx.add_(more)
    return dx, dA, dB
