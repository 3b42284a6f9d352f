"""The differentiable formula for rows that choose their operands: gradients for x, A, B and the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlora.routes.backend import backend_of_mask, get_backend
from fastlora.segments import operators
from fastlora.segments.operands import RunNeeds, RunOperands
from fastlora.segments.plan import Plan


class RunsFunction(torch.autograd.Function):
    """y = w (x W_eᵀ + s (x_d A_eᵀ) B_eᵀ + b_e); saves x, p and the plan, and of y nothing."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor | None, B: Tensor | None, weights: Tensor | None, o: RunOperands
    ) -> Tensor:
        """`o` holds the same x, A, B and weights, which autograd must see apart."""
        y, p = operators.runs_forward(*operators.flat(o))
        # All tensors are saved here, and none on ctx, so that saved-tensor hooks and checkpointing see them.
        ctx.save_for_backward(x, o.W, o.b, A, B, p, o.plan.offsets, o.plan.order, weights, o.seed)
        ctx.rest = (o.s, o.plan.copies, o.gathers, o.dropout, o.setting)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of forward's arguments; None if not needed."""
        x, W, b, A, B, p, offsets, order, weights, seed = ctx.saved_tensors
        s, copies, gathers, dropout, setting = ctx.rest
        plan = Plan(offsets, order, copies)
        o = RunOperands(x, W, b, A, B, s, plan, gathers, weights, dropout, seed, setting)
        needs = RunNeeds(*ctx.needs_input_grad[:4])
        with torch.autocast(x.device.type, enabled=False):
            found = operators.runs_backward(dy, p, *needs, *operators.flat(o))
        return (*(one if needed else None for one, needed in zip(found, needs, strict=True)), None)


def linear_by_runs(o: RunOperands) -> Tensor:
    """y of the operands, differentiable once in x, A, B and the weights; W and b are frozen.

    The backend setting in force decides the code of both passes, whatever `o.setting` is.

    Returns:
        [S, N] sorted by run; [T, N] with weights.

    Raises:
        TypeError: If x, W and b, or A and B, differ in dtype, or one is spread over processes.
        ValueError: If shapes do not fit together.
    """
    _check(o)
    o = o._replace(setting=backend_of_mask() if o.dropout > 0 else get_backend())
    y: Tensor = RunsFunction.apply(o.x, o.A, o.B, o.weights, o)  # type: ignore[no-untyped-call]
    return y


def _check(o: RunOperands) -> None:
    x, W, b, A, B = o[:5]
    E, N, K = W.shape
    if x.shape[-1] != K:
        raise ValueError(f"x must have shape [..., K={K}]; got {list(x.shape)}")
    if x.dtype != W.dtype or (b is not None and b.dtype != W.dtype):
        raise TypeError(
            f"x and b must have W's dtype {W.dtype}; got {x.dtype}, {None if b is None else b.dtype}"
        )
    if b is not None and b.shape != (E, N):
        raise ValueError(f"b must have shape [E={E}, N={N}]; got {list(b.shape)}")
    if A is None or B is None:
        return
    r = A.shape[1]
    if A.shape != (E, r, K) or B.shape != (E, N, r):
        raise ValueError(
            f"A and B must have shapes [E={E}, r, K={K}] and [E={E}, N={N}, r]; got {list(A.shape)} and "
            f"{list(B.shape)}"
        )
    if A.dtype != B.dtype:
        raise TypeError(f"B must have A's dtype {A.dtype}; got {B.dtype}")
