"""fastlora's persistent kernels for sm_90, whatever a tuning run chose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.methods.method import Method, Update, bare
from fastlora.formula.cost import Problem
from fastlora.formula.operands import EVERYTHING, Operands, plain
from fastlora.routes.architecture import architecture_of
from fastlora.routes.persistent import refusal, refusal_here
from fastlora.tuning.contest import PERSISTENT as CANDIDATE
from fastlora.tuning.proofs import prove
from fastlora.tuning.trial import Job

_REPEATS = 20


class _Passes(torch.autograd.Function):
    """Both passes, each one launch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        from fastlora.routes import hopper

        y, p = hopper.forward(Operands(x, plain(W), b, A, B, s, 0.0, None))
        ctx.save_for_backward(x, W, A, B, p)
        ctx.s = s
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastlora.routes import hopper

        x, W, A, B, p = ctx.saved_tensors
        o = Operands(x, plain(W), None, A, B, ctx.s, 0.0, None)
        dx, dA, dB = hopper.backward_or_plain(o, grads[0], p, EVERYTHING)
        return dx, None, None, dA, dB, None


def _function(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    y: Tensor = _Passes.apply(x, W, b, A, B, s)
    return y


def _why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    return "it needs a GPU" if device.type != "cuda" else refusal_here(architecture_of(device))


def _why_not(layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
    K, N = layer
    problem = Problem(1, K, N, update.r, dtype, update.adapter_dtype)
    return refusal("sm_90", problem, dropout=update.dropout > 0)


def why_unproven(problem: Problem) -> str | None:
    """Why its results are not to be trusted on this machine's GPU; None if both passes are right there.

    Each is proven in a process of its own, so that a kernel that hangs costs its time alone.
    """
    for direction in ("forward", "backward"):
        (why,) = prove(Job("cuda", direction, problem, False, _REPEATS), [CANDIDATE])
        if why is not None:
            return f"{direction}: {why}"
    return None


PERSISTENT = Method(
    "persistent",
    "fastlora's persistent kernels for sm_90: tuning may choose them",
    bare(_function),
    why_absent=_why_absent,
    why_not=_why_not,
    drops=False,
)
