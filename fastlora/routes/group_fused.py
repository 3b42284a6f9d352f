"""Host side of the group's kernels: a pass of two or three projections that share x in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlora.formula.cost import Problem
from fastlora.formula.grouped import Grouped
from fastlora.routes.architecture import architecture_of, multiprocessors
from fastlora.routes.decide import is_aligned
from fastlora.routes.group_plan import GroupPlan, group_plan
from fastlora.routes.launch import on_device, readable, writable
from fastlora_kernels.group_backward import group_backward_kernel
from fastlora_kernels.group_forward import group_forward_kernel


def forward(o: Grouped, plan: GroupPlan | None = None) -> tuple[list[Tensor], list[Tensor | None]]:
    """y_i = x W_iᵀ + s_i p_i B_iᵀ + b_i and p_i = x A_iᵀ in one launch.

    Args:
        o: Operands of fp16, bf16 or fp32, any strides, not empty; two or three members, at least one with an
            update, without dropout.
        plan: A launch plan for these very shapes; None means the one from the tile table.

    Returns:
        Each y [M, N_i] in x's dtype, and each p [M, r_i] in fp32; None for a member without an update.
    """
    x, members = o.x, o.members
    weights = [member.base.tensors[0] for member in members]
    aligned = is_aligned(x) and all(map(is_aligned, weights))
    plan = plan or _plan("forward", o, aligned)
    tile, tma = plan.single.tile, plan.single.tma and aligned
    ys = [torch.empty(x.shape[0], one.base.N, device=x.device, dtype=x.dtype) for one in members]
    ps = [
        torch.empty(x.shape[0], one.r, device=x.device, dtype=torch.float32) if one.r else None
        for one in members
    ]
    block = (tile.block_m, plan.single.store_columns)
    with on_device(x):
        group_forward_kernel[(plan.num_tasks,)](
            x=readable(x, (tile.block_m, tile.block_k), tma),
            **_each("W", [readable(W, (tile.block_n, tile.block_k), tma) for W in weights]),
            b_ptrs=_three([None if one.b is None else one.b.contiguous() for one in members]),
            **_factors(o),
            **_each("y", [writable(y, block, plan.single.tma) for y in ys]),
            p_ptrs=_filled(ps),
            scratch_ptrs=(_scratch(x, plan, "p", _first(ps)), _scratch(x, plan, "y", None)),
            **_shared(o, plan),
            split_p=plan.split_k["p"],
            split_y=plan.split_k["y"],
        )
    return ys, ps


def backward(
    o: Grouped, dys: Sequence[Tensor], ps: Sequence[Tensor | None], plan: GroupPlan | None = None
) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
    """dx = Σ dy_i W_i + q_i A_i, dA_i = q_iᵀ x and dB_i = s_i dy_iᵀ p_i in one launch, q_i = s_i dy_i B_i.

    Args:
        o: The operands of `forward`.
        dys: Each [M, N_i] in x's dtype, any strides.
        ps: As `forward` returned them.
        plan: As in `forward`.

    Returns:
        dx [M, K] in x's dtype, and each dA [r_i, K] and dB [N_i, r_i] in A's dtype; None without an update.
    """
    x, members = o.x, o.members
    M, K = x.shape
    weights = [member.base.tensors[0] for member in members]
    aligned = all(map(is_aligned, (x, *weights, *dys)))
    plan = plan or _plan("backward", o, aligned)
    tile, tma = plan.single.tile, plan.single.tma and aligned
    adapter = problem_of(o)[0].adapter_dtype
    dx = torch.empty(M, K, device=x.device, dtype=x.dtype)
    q = torch.empty(M * sum(o.ranks), device=x.device, dtype=torch.float32)
    dA = torch.empty(sum(o.ranks), K, device=x.device, dtype=adapter)
    dBs = [
        torch.empty(one.base.N, one.r, device=x.device, dtype=adapter) if one.r else None for one in members
    ]
    with on_device(x):
        group_backward_kernel[(plan.num_tasks,)](
            **_each("dy", [readable(dy, (tile.block_m, tile.block_n), tma) for dy in dys]),
            x=readable(x, (tile.block_m, tile.block_k_dA), tma),
            **_each("W", [readable(W, (tile.block_n, tile.block_k), tma) for W in weights]),
            **_factors(o),
            p_ptrs=_filled([None if p is None else p.contiguous() for p in ps]),
            q_ptr=q,
            dx=writable(dx, (tile.block_m, plan.single.store_columns), plan.single.tma),
            dA_ptr=dA,
            dB_ptrs=_filled(dBs),
            scratch_ptrs=(
                _scratch(x, plan, "q", q),
                _scratch(x, plan, "dx", None),
                _scratch(x, plan, "gradients", q),
            ),
            **_shared(o, plan),
            split_q=plan.split_k["q"],
            split_dx=plan.split_k["dx"],
            split_gradients=plan.split_k["gradients"],
            BLOCK_K_DA=tile.block_k_dA,
        )
    # No views to autograd: each becomes a gradient of its own.
    dAs = torch.unsafe_split_with_sizes(dA, o.ranks)
    return dx, [one if one.shape[0] else None for one in dAs], dBs


def _factors(o: Grouped) -> dict[str, Any]:
    """A and B of each; one without an update has another's, which its rank of 0 keeps from being read."""
    given = [(one.A, one.B) for one in o.members if one.A is not None and one.B is not None]
    pairs = [given[0] if one.A is None or one.B is None else (one.A, one.B) for one in o.members]
    return _each("A", [readable(A) for A, _ in pairs]) | _each("B", [readable(B) for _, B in pairs])


