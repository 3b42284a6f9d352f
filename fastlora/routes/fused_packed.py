"""Host side of the kernels over a packed W: unpack it, or multiply by it as it is where rows are few."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight, Operands
from fastlora.routes.architecture import architecture_of, multiprocessors
from fastlora.routes.decide import problem_of
from fastlora.routes.few_rows import as_operand
from fastlora.routes.fused import forward_arguments
from fastlora.routes.launch import on_device, readable
from fastlora.routes.plan import Plan, few_rows_plan
from fastlora_kernels.few_rows import few_rows_kernel


def unpack(base: BaseWeight, W: Tensor) -> None:
    """Fill W [N, K], contiguous, with the values of a packed base, in one launch."""
    with on_device(W):
        FORMATS[base.format].launch(base, W)


def few_rows(o: Operands, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """As `fused.forward`, over a packed W that is unpacked inside the product.

    Args:
        o: Operands that `few_rows.takes`.
        plan: A launch plan by `few_rows_plan`; None means that of x's device.
    """
    x = o.x
    plan = plan or few_rows_plan(
        architecture_of(x.device), problem_of(o), o.dropout, multiprocessors(x.device)
    )
    y = torch.empty(x.shape[0], o.base.N, device=x.device, dtype=x.dtype)
    p = torch.empty(x.shape[0], o.A.shape[0], device=x.device, dtype=torch.float32)
    with on_device(x):
        few_rows_kernel[(plan.num_tasks,)](
            x=readable(x), y=y, **(as_operand(o.base) or {}), **forward_arguments(o, plan, p), **plan.options
        )
    return y, p
