"""The differentiable formula: gradients for x, A and B, never for W or b."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlora import ops


class LoRALinearFunction(torch.autograd.Function):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b over [M, K]; saves x, W, A, B and p, nothing of size M x N."""

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float
    ) -> tuple[Tensor, Tensor]:
        """x [M, K] -> y [M, N] and p [M, r]."""
        return cast("tuple[Tensor, Tensor]", ops.lora_forward(x, W, b, A, B, s))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Everything goes through save_for_backward, so that saved-tensor hooks and checkpointing see it."""
        x, W, _, A, B, s = inputs
        p = output[1]
        ctx.mark_non_differentiable(p)
        ctx.save_for_backward(x, W, A, B, p)
        ctx.s = s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _dp: Tensor) -> tuple[Tensor | None, ...]:
        """dy [M, N] -> gradients in the order of forward's arguments, None where nobody asked."""
        x, W, A, B, p = ctx.saved_tensors
        need_dx, _, _, need_dA, need_dB, _ = ctx.needs_input_grad
        dx, dA, dB = ops.lora_backward(dy, x, W, A, B, p, ctx.s, need_dx, need_dA, need_dB)
        return (
            dx if need_dx else None,
            None,
            None,
            dA if need_dA else None,
            dB if need_dB else None,
            None,
        )


def lora_linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b in one fused pass, differentiable in x, A and B.

    Under autocast x, W and b are taken in autocast's dtype, as `nn.Linear` does; A and B keep theirs.

    Args:
        x: [..., K], fp16, bf16, fp32 or fp64, any strides; one dimension gives one row.
        W: [N, K] in x's dtype. Frozen: it never receives a gradient.
        b: [N] in x's dtype, or None. Frozen too.
        A: [r, K], floating, possibly wider than x (fp32 master weights on a 16-bit base).
        B: [N, r], in A's dtype.
        s: Scaling, alpha / r or alpha / sqrt(r).

    Returns:
        y [..., N] in x's dtype.

    Raises:
        TypeError: If a dtype is not floating, or x, W and b, or A and B, differ in dtype.
        ValueError: If shapes or devices do not fit together.

    Source: arXiv 2106.09685, section 4.1, equation 3.
    """
    kind = x.device.type
    autocasts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocasts and x.is_floating_point() and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        with torch.autocast(kind, enabled=False):
            return _apply(x, W, b, A, B, s)
    return _apply(x, W, b, A, B, s)


def _apply(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    check_operands(x, W, b, A, B)
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    y, _ = LoRALinearFunction.apply(rows, W, b, A, B, s)  # type: ignore[no-untyped-call]
    return cast(Tensor, y.view(*x.shape[:-1], W.shape[0]))


def check_operands(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> None:
    """Raise TypeError or ValueError, naming the argument, unless the operands fit the formula."""
    if W.dim() != 2:
        raise ValueError(f"W must have shape [N, K]; got {list(W.shape)}")
    N, K = W.shape
    if x.dim() == 0 or x.shape[-1] != K:
        raise ValueError(f"x must have shape [..., K={K}]; got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, in W's dtype {W.dtype}; got {x.dtype}")
    if x.dtype != W.dtype:
        raise TypeError(f"x must have W's dtype {W.dtype}; got {x.dtype}")
    if A.dim() != 2 or A.shape[1] != K:
        raise ValueError(f"A must have shape [r, K={K}]; got {list(A.shape)}")
    if B.shape != (N, A.shape[0]):
        raise ValueError(f"B must have shape [N={N}, r={A.shape[0]}]; got {list(B.shape)}")
    if not A.is_floating_point():
        raise TypeError(f"A must be floating point; got {A.dtype}")
    if B.dtype != A.dtype:
        raise TypeError(f"B must have A's dtype {A.dtype}; got {B.dtype}")
    if b is not None and (b.shape != (N,) or b.dtype != W.dtype):
        raise ValueError(f"b must have shape [N={N}] and W's dtype {W.dtype}; got {list(b.shape)}, {b.dtype}")
    for name, tensor in (("W", W), ("b", b), ("A", A), ("B", B)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}; got {tensor.device}")
