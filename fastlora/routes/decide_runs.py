"""Which code computes a call whose rows choose their operands, and why. One decision for both passes."""

from __future__ import annotations

from typing import Final

import torch

from fastlora.formula.cost import Problem
from fastlora.routes.backend import get_backend
from fastlora.routes.route import Route, route_on

# A run of rows has tiles of p and q of its own, of up to 128 rows: runs shorter than a quarter of that would
# cost more than they save, unless there are few.
_SHORT_RUN: Final = 32
_FEW_RUNS: Final = 64


def decide_runs(
    problem: Problem,
    device: torch.device,
    setting: str | None,
    *,
    runs: int = 0,
    gpu: str | None = None,
    architecture: str = "",
) -> Route:
    """The code, for both passes, of a call whose rows choose their operands.

    Args:
        problem: Shape and dtypes; M is all rows, r the largest rank, 0 where no update applies.
        device: Device of x.
        setting: As in `decide`.
        runs: The number of runs that rows are in as they come; 0 where they are sorted.
        gpu: As in `decide_for`.
        architecture: As in `decide_for`.

    Raises:
        ValueError: As in `decide`.
        BackendError: As in `decide`.
    """
    setting = get_backend() if setting is None else setting
    route = route_on(device, problem.dtype, setting, gpu=gpu, architecture=architecture)
    if route.is_fused and setting != "triton" and runs > max(_FEW_RUNS, problem.M // _SHORT_RUN):
        return Route("torch", f"{problem.M} rows in {runs} runs are too short for a tile of p and q each")
    if route.is_fused and 0 in problem[:4]:
        return Route("torch", "no update applies" if problem.r == 0 else "an operand is empty")
    return route
