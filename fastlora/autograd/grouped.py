"""The differentiable formula for projections that share x: one pass each way for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from fastlora.autograd import calls, grouped_operators
from fastlora.autograd.quantized import converted
from fastlora.formula.grouped import Grouped, GroupNeeds, Member, Projection, bundle, with_seeds
from fastlora.formula.operands import BaseWeight, as_rows, autocasts, plain
from fastlora.routes.backend import backend_of_mask, get_backend

_unsafe_view = torch.ops.aten._unsafe_view.default


class GroupedLoRAFunction(torch.autograd.Function):
    """y_i = x W_iᵀ + s_i (x_d A_iᵀ) B_iᵀ + b_i for every member; saves x once, p, W, A, B and the seeds.

    Its backward pass runs once, when the gradients of all y_i that were used are there. Each pass that reads
    packed W unpacks all of them, and saves them packed.

    Outside of compiled code the last result is x again, in x's memory, and this is saved: the graph then does
    not keep the tensor x itself alive, and whoever keeps the y_i can see that everyone else let go of x. The
    derivative of the backward pass reaches x through this result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, o: Grouped, setting: str, *factors: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] -> each y [..., N_i]; `factors` holds the A and B of `o` in turn, for autograd."""
        again = () if torch.compiler.is_compiling() else (x.detach(),)
        ys, ps, route = grouped_operators.forward(_unpacked(o, o.x), setting)
        stored = [tensor for member in o.members for tensor in member.base.tensors]
        ctx.save_for_backward(*(again or (x,)), o.seeds, *ps, *factors, *stored)
        # Plain values: a bundle of them would keep its tensors.
        scalars = [(len(m.base.tensors), m.base.format, m.base[2:], m.s, m.dropout) for m in o.members]
        ctx.rest = (o.ranks, scalars, setting, route)
        ctx.set_materialize_grads(False)
        if x.dim() != 2:
            ys = [cast(Tensor, _unsafe_view(y, (*x.shape[:-1], y.shape[1]))) for y in ys]
        if not ctx.needs_input_grad[0]:
            trained = _by_member(o.ranks, ctx.needs_input_grad[3:])
            frozen = (y for y, one in zip(ys, trained, strict=True) if not any(one))
            ctx.mark_non_differentiable(*again, *frozen)
        return *ys, *again

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Each dy [..., N_i] or None -> gradients in the order of forward's arguments; None if not needed."""
        x, seeds, *tensors = ctx.saved_tensors
        ranks, scalars, setting, route = ctx.rest
        ps, tensors = tensors[: len(ranks)], tensors[len(ranks) :]
        n, given = len(ranks), 2 * sum(r > 0 for r in ranks)
        dys, again = gradients[:n], gradients[n:]
        stored = iter(tensors[given:])
        members = tuple(
            Member(BaseWeight(format, tuple(islice(stored, count)), *sizes), None, A, B, s, dropout, r)
            for (count, format, sizes, s, dropout), r, (A, B) in zip(
                scalars, ranks, _by_member(ranks, tensors[:given]), strict=True
            )
        )
        o = Grouped(as_rows(x), members, seeds)
        wanted = _by_member(ranks, ctx.needs_input_grad[3:])
        used = [dy is not None for dy in dys]
        dA, dB = (
            tuple(bool(one[f]) and here for one, here in zip(wanted, used, strict=True)) for f in (0, 1)
        )
        needs = GroupNeeds(ctx.needs_input_grad[0], dA, dB)
        rows = [None if dy is None else as_rows(dy) for dy in dys]
        o = _unpacked(o, o.x, rows, reads=needs.dx or torch.is_grad_enabled())
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx, dAs, dBs = _differentiable(o, rows, ps, needs, setting)
        else:
            dx, dAs, dBs = grouped_operators.backward(o, rows, ps, needs, setting, route)
        of_factors = [
            one for r, pair in zip(ranks, zip(dAs, dBs, strict=True), strict=True) if r for one in pair
        ]
        if dx is not None:
            dx = dx.view(x.shape)
        for more in again:  # of x itself, in a derivative of this pass
            if more is not None and needs.dx:
                dx = more if dx is None else dx + more
        return dx, None, None, *of_factors


