"""Which code computes a call whose rows choose their operands, and why: the one decision for both passes."""

from __future__ import annotations

from typing import Final

from fastlora.formula.cost import Problem
from fastlora.routes.decide import Route, decide_runs
from fastlora.segments import grouped
from fastlora.segments.operands import RunOperands

GROUPED: Final = "grouped"
BY_RUNS: Final = "runs"


def decide(o: RunOperands) -> Route:
    """The code of a call: "triton", "interpreter" (the same kernels on a CPU), "grouped" or "runs".

    Raises:
        BackendError: If the setting is "triton" and the kernels cannot take the operands.
    """
    _, N, K = o.W.shape
    has_update = o.A is not None and o.B is not None
    r, adapter = (o.A.shape[1], o.A.dtype) if has_update and o.A is not None else (0, o.x.dtype)
    problem = Problem(o.plan.order.shape[0], K, N, r, o.x.dtype, adapter)
    route = decide_runs(problem, o.x.device, o.setting)
    if route.is_fused:
        return route
    return named(route.why, grouped=grouped.takes(o))


def named(why: str, *, grouped: bool) -> Route:
    """The route by torch's products: grouped ones, or one for each run."""
    how = "by torch's grouped products" if grouped else "by torch's products, run by run"
    return Route(GROUPED if grouped else BY_RUNS, f"{how}, as {why}")
