"""Which code computes a call, and why. Decided only here, once a call, for both passes."""

from __future__ import annotations

import functools
import os
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes.backend import get_backend
from fastlora.routes.route import ASKED_FOR, Route, route_on

# TMA addresses memory in units of 16 bytes.
_TMA_ALIGNMENT: Final = 16


class Decision(NamedTuple):
    """The routes of one call.

    Attributes:
        forward: The route of the forward pass.
        backward: The route of the backward pass, which draws the same dropout mask.
    """

    forward: Route
    backward: Route


_PLAIN_CPU: Final = Route("torch", "a CPU runs the kernels only where the backend is set to triton")
# Made in advance: on this path a microsecond counts.
_ON_A_CPU: Final = {
    "auto": Decision(_PLAIN_CPU, _PLAIN_CPU),
    "torch": Decision(ASKED_FOR, ASKED_FOR),
}


def decide(
    o: Operands, needs: Needs = EVERYTHING, setting: str | None = None, *, alone: bool = True
) -> Decision:
    """The code that computes a call.

    Args:
        o: The operands.
        needs: The gradients that the backward pass will compute.
        setting: "auto", "triton" or "torch"; None means the current backend setting.
        alone: Whether these two passes are all there is. If not, as beside the columns of DoRA or the other
            members of a group, what saves launches or passes over y is kept: only a choice takes it away.

    Raises:
        ValueError: If the setting is none of these.
        BackendError: If the setting is "triton" and the kernels cannot take the operands.
    """
    setting = get_backend() if setting is None else setting
    x, base = o.x, o.base
    if x.is_cpu and (decision := _ON_A_CPU.get(setting)) is not None:
        return decision
    aligned = is_aligned(x) and all(map(is_aligned, base.tensors))
    return decide_for(
        problem_of(o), x.device, needs, setting, dropout=o.dropout, aligned=aligned, alone=alone
    )


def decide_for(
    problem: Problem,
    device: torch.device,
    needs: Needs = EVERYTHING,
    setting: str | None = None,
    *,
    dropout: float = 0.0,
    aligned: bool = True,
    alone: bool = True,
    gpu: str | None = None,
    architecture: str = "",
) -> Decision:
    """As `decide`, from a description of the call instead of tensors.

    Args:
        problem: Shape and dtypes.
        device: Device of x.
        needs: The gradients that the backward pass will compute.
        setting: As in `decide`.
        dropout: As in `Operands`.
        aligned: Whether TMA can address x and W.
        alone: As in `decide`.
        gpu: Name of a GPU that can run the kernels, to decide for it instead of for `device`.
        architecture: Name of that GPU's tile table.

    Raises:
        ValueError: As in `decide`.
        BackendError: As in `decide`.
    """
    setting = get_backend() if setting is None else setting
    interpret = os.environ.get("TRITON_INTERPRET") == "1"
    exact = torch.get_float32_matmul_precision() == "highest"
    dropped = dropout > 0
    return _decided(
        problem, device, needs, setting, dropped, aligned, alone, gpu, architecture, interpret, exact
    )


# Large, because sequence lengths vary from batch to batch.
@functools.lru_cache(maxsize=8192)
def _decided(
    problem: Problem,
    device: torch.device,
    needs: Needs,
    setting: str,
    dropped: bool,
    aligned: bool,
    alone: bool,
    gpu: str | None,
    architecture: str,
    interpret: bool,
    exact: bool,
) -> Decision:
    route = route_on(device, problem.dtype, setting, gpu=gpu, architecture=architecture)
    if not route.is_fused:
        return Decision(route, route)
    if 0 in problem[:4]:
        empty = Route("torch", "an operand is empty")
        return Decision(empty, empty)
    if setting == "triton":
        return Decision(route, route)
    passes = ("forward", "backward") if needs == EVERYTHING else ("forward",)
    measured = {
        direction: _measured(direction, problem, device, dropped, aligned, alone, gpu, architecture, route)
        for direction in passes
    }
    return Decision(measured["forward"], measured.get("backward", route))


def _measured(
    direction: str,
    problem: Problem,
    device: torch.device,
    dropped: bool,
    aligned: bool,
    alone: bool,
    gpu: str | None,
    architecture: str,
    route: Route,
) -> Route:
    """The fused route, or another that was measured to be faster: on this machine, or for the tile table."""
    from fastlora.routes.architecture import architecture_of, multiprocessors
    from fastlora.routes.choices import WORDS, chosen, why
    from fastlora.routes.persistent import is_default, refusal
    from fastlora.routes.plan import vendor_won

    architecture = architecture or architecture_of(device)
    if gpu is None:
        choice, base = chosen(direction, architecture, problem, dropout=dropped, aligned=aligned)
        if choice is not None and choice.code == "persistent":
            refused = refusal(architecture, problem, dropout=dropped, aligned=aligned)
            if refused is None:
                return Route(choice.code, why(choice, base))
            return Route(route.name, f"{route.why}; {WORDS[choice.code]} were chosen, but {refused}")
        if choice is not None:
            name = "vendor" if choice.code == "vendor" else route.name
            return Route(name, why(choice, base), unpacks_first=base != "plain" and choice.code != "packed")
    if not dropped and (won := vendor_won(direction, architecture, problem, aligned=aligned)):
        return Route("vendor", f"the vendor's matrix product was measured to be faster for {won!r} shapes")
    count = None if gpu else multiprocessors(device)
    if alone and is_default(direction, architecture, problem, count, dropout=dropped, aligned=aligned):
        return Route("persistent", "the persistent kernels were measured to be the fastest for so many tiles")
    return route


def problem_of(o: Operands) -> Problem:
    """Shape and dtypes of a call."""
    base = o.base
    stored = base.format if base.is_packed else base.unpacked_from
    return Problem(o.x.shape[0], base.K, base.N, o.A.shape[0], base.dtype, o.A.dtype, stored)


def is_aligned(matrix: Tensor) -> bool:
    """Whether TMA can address a [rows, columns] matrix: contiguous rows, each aligned to 16 bytes."""
    stride, inner = matrix.stride()
    row_bytes = stride * matrix.element_size()
    return (
        inner == 1
        and row_bytes > 0
        and row_bytes % _TMA_ALIGNMENT == 0
        and matrix.data_ptr() % _TMA_ALIGNMENT == 0
    )


def reload_tables() -> None:
    """Have the tile tables read again, after FASTLORA_TABLES or its files have changed."""
    from fastlora.routes.plan import forget_plans

    forget_plans()
    _decided.cache_clear()
