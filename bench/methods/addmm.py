"""LoRA in vendor products with a hand-written backward that accumulates in place, as Unsloth writes it.

Its strongest form: each low-rank product is computed once, where Unsloth's backward computes x Aᵀ again and
dy B twice. A and B are converted to x's dtype, and their gradients are rounded to it, as there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.methods.method import Layer, Method
from fastlora.reference import unfused
from tests.testing import Operands


class AddmmLoRA(torch.autograd.Function):
    """y = x Wᵀ, then y += s p Bᵀ with p = x Aᵀ, by `addmm_`; backward likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        """[M, K] -> [M, N]."""
        p = x @ A.to(x.dtype).t()
        y = x @ W.t()
        y.addmm_(p, B.to(x.dtype).t(), alpha=s)
        ctx.save_for_backward(x, W, A, B, p)
        ctx.s = s
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        x, W, A, B, p = ctx.saved_tensors
        q = torch.empty_like(p).addmm_(dy, B.to(dy.dtype), beta=0, alpha=ctx.s)
        dB = torch.empty_like(B, dtype=dy.dtype).addmm_(dy.t(), p, beta=0, alpha=ctx.s)
        dA = q.t() @ x
        dx = dy @ W
        dx.addmm_(q, A.to(dy.dtype))
        return dx, None, dA.to(A.dtype), dB.to(B.dtype), None


def build(ops: Operands) -> Layer:
    """A layer that trains A and B."""
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)

    def apply(x: Tensor) -> Tensor:
        y: Tensor = AddmmLoRA.apply(x, ops.W, A, B, ops.s)
        return y

    return Layer(apply, (A, B))


ADDMM = Method(
    name="addmm",
    about="LoRA in cuBLAS products and addmm_, backward by hand, as Unsloth does",
    formula=unfused,
    trained=("A", "B"),
    build=build,
)
