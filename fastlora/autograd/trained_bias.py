"""The gradient of a b that is trained: the sum of dy over all rows, whichever code computes y."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_unsafe_view = torch.ops.aten._unsafe_view.default


def frozen(b: Tensor | None) -> Tensor | None:
    """b as a pass takes it, which gives it no gradient."""
    return b.detach() if b is not None and b.requires_grad else b


def with_gradient_of(b: Tensor | None, y: Tensor) -> Tensor:
    """y, which b is in already; where b is trained, its gradient is the sum of dy over the rows.

    Nothing is computed or saved in the forward pass.

    Args:
        b: [N] in any floating dtype, in which the sum is taken, or None.
        y: [..., N].
    """
    if b is None or not b.requires_grad or not torch.is_grad_enabled():
        return y
    return cast(Tensor, _TrainedBias.apply(y, b))  # type: ignore[no-untyped-call]


class _TrainedBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, b: Tensor) -> Tensor:
        """y itself; no view of it, which could not be changed in place."""
        ctx.dtype = b.dtype
        return cast(Tensor, _unsafe_view(y, y.shape))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """dy [..., N] -> itself, and db [N]."""
        db = None
        if ctx.needs_input_grad[1]:
            db = dy.sum(tuple(range(dy.dim() - 1)), dtype=ctx.dtype) if dy.dim() > 1 else dy.to(ctx.dtype)
        return dy if ctx.needs_input_grad[0] else None, db
