"""The torch operators `torch.ops.fastlora.lora_group_forward` and `lora_group_backward`.

A compiler sees each pass of projections that share x as one of these. They decide and are called as the pair
of a single layer is (see `operators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastlora.autograd.calls import needs_operator
from fastlora.formula.grouped import Grouped, GroupNeeds, Member
from fastlora.formula.operands import accumulation_dtype, plain
from fastlora.operator_library import make_operator, without_autocast
from fastlora.routes import group_routes
from fastlora.routes.group_routes import GroupRoute

Optionals = list[Tensor | None]


def forward(o: Grouped, setting: str) -> tuple[list[Tensor], Optionals, GroupRoute | None]:
    """Each y [M, N_i] and p [M, r_i], and the route for the backward pass; None if that must decide.

    Args:
        o: The operands.
        setting: "auto", "triton" or "torch".
    """
    if needs_operator(o.x):
        found = lora_group_forward(o.x, *_flat(o), setting)
        n = len(o.members)
        given = iter(found[n:])
        return found[:n], [next(given) if r else None for r in o.ranks], None
    route = group_routes.decided(o, setting)
    ys, ps = group_routes.forward(o, route)
    return ys, ps, route


def backward(
    o: Grouped,
    dys: Sequence[Tensor | None],
    ps: Sequence[Tensor | None],
    needs: GroupNeeds,
    setting: str,
    route: GroupRoute | None,
) -> tuple[Tensor | None, Optionals, Optionals]:
    """dx [M, K], and dA [r_i, K] and dB [N_i, r_i] of each member; None if not needed.

    Args:
        o: The operands of `forward`.
        dys: [M, N_i] in x's dtype, or None.
        ps: As `forward` returned them.
        needs: Which gradients to compute.
        setting: The setting of `forward`.
        route: As `forward` returned it.
    """
    if route is not None and not needs_operator(o.x):
        return group_routes.backward(o, dys, ps, needs, route)
    given = [p for p in ps if p is not None]
    found = lora_group_backward(
        list(dys), given, o.x, *_flat(o), needs.dx, list(needs.dA), list(needs.dB), setting
    )
    n = len(o.members)
    dA = [one if need else None for one, need in zip(found[1 : n + 1], needs.dA, strict=True)]
    dB = [one if need else None for one, need in zip(found[n + 1 :], needs.dB, strict=True)]
    return found[0] if needs.dx else None, dA, dB


def _flat(o: Grouped) -> tuple[Any, ...]:
    members = o.members
    return (
        [member.base.tensors[0] for member in members],
        [member.b for member in members],
        [member.A for member in members],
        [member.B for member in members],
        [member.s for member in members],
        [member.dropout for member in members],
        o.seeds,
    )


def _bundled(
    x: Tensor,
    W: list[Tensor],
    b: Optionals,
    A: Optionals,
    B: Optionals,
    s: list[float],
    dropout: list[float],
    seeds: Tensor | None,
) -> Grouped:
    ranks = [0 if one is None else one.shape[0] for one in A]
    members = map(Member, map(plain, W), b, A, B, s, dropout, ranks)
    return Grouped(x, tuple(members), seeds)


def _forward(x: Tensor, *rest: Any) -> list[Tensor]:
    *members, backend = rest
    o = _bundled(x, *members)
    ys, ps = group_routes.forward(o, group_routes.decided(o, backend))
    # An operator's results must share no memory.
    return [*ys, *(p.clone() for p in ps if p is not None)]


def _forward_fake(x: Tensor, W: list[Tensor], b: Optionals, A: Optionals, *_: Any) -> list[Tensor]:
    M, dtype = x.shape[0], accumulation_dtype(x.dtype)
    return [
        *(x.new_empty(M, one.shape[0]) for one in W),
        *(x.new_empty(M, one.shape[0], dtype=dtype) for one in A if one is not None),
    ]


def _backward(dy: Optionals, p: list[Tensor], x: Tensor, *rest: Any) -> list[Tensor]:
    """dx, every dA and every dB; one that is not needed is an empty tensor of shape [0]."""
    *members, need_dx, need_dA, need_dB, backend = rest
    o, needs = _bundled(x, *members), GroupNeeds(need_dx, tuple(need_dA), tuple(need_dB))
    given = iter(p)
    ps = [next(given) if r else None for r in o.ranks]
    dx, dA, dB = group_routes.backward(o, dy, ps, needs, group_routes.decided(o, backend))
    dA = [None if one is None else one.clone() for one in dA]  # an operator's results must share no memory
    return [x.new_empty(0) if one is None else one for one in (dx, *dA, *dB)]


def _backward_fake(
    dy: Optionals,
    p: list[Tensor],
    x: Tensor,
    W: list[Tensor],
    b: Optionals,
    A: Optionals,
    B: Optionals,
    s: list[float],
    dropout: list[float],
    seeds: Tensor | None,
    need_dx: bool,
    need_dA: list[bool],
    need_dB: list[bool],
    backend: str | None,
) -> list[Tensor]:
    used = [one is not None for one in dy]
    needs = (need and here for of in (need_dA, need_dB) for need, here in zip(of, used, strict=True))
    wanted = zip((x, *A, *B), (need_dx and any(used), *needs), strict=True)
    return [x.new_empty(0) if one is None or not need else one.new_empty(one.shape) for one, need in wanted]


_MEMBERS = "Tensor[] W, Tensor?[] b, Tensor?[] A, Tensor?[] B, float[] s, float[] dropout, Tensor? seeds"

lora_group_forward = make_operator(
    f"lora_group_forward(Tensor x, {_MEMBERS}, str? backend) -> Tensor[]",
    _forward,
    _forward_fake,
    under_autocast=without_autocast,
)
lora_group_backward = make_operator(
    f"lora_group_backward(Tensor?[] dy, Tensor[] p, Tensor x, {_MEMBERS}, "
    "bool need_dx, bool[] need_dA, bool[] need_dB, str? backend) -> Tensor[]",
    _backward,
    _backward_fake,
    under_autocast=without_autocast,
)
