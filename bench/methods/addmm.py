"""LoRA in vendor products with a hand-written backward that accumulates in place, as Unsloth writes it.

Its strongest form: each low-rank product is computed once, where Unsloth's backward computes x Aᵀ again and
dy B twice. A and B are converted to x's dtype, and their gradients are rounded to it, as there. A bias, which
Unsloth refuses, is added by cuBLAS's epilogue; dropout is refused, as there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bench.cases import Case
from bench.methods.method import Layer, Method, adapted
from tests.testing import Operands


class AddmmLoRA(torch.autograd.Function):
    """y = x Wᵀ + b, then y += s p Bᵀ with p = x Aᵀ, by `addmm_`; backward likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        """[M, K] -> [M, N]."""
        p = x @ A.to(x.dtype).t()
        y = F.linear(x, W, b)
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
        return dx, None, None, dA.to(A.dtype), dB.to(B.dtype), None


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """A layer that trains A and B."""
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)

    def apply(x: Tensor) -> Tensor:
        y: Tensor = AddmmLoRA.apply(x, ops.W, ops.b, A, B, ops.s)
        return y

    return Layer(apply, (A, B))


def why_not(case: Case) -> str | None:
    """Why a case is not for it."""
    return "it has no dropout: Unsloth refuses one in its fused layers" if case.dropout else None


ADDMM = Method(
    name="addmm",
    about="LoRA in cuBLAS products and addmm_, backward by hand, as Unsloth does",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_not=why_not,
)