def _shared(o: Grouped, plan: GroupPlan) -> dict[str, Any]:
    """The arguments that are the same in both directions."""
    tile = plan.single.tile
    return {
        "workspace_ptr": torch.zeros(plan.workspace, device=o.x.device, dtype=torch.int32),
        **_each("s", [one.s for one in o.members], 1.0),
        "M": o.x.shape[0],
        **_each("N", [one.base.N for one in o.members], 0),
        "K": o.x.shape[1],
        "r": max(o.ranks),
        **_each("r", o.ranks, 0),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "BLOCK_R": plan.block_r,
        "GROUP": tile.group,
        "PRECISION": plan.single.precision,
        **plan.single.options,
    }


def _plan(direction: str, o: Grouped, aligned: bool) -> GroupPlan:
    problem, columns = problem_of(o)
    device = o.x.device
    count = multiprocessors(device)
    return group_plan(direction, architecture_of(device), problem, columns, aligned, multiprocessors=count)


def problem_of(o: Grouped) -> tuple[Problem, tuple[int, ...]]:
    """Shape and dtypes of all together, and N of each."""
    columns = tuple(member.base.N for member in o.members)
    adapter = next(member.A.dtype for member in o.members if member.A is not None)
    M, K = o.x.shape
    return Problem(M, K, sum(columns), max(o.ranks), o.x.dtype, adapter), columns


def _each(name: str, values: list[Any], otherwise: Any = None) -> dict[str, Any]:
    """{name0: ..., name1: ..., name2: ...}; `otherwise` for a third that is not there."""
    return {f"{name}{place}": value for place, value in enumerate(_three(values, otherwise))}


def _three(values: list[Any], otherwise: Any = None) -> tuple[Any, ...]:
    return (*values, otherwise)[:3]


def _first(tensors: Sequence[Tensor | None]) -> Tensor:
    return next(one for one in tensors if one is not None)


def _filled(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Three of them; in place of one that is missing another, which is not touched."""
    return _three([_first(tensors) if one is None else one for one in tensors], _first(tensors))


def _scratch(x: Tensor, plan: GroupPlan, name: str, otherwise: Tensor | None) -> Tensor | None:
    size = plan.scratch[name]
    return torch.empty(size, device=x.device, dtype=torch.float32) if size else otherwise
