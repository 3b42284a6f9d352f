"""By which code projections that share x are computed, and why: decided only here, once, for both passes.

together     torch's products, shared where that is faster (see grouped.py)
one launch   the group's kernels; where not every gradient is needed, the backward pass goes in turn
in turn      each member by its own route
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlora.formula.grouped import Grouped, GroupNeeds
from fastlora.formula.operands import EVERYTHING
from fastlora.routes import grouped
from fastlora.routes.decide import Decision, decide
from fastlora.routes.passes import passes_of

TOGETHER: Final = "together"
ONE_LAUNCH: Final = "one launch"
IN_TURN: Final = "in turn"

# The kernel has an argument for each; a fourth main loop would be code that hardly any model runs.
_MOST: Final = 3

Factors = list[Tensor | None]


class GroupRoute(NamedTuple):
    """The code that computes a group.

    Attributes:
        name: "together", "one launch" or "in turn".
        why: The reason, as a phrase to show.
        alone: The routes of each member by itself; None for one without an update.
    """

    name: str
    why: str
    alone: tuple[Decision | None, ...] = ()


_ON_A_CPU: Final = GroupRoute(TOGETHER, "torch's products")


def decided(o: Grouped, setting: str | None) -> GroupRoute:
    """Which code computes the members.

    Args:
        o: The operands.
        setting: "auto", "triton" or "torch"; None means the current backend setting.

    Raises:
        BackendError: As by `decide`.
    """
    if o.x.is_cpu and setting in ("auto", "torch"):
        return _ON_A_CPU
    beside = _decisions(o, setting, alone=False)
    trained = [one for one in beside if one is not None]
    if all(route.name == "torch" for one in trained for route in one):
        return _ON_A_CPU
    if (why := _why_in_turn(o, trained)) is not None:
        return GroupRoute(IN_TURN, why, _decisions(o, setting, alone=True))
    return GroupRoute(ONE_LAUNCH, "x is read once for all p, and one grid makes all y", beside)


def _decisions(o: Grouped, setting: str | None, *, alone: bool) -> tuple[Decision | None, ...]:
    return tuple(None if one is None else decide(one, EVERYTHING, setting, alone=alone) for one in o.alone())


def _why_in_turn(o: Grouped, trained: Sequence[Decision]) -> str | None:
    if len(o.members) > _MOST:
        return f"the group's kernel takes {_MOST} members at most"
    if o.seeds is not None:
        return "each member drops other entries of x, which the group's kernel reads once"
    if not all(one.forward.is_fused and one.backward.is_fused for one in trained):
        return "a member was measured to be faster by the vendor's matrix product or the persistent kernels"
    from fastlora.routes.group_plan import fits

    if not fits(o):
        return "the group's tiles for these sizes and dtypes do not fit into registers"
    return None


def forward(o: Grouped, route: GroupRoute) -> tuple[list[Tensor], Factors]:
    """y_i [M, N_i] in x's dtype, and p_i [M, r_i] in fp32 (fp64 for fp64); None without an update."""
    if route.name == TOGETHER:
        return grouped.forward(o)
    if route.name == ONE_LAUNCH:
        from fastlora.routes import group_fused

        return group_fused.forward(o)
    ys: list[Tensor] = []
    ps: Factors = []
    for member, alone, own in zip(o.members, o.alone(), route.alone, strict=True):
        if alone is None or own is None:
            y, p = F.linear(o.x, member.base.tensors[0], member.b), None
        else:
            y, p = passes_of(own.forward.name, o.x.is_cpu).forward(alone)
        ys.append(y)
        ps.append(p)
    return ys, ps


def backward(
    o: Grouped,
    dys: Sequence[Tensor | None],
    ps: Sequence[Tensor | None],
    needs: GroupNeeds,
    route: GroupRoute,
) -> tuple[Tensor | None, Factors, Factors]:
    """dx [M, K], and dA [r_i, K] and dB [N_i, r_i] of each member; None if not needed.

    Args:
        o: The operands of `forward`.
        dys: [M, N_i] in x's dtype; None where nothing used that y.
        ps: As `forward` returned them.
        needs: Which gradients to compute.
        route: That of `forward`.
    """
    if route.name == TOGETHER:
        return grouped.backward(o, dys, ps, needs)
    given = [dy for dy in dys if dy is not None]
    if route.name == ONE_LAUNCH and len(given) == len(dys) and _needs_all(o, needs):
        from fastlora.routes import group_fused

        return group_fused.backward(o, given, ps)
    dx = None
    dA: Factors = [None] * len(dys)
    dB: Factors = [None] * len(dys)
    for place, (alone, own, dy, p) in enumerate(zip(o.alone(), route.alone, dys, ps, strict=True)):
        if dy is None:
            continue
        if alone is None or own is None or p is None:
            more = torch.mm(dy, o.members[place].base.tensors[0]) if needs.dx else None
        else:
            code = passes_of(own.backward.name, o.x.is_cpu)
            more, dA[place], dB[place] = code.backward(alone, dy, p.contiguous(), needs.of(place))
        if more is not None:
            dx = more if dx is None else dx.add_(more)
    return dx, dA, dB


def _needs_all(o: Grouped, needs: GroupNeeds) -> bool:
    """Whether every gradient that there can be is needed, as the group's kernel computes all of them."""
    pairs = zip(o.members, needs.dA, needs.dB, strict=True)
    return needs.dx and all(dA and dB for one, dA, dB in pairs if one.A is not None)
