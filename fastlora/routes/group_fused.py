"""Host side of the group's kernel: two or three projections that share x in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlora.formula.cost import Problem
from fastlora.formula.grouped import Grouped
from fastlora.routes.decide import is_aligned
from fastlora.routes.fused import _on_device, _read, _written
from fastlora.routes.group_plan import GroupPlan, group_plan
from fastlora.routes.plan import architecture_of
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
    plan = plan or _plan(o, aligned)
    tile, tma = plan.single.tile, plan.single.tma and aligned
    ys = [torch.empty(x.shape[0], one.base.N, device=x.device, dtype=x.dtype) for one in members]
    ps = [
        torch.empty(x.shape[0], one.r, device=x.device, dtype=torch.float32) if one.r else None
        for one in members
    ]
    # What a member without an update has in their place; its rank of 0 keeps it from being touched.
    A, B, p = next((one.A, one.B, p) for one, p in zip(members, ps, strict=True) if p is not None)
    factors = [(A, B) if one.A is None else (one.A, one.B) for one in members]
    block = (tile.block_m, plan.single.store_columns)
    with _on_device(x):
        group_forward_kernel[(plan.num_tasks,)](
            x=_read(x, (tile.block_m, tile.block_k), tma),
            **_each("W", [_read(W, (tile.block_n, tile.block_k), tma) for W in weights]),
            b_ptrs=_three([None if one.b is None else one.b.contiguous() for one in members]),
            **_each("A", [_read(A) for A, _ in factors]),
            **_each("B", [_read(B) for _, B in factors]),
            **_each("y", [_written(y, block, plan.single.tma) for y in ys]),
            p_ptrs=_three([p if one is None else one for one in ps]),
            scratch_ptrs=(_scratch(x, plan.scratch_p, p), _scratch(x, plan.scratch_y, None)),
            workspace_ptr=torch.zeros(plan.workspace, device=x.device, dtype=torch.int32),
            **_each("s", [one.s for one in members], 1.0),
            M=x.shape[0],
            **_each("N", [one.base.N for one in members], 0),
            K=x.shape[1],
            r=max(o.ranks),
            **_each("r", o.ranks, 0),
            split_p=plan.split_p,
            split_y=plan.split_y,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            BLOCK_R=plan.block_r,
            GROUP=tile.group,
            PRECISION=plan.single.precision,
            **plan.single.options,
        )
    return ys, ps


def _plan(o: Grouped, aligned: bool) -> GroupPlan:
    problem, columns = problem_of(o)
    precision = torch.get_float32_matmul_precision()
    return group_plan(architecture_of(o.x.device), problem, columns, aligned, precision)


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


def _scratch(x: Tensor, size: int, otherwise: Tensor | None) -> Tensor | None:
    return torch.empty(size, device=x.device, dtype=torch.float32) if size else otherwise
