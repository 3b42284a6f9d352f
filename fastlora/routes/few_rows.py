"""Few rows over a packed W, as in decoding: one launch, in which W is unpacked as the product's operand."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import Needs, Operands
from fastlora.routes.decide import Decision, decide_for, is_aligned, problem_of
from fastlora.routes.plan import Plan, architecture_of, plan_for

# Those whose unpacked tile is an operand of the matrix units as it is.
_DTYPES: Final = (torch.float16, torch.bfloat16)


def decision_of(o: Operands, needs: Needs, setting: str) -> Decision | None:
    """The decision of a call that this kernel takes; None if W is to be unpacked beforehand."""
    if o.base.dtype not in _DTYPES or (o.x.is_cpu and setting != "triton"):
        return None
    decision = decide_for(
        problem_of(o), o.x.device, needs, setting, dropout=o.dropout, aligned=is_aligned(o.x)
    )
    if not decision.forward.is_fused or _packed_tile(o) is None:
        return None
    return decision


def _packed_tile(o: Operands) -> dict[str, Any] | None:
    from fastlora_kernels.few_rows import MOST_ROWS, TILE

    if len(o.x) > MOST_ROWS:
        return None
    return FORMATS[o.base.format].as_operand(o.base, TILE.block_k)


def forward(o: Operands, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b and p = x_d Aᵀ in one launch, over a packed W.

    Args:
        o: Operands for which `decision_of` is not None.
        plan: A launch plan by `plan_on`; None means that of x's device.

    Returns:
        y [M, N] in x's dtype and p [M, r] in fp32.
    """
    from fastlora.routes import fused
    from fastlora_kernels.few_rows import TILE, few_rows_kernel

    x, b, A, B, s, seed = o.x, o.b, o.A, o.B, o.s, o.seed
    M, K, N, r = x.shape[0], o.base.K, o.base.N, A.shape[0]
    threshold, kept_scale = dropout_constants(o.dropout)
    plan = plan or plan_on(architecture_of(x.device), o)
    y = torch.empty(M, N, device=x.device, dtype=x.dtype)
    p = torch.empty(M, r, device=x.device, dtype=torch.float32)
    with fused._on_device(x):
        few_rows_kernel[(plan.num_tasks,)](
            x=fused._read(x),
            b_ptr=None if b is None else b.contiguous(),
            A=fused._read(A),
            B=fused._read(B),
            y=y,
            p_ptr=p,
            scratch_ptrs=(fused._scratch(plan, x, "p", otherwise=p), fused._scratch(plan, x, "y")),
            workspace_ptr=torch.zeros(plan.workspace, device=x.device, dtype=torch.int32),
            seed_ptr=seed if threshold else None,
            threshold=threshold,
            kept_scale=kept_scale,
            s=s,
            M=M,
            N=N,
            K=K,
            r=r,
            split_p=plan.split_k["p"],
            split_y=plan.split_k["y"],
            BLOCK_M=TILE.block_m,
            BLOCK_N=TILE.block_n,
            BLOCK_K=TILE.block_k,
            BLOCK_R=plan.block_r,
            PRECISION=plan.precision,
            **(_packed_tile(o) or {}),
            **plan.options,
        )
    return y, p


def plan_on(architecture: str, o: Operands) -> Plan:
    """The plan of a call on an architecture of the tile tables."""
    from fastlora_kernels.few_rows import TILE

    plan = plan_for("forward", architecture, problem_of(o), tile=TILE, dropout=o.dropout, aligned=False)
    return plan._replace(options={**plan.options, "enable_fp_fusion": False})
