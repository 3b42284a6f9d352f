"""Inputs and the error budget that every numeric test shares.

No tolerance is typed in: a result may be at most twice as far from fp64 as unfused torch is in the same
dtypes, plus one rounding of its own dtype, plus, where A and B are wider than x, the rounding of the two
parts of x's dtype that the kernels take them in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlora.formula.operands import Operands as Call
from fastlora.formula.operands import plain
from fastlora.formula.oracle import unfused


@dataclass
class Operands:
    """x [M, K], W [N, K], b [N] or None, A [r, K], B [N, r], s, and a gradient dy [M, N]; B is never zero."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    A: Tensor
    B: Tensor
    s: float
    dy: Tensor

    def call(self, dropout: float = 0.0, seed: Tensor | None = None) -> Call:
        """The bundle that the library's passes take."""
        base = plain(self.W)
        return Call(self.x, base, self.b, self.A, self.B, self.s, dropout, seed)

    def to(self, dtype: torch.dtype) -> Operands:
        """Every tensor converted."""
        moved = (None if t is None else t.to(dtype) for t in (self.x, self.W, self.b, self.A, self.B))
        return Operands(*moved, self.s, self.dy.to(dtype))


def operands(
    M: int,
    K: int,
    N: int,
    r: int,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_dtype: torch.dtype | None = None,
    bias: bool = True,
    s: float = 0.75,
    device: torch.device | str = "cpu",
) -> Operands:
    """Random operands, scaled so that the base product and the update weigh about the same."""

    def normal(*shape: int, scale: float, kind: torch.dtype) -> Tensor:
        return (torch.randn(shape, device=device, dtype=torch.float32) * scale).to(kind)

    adapter_dtype = adapter_dtype or dtype
    return Operands(
        x=normal(M, K, scale=1.0, kind=dtype),
        W=normal(N, K, scale=max(K, 1) ** -0.5, kind=dtype),
        b=normal(N, scale=1.0, kind=dtype) if bias else None,
        A=normal(r, K, scale=max(K, 1) ** -0.5, kind=adapter_dtype),
        B=normal(N, r, scale=r**-0.5, kind=adapter_dtype),
        s=s,
        dy=normal(M, N, scale=1.0, kind=dtype),
    )


def gradients(ops: Operands) -> dict[str, Tensor]:
    """y, p, dx, dA and dB of unfused torch in the operands' own dtypes."""
    x, A, B = (t.detach().clone().requires_grad_() for t in (ops.x, ops.A, ops.B))
    y = unfused(x, ops.W, ops.b, A, B, ops.s)
    y.backward(ops.dy)
    with torch.no_grad():
        p = x.to(A.dtype) @ A.t()
    return {"y": y.detach(), "p": p, "dx": x.grad, "dA": A.grad, "dB": B.grad}


def oracle(ops: Operands) -> dict[str, Tensor]:
    """The same in fp64."""
    return gradients(ops.to(torch.float64))


def relative_error(result: Tensor, truth: Tensor) -> float:
    """‖result - truth‖ / ‖truth‖ in fp64; NaN counts as infinite."""
    truth = truth.double()
    error = (result.double() - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.nan_to_num(error, nan=float("inf"), posinf=float("inf")))


def split_eps(ops: Operands) -> float:
    """The relative rounding of adapters that are held as two parts of x's narrower dtype."""
    x, adapter = torch.finfo(ops.x.dtype), torch.finfo(ops.A.dtype)
    return x.eps**2 if adapter.bits > x.bits else 0.0


def assert_within_budget(
    name: str, ours: Tensor, torchs: Tensor, truth: Tensor, *, extra: float = 0.0
) -> None:
    """Fail unless error(ours) <= 2 error(torch) + eps of our dtype + extra, each error against fp64."""
    assert ours.shape == truth.shape, f"{name}: shape {list(ours.shape)} is not {list(truth.shape)}"
    if truth.numel() == 0:
        return
    budget = 2 * relative_error(torchs, truth) + torch.finfo(ours.dtype).eps + extra
    assert math.isfinite(budget), f"{name}: torch's own error is {relative_error(torchs, truth)}, no measure"
    error = relative_error(ours, truth)
    assert error <= budget, f"{name}: error {error:.2e} exceeds the budget {budget:.2e}"
