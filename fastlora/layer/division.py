"""Tensor parallel: the formula of one layer divided among processes.

Nothing as large as an activation is sent beyond what a plain layer sends.

Columns: each process has some rows of W, b and B and all of A, and computes the matching columns of y.

    y_k = x W_kᵀ + s (x Aᵀ) B_kᵀ + b_k        nothing is sent
    dA  = Σ_k q_kᵀ x                          [r, K] is summed
    dx  = Σ_k (dy_k W_k + q_k A)              [M, K] is summed, as a plain layer's

Rows: each process has some columns of x, W and A and all of B.

    y   = Σ_k (x_k W_kᵀ + s (x_k A_kᵀ) B_kᵀ) + b    [M, N] is summed, as a plain layer's
    dB  = Σ_k s dyᵀ p_k                             [N, r] is summed

Each process has a partial sum p_k. The product with B is linear, so each process multiplies its p_k by B, and
the sum over processes that y needs anyway covers this term too. p itself is not summed, and the forward pass
stays one launch. Only one process adds b.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed


class Operands(NamedTuple):
    """This process's local tensors."""

    W: Tensor
    b: Tensor | None
    A: Tensor | None
    B: Tensor | None


class Split(Enum):
    """How a layer is divided: by columns of y, or by rows of Wᵀ (columns of x)."""

    COLUMNS = "columns"
    ROWS = "rows"

    def local(self, W: Any, b: Any, A: Any, B: Any) -> Operands:
        """This process's shards of a layer's DTensors, differentiable in A and B; None stays None.

        Args:
            W: [N, K], sharded over the processes of its one-dimensional mesh.
            b: [N] or None; sharded under COLUMNS, else replicated.
            A: [r, K]; sharded under ROWS, else replicated.
            B: [N, r]; sharded under COLUMNS, else replicated.

        Raises:
            ValueError: If b is trained, of which the processes would have different gradients.
        """
        if b is not None and b.requires_grad:
            raise ValueError("bias must be frozen in a layer that is divided among processes")
        mesh = W.device_mesh
        group = mesh.get_group()
        if self is Split.COLUMNS:
            own_b = None if b is None else b.to_local()
            return Operands(W.to_local(), own_b, _summed_gradient(A, group), _own(B))
        own_b = b.to_local() if b is not None and mesh.get_local_rank() == 0 else None
        return Operands(W.to_local(), own_b, _own(A), _summed_gradient(B, group))


def _own(factor: Any) -> Tensor | None:
    """This process's shard of A or B."""
    return None if factor is None else cast(Tensor, factor.to_local())


def _summed_gradient(factor: Any, group: distributed.ProcessGroup) -> Tensor | None:
    """A replicated A or B, whose gradient is the sum over the processes."""
    if factor is None:
        return None
    return cast(Tensor, _SummedGradient.apply(factor.to_local(), group))  # type: ignore[no-untyped-call]


class _SummedGradient(torch.autograd.Function):
    """The identity; its gradient is summed over a group of processes."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, group: distributed.ProcessGroup) -> Tensor:
        """The factor itself."""
        ctx.group = group
        return factor.view_as(factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum, in a new tensor: autograd forbids writing to the gradient that arrives."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        return total, None