def grouped_lora_linear(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """y_i = x W_iᵀ + s_i (x_d A_iᵀ) B_iᵀ + b_i of projections that share x, in one pass each way.

    It equals `lora_linear` of each of them; their dropout masks are independent. Differentiable in x and in
    each A and B. Under autocast, x, each W and b are converted to its dtype.

    Args:
        x: [..., K], plain: neither nested nor under torch.func's transforms.
        projections: Two or more, over the same K; those with an update in one dtype of A and B. All of their
            W are packed or none is; packed ones are unpacked to one dtype, in which all is computed, under
            autocast too.

    Returns:
        Each y [..., N_i] in x's dtype.

    Raises:
        TypeError: If dtypes do not fit.
        ValueError: If shapes or devices do not fit.

    Source: arXiv 2106.09685, section 4.1, equation 3.
    """
    dtypes = {one.W.dtype for one in projections if isinstance(one.W, BaseWeight)}
    if dtypes:
        return _over_packed(x, projections, dtypes)
    if torch._C._is_any_autocast_enabled() and autocasts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        cast_to = [
            one._replace(W=cast(Tensor, one.W).to(dtype), b=None if one.b is None else one.b.to(dtype))
            for one in projections
        ]
        with torch.autocast(x.device.type, enabled=False):
            return grouped_lora_linear(x.to(dtype), cast_to)
    return _applied(x, projections)


def _over_packed(
    x: Tensor, projections: Sequence[Projection], dtypes: Collection[torch.dtype]
) -> tuple[Tensor, ...]:
    found = []
    for one in projections:
        if not isinstance(one.W, BaseWeight) or len(dtypes) > 1:
            raise TypeError(f"every W must be packed, of one dtype, or none; got {sorted(map(str, dtypes))}")
        rows, b = converted(x, one.W, one.b)
        found.append(one._replace(b=b))
    if not autocasts(x):
        return tuple(y.to(x.dtype) for y in _applied(rows, found))
    with torch.autocast(x.device.type, enabled=False):
        return tuple(y.to(x.dtype) for y in _applied(rows, found))


def _applied(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    o = with_seeds(bundle(x, projections))
    setting = get_backend() if o.seeds is None else backend_of_mask()
    factors = [factor for one in o.members if one.A is not None for factor in (one.A, one.B)]
    ys = GroupedLoRAFunction.apply(x, o, setting, *factors)  # type: ignore[no-untyped-call]
    return cast("tuple[Tensor, ...]", ys[: len(projections)])


def _unpacked(
    o: Grouped, after: Tensor, dys: Sequence[Tensor | None] | None = None, *, reads: bool = True
) -> Grouped:
    """The bundle with packed W unpacked, as far as a forward pass, or a backward pass of `dys`, reads it."""
    if not any(member.base.is_packed for member in o.members):
        return o
    members = []
    for place, member in enumerate(o.members):
        base = member.base
        dy = after if dys is None else dys[place]
        W = after.new_empty(base.N, base.K) if dy is None or not reads else calls.dequantized(base, dy)
        members.append(member._replace(base=plain(W, base.format)))
    return o._replace(members=tuple(members))


def _by_member(ranks: Sequence[int], flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs for A and B of each member; (None, None) where it has no update."""
    pairs = iter(zip(flat[::2], flat[1::2], strict=True))
    return [next(pairs) if r else (None, None) for r in ranks]


def _differentiable(
    o: Grouped,
    dys: Sequence[Tensor | None],
    ps: Sequence[Tensor | None],
    needs: GroupNeeds,
    setting: str,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """The gradients as functions of x, A, B and dy, for derivatives of them: member by member."""
    dx = None
    dAs: list[Tensor | None] = []
    dBs: list[Tensor | None] = []
    for place, (alone, p_i, dy) in enumerate(zip(o.alone(), ps, dys, strict=True)):
        more = dA = dB = None
        if dy is not None and alone is not None and p_i is not None:
            more, dA, dB = calls.backward(alone, dy, p_i.contiguous(), needs.of(place), setting, None)
        elif dy is not None and needs.dx:
            more = dy @ o.members[place].base.tensors[0]
        if more is not None:
            dx = more if dx is None else dx + more
        dAs.append(dA)
        dBs.append(dB)
    return dx, dAs, dBs
