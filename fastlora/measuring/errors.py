"""The error budget that every numeric test, benchmark and tuning run shares.

No tolerance is typed in. A result's error against fp64 may be at most twice that of unfused torch in the same
dtypes, plus one rounding in its own dtype. If the dtype of A and B is wider than x's, the rounding of the two
terms in x's dtype by which the kernels represent them comes on top.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlora.formula.oracle import dora, unfused
from fastlora.measuring.inputs import Inputs


def gradients(inputs: Inputs) -> dict[str, Tensor]:
    """y, p, dx, dA and dB of unfused torch in the operands' own dtypes."""
    x, A, B = (t.detach().clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B))
    y = unfused(x, inputs.W, inputs.b, A, B, inputs.s)
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), inputs.dy)
    with torch.no_grad():
        p = x.to(A.dtype) @ A.t()
    return {"y": y.detach(), "p": p, "dx": dx, "dA": dA, "dB": dB}


def dora_gradients(inputs: Inputs, m: Tensor) -> dict[str, Tensor]:
    """y, dx, dA, dB and dm of unfused DoRA with the magnitudes m [N], in the operands' own dtypes."""
    x, A, B, m = (t.detach().clone().requires_grad_() for t in (inputs.x, inputs.A, inputs.B, m))
    y = dora(x, inputs.W, inputs.b, A, B, inputs.s, m)
    dx, dA, dB, dm = torch.autograd.grad(y, (x, A, B, m), inputs.dy)
    return {"y": y.detach(), "dx": dx, "dA": dA, "dB": dB, "dm": dm}


def oracle(inputs: Inputs) -> dict[str, Tensor]:
    """y, p, dx, dA and dB in fp64."""
    return gradients(inputs.to(torch.float64))


def relative_error(result: Tensor, truth: Tensor) -> float:
    """‖result - truth‖ / ‖truth‖ in fp64; NaN counts as infinite."""
    truth = truth.double()
    error = (result.double() - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.nan_to_num(error, nan=float("inf"), posinf=float("inf")))


def split_eps(inputs: Inputs) -> float:
    """The relative rounding error of adapters represented as two terms in x's narrower dtype."""
    x, adapter = torch.finfo(inputs.x.dtype), torch.finfo(inputs.A.dtype)
    return x.eps**2 if adapter.bits > x.bits else 0.0


def budget_of(torchs: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """How far a result of a dtype may be from fp64: twice torch's own error, and one rounding."""
    return 2 * relative_error(torchs, truth) + torch.finfo(dtype).eps


def assert_within_budget(
    name: str, ours: Tensor, torchs: Tensor, truth: Tensor, *, extra: float = 0.0
) -> None:
    """Fail unless error(ours) <= 2 error(torch) + eps of our dtype + extra, each error against fp64.

    It raises by itself: tuning rejects wrong tiles by this, under `python -O` too.
    """
    if ours.shape != truth.shape:
        raise AssertionError(f"{name}: shape {list(ours.shape)} is not {list(truth.shape)}")
    if truth.numel() == 0:
        return
    budget = budget_of(torchs, truth, ours.dtype) + extra
    if not math.isfinite(budget):
        raise AssertionError(f"{name}: torch's own error is {relative_error(torchs, truth)}, no measure")
    error = relative_error(ours, truth)
    if not error <= budget:
        raise AssertionError(f"{name}: error {error:.2e} exceeds the budget {budget:.2e}")
