"""Which code computes a call whose rows choose their operands, and why: the one decision for both passes."""

from __future__ import annotations

from typing import Final

import torch

from fastlora.formula.cost import Problem
from fastlora.routes.decide_runs import decide_runs
from fastlora.routes.route import Route
from fastlora.segments import grouped
from fastlora.segments.operands import RunOperands

GROUPED: Final = "grouped"
BY_RUNS: Final = "runs"


def decide_for(
    problem: Problem,
    device: torch.device,
    setting: str | None = None,
    *,
    gpu: str | None = None,
    architecture: str = "",
) -> Route:
    """As `decide`, from a description of the call, whose W is aligned; the arguments are `decide_runs`'s."""
    route = decide_runs(problem, device, setting, gpu=gpu, architecture=architecture)
    if route.is_fused:
        return route
    on_gpu = gpu is not None or device.type == "cuda"
    fit = grouped.takes_sizes(problem.dtype, problem.N, problem.K, problem.r)
    return _by_torch(route.why, grouped=on_gpu and fit)


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
    return _by_torch(route.why, grouped=grouped.takes(o))


def _by_torch(why: str, *, grouped: bool) -> Route:
    how = "torch's grouped products" if grouped else "torch's products, run by run"
    return Route(GROUPED if grouped else BY_RUNS, f"{how}: {why}")
