"""The differentiable formula for projections that share x: one pass each way for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fastlora.autograd import grouped_operators, operators
from fastlora.formula.grouped import Grouped, GroupNeeds, Member, Projection, bundle, with_seeds
from fastlora.formula.operands import BaseWeight, as_rows, autocasts
from fastlora.routes.backend import backend_of_mask, get_backend

_unsafe_view = torch.ops.aten._unsafe_view.default


class GroupedLoRAFunction(torch.autograd.Function):
    """y_i = x W_iᵀ + s_i (x_d A_iᵀ) B_iᵀ + b_i for every member; saves x once, p, W, A, B and the seeds.

    Its backward pass runs once, when the gradients of all y_i that were used are there.

    Outside of compiled code the last result is x again, in x's memory, and this is saved: the graph then does
    not keep the tensor x itself alive, and whoever keeps the y_i can see that everyone else let go of x. The
    derivative of the backward pass reaches x through this result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, o: Grouped, setting: str, *factors: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] -> each y [..., N_i]; `factors` holds the A and B of `o` in turn, for autograd."""
        again = () if torch.compiler.is_compiling() else (x.detach(),)
        ys, p, decided = grouped_operators.forward(o, setting)
        weights = [member.base.tensors[0] for member in o.members]
        ctx.save_for_backward(*(again or (x,)), p, o.seeds, *weights, *factors)
        scalars = [(m.base.format, *m.base[2:], m.s, m.dropout) for m in o.members]
        ctx.rest = (o.ranks, scalars, setting, decided)
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
        x, p, seeds, *tensors = ctx.saved_tensors
        ranks, scalars, setting, decided = ctx.rest
        n = len(ranks)
        dys, again = gradients[:n], gradients[n:]
        factors = _by_member(ranks, tensors[n:])
        members = tuple(
            Member(BaseWeight(format, (W,), N, K, dtype), None, A, B, s, dropout, r)
            for (format, N, K, dtype, s, dropout), r, W, (A, B) in zip(
                scalars, ranks, tensors[:n], factors, strict=True
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
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dx, dAs, dBs = _differentiable(o, rows, p, needs, setting)
        else:
            dx, dAs, dBs = grouped_operators.backward(o, rows, p, needs, setting, decided)
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
        projections: Two or more, over the same K; those with an update in one dtype of A and B.

    Returns:
        Each y [..., N_i] in x's dtype.

    Raises:
        TypeError: If dtypes do not fit.
        ValueError: If shapes or devices do not fit.

    Source: arXiv 2106.09685, section 4.1, equation 3.
    """
    if torch._C._is_any_autocast_enabled() and autocasts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        cast_to = [
            one._replace(W=one.W.to(dtype), b=None if one.b is None else one.b.to(dtype))
            for one in projections
        ]
        with torch.autocast(x.device.type, enabled=False):
            return grouped_lora_linear(x.to(dtype), cast_to)
    o = with_seeds(bundle(x, projections))
    setting = get_backend() if o.seeds is None else backend_of_mask()
    factors = [factor for one in o.members if one.A is not None for factor in (one.A, one.B)]
    ys = GroupedLoRAFunction.apply(x, o, setting, *factors)  # type: ignore[no-untyped-call]
    return cast("tuple[Tensor, ...]", ys[: len(projections)])


def _by_member(ranks: Sequence[int], flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs for A and B of each member; (None, None) where it has no update."""
    pairs = iter(zip(flat[::2], flat[1::2], strict=True))
    return [next(pairs) if r else (None, None) for r in ranks]


def _differentiable(
    o: Grouped, dys: Sequence[Tensor | None], p: Tensor, needs: GroupNeeds, setting: str
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """The gradients as functions of x, A, B and dy, for derivatives of them: member by member."""
    dx = None
    dAs: list[Tensor | None] = []
    dBs: list[Tensor | None] = []
    for place, (alone, p_i, dy) in enumerate(zip(o.alone(), p.split(o.ranks, 1), dys, strict=True)):
        more = dA = dB = None
        if dy is not None and alone is not None:
            p_i = p_i.contiguous()
            more, dA, dB = operators.backward(alone, dy, p_i, needs.of(place), setting, None)
        elif dy is not None and needs.dx:
            more = dy @ o.members[place].base.tensors[0]
        if more is not None:
            dx = more if dx is None else dx + more
        dAs.append(dA)
        dBs.append(dB)
    return dx, dAs, dBs
