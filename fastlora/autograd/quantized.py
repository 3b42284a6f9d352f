"""The differentiable formula over a packed W: unpacked in each pass that reads it, and saved packed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlora.autograd import calls
from fastlora.autograd.function import _unsafe_view
from fastlora.autograd.trained_bias import frozen, with_gradient_of
from fastlora.formula.operands import (
    EVERYTHING,
    BaseWeight,
    Needs,
    Operands,
    as_rows,
    autocasts,
    check_adapter,
    plain,
    transforms_active,
)
from fastlora.formula.oracle import unfused
from fastlora.routes.backend import backend_of_mask, get_backend


class QuantizedLoRAFunction(torch.autograd.Function):
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b; saves x, A, B, p, the seed and W's packed tensors, never W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, o: Operands, setting: str, *packed: Tensor
    ) -> Tensor:
        """x [..., K] -> y [..., N]; `o` holds the same x, A, B and packed tensors."""
        base = o.base
        rows = as_rows(x)
        needs = EVERYTHING if x.is_cpu else Needs(*ctx.needs_input_grad[:3])
        y, p, decision = calls.packed_forward(Operands(rows, *o[1:]), needs, setting)
        ctx.save_for_backward(x, A, B, p, o.seed, *packed)
        ctx.rest = (base.format, base.N, base.K, base.dtype, base.statics, o.s, o.dropout, setting, decision)
        return cast(Tensor, _unsafe_view(y, (*x.shape[:-1], base.N)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [..., N] -> gradients in the order of forward's arguments; None if not needed."""
        x, A, B, p, seed, *packed = ctx.saved_tensors
        format, N, K, dtype, statics, s, dropout, setting, decision = ctx.rest
        base = BaseWeight(format, tuple(packed), N, K, dtype, statics)
        needs = Needs(*ctx.needs_input_grad[:3])
        rows = as_rows(dy)
        # dA and dB do not read W; their derivatives do.
        reads = needs.dx or torch.is_grad_enabled()
        W = calls.dequantized(base, rows) if reads else rows.new_empty(N, K)
        o = Operands(as_rows(x), plain(W, format), None, A, B, s, dropout, seed)
        dx, dA, dB = calls.backward(o, rows, p, needs, setting, decision)
        if dx is not None:
            dx = dx.view(x.shape)
        return dx, dA, dB, *[None] * (2 + len(packed))


def quantized_lora_linear(
    x: Tensor, base: BaseWeight, b: Tensor | None, A: Tensor, B: Tensor, s: float, *, dropout: float = 0.0
) -> Tensor:
    """As `lora_linear`, over a packed W, which each pass that reads it unpacks into scratch.

    It is computed in `base.dtype`, under autocast too: x and b are converted to that, and y back to x's
    dtype. Under torch.func's transforms, in torch.jit.trace and for nested tensors, the formula is computed
    by separate torch operations on the unpacked W, as `lora_linear` does it.

    Args:
        x: [..., K], floating.
        base: W [N, K].
        b: [N], or None.
        A: [r, K], in any floating dtype.
        B: [N, r], in A's dtype.
        s: The scaling, a finite float.
        dropout: A probability in [0, 1).

    Returns:
        y [..., N] in x's dtype.

    Raises:
        TypeError: If x is not floating point, or A and B are not in one floating dtype.
        ValueError: If shapes or devices do not fit together.
    """
    if autocasts(x):
        with torch.autocast(x.device.type, enabled=False):
            return quantized_lora_linear(x, base, b, A, B, s, dropout=dropout)
    y_dtype = x.dtype
    x, b = converted(x, base, b)
    check_adapter(x, base, A, B)
    if _needs_separate_operations(x):
        W = calls.dequantized(base, x)
        return unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0).to(y_dtype)
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    setting = backend_of_mask() if dropout > 0 else get_backend()
    o = Operands(x, base, frozen(b), A, B, s, dropout, seed)
    y: Tensor = QuantizedLoRAFunction.apply(x, A, B, o, setting, *base.tensors)  # type: ignore[no-untyped-call]
    return with_gradient_of(b, y).to(y_dtype)


def quantized_linear(x: Tensor, base: BaseWeight, b: Tensor | None) -> Tensor:
    """x Wᵀ + b over a packed W, in the dtypes of `quantized_lora_linear`; W is saved for backward packed."""
    if autocasts(x):
        with torch.autocast(x.device.type, enabled=False):
            return quantized_linear(x, base, b)
    y_dtype = x.dtype
    x, b = converted(x, base, b)
    if _needs_separate_operations(x):
        return F.linear(x, calls.dequantized(base, x), b).to(y_dtype)
    y: Tensor = _QuantizedLinear.apply(x, base, frozen(b), *base.tensors)  # type: ignore[no-untyped-call]
    return with_gradient_of(b, y).to(y_dtype)


class _QuantizedLinear(torch.autograd.Function):
    """x Wᵀ + b with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: BaseWeight, b: Tensor | None, *packed: Tensor) -> Tensor:
        """x [..., K] -> y [..., N]."""
        ctx.save_for_backward(*packed)
        ctx.rest = base._replace(tensors=())
        return F.linear(x, calls.dequantized(base, x), b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [..., N] -> dx [..., K]."""
        packed = ctx.saved_tensors
        W = calls.dequantized(ctx.rest._replace(tensors=packed), dy)
        with torch.autocast(dy.device.type, enabled=False):
            return dy @ W, *[None] * (2 + len(packed))


def _needs_separate_operations(x: Tensor) -> bool:
    """Whether what is at work cannot go through a Python function with a derivative of its own."""
    tracing = torch._C._get_tracing_state()
    return bool(tracing or x.is_nested or transforms_active())


def converted(x: Tensor, base: BaseWeight, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and b in the dtype that is computed in, if x fits W.

    Raises:
        TypeError: If x is not floating point.
        ValueError: If x's last dimension or device is not W's.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point; got {x.dtype}")
    if not x.is_nested and (not x.shape or x.shape[-1] != base.K):
        raise ValueError(f"x must have shape [..., K={base.K}]; got {list(x.shape)}")
    if x.device != base.tensors[0].device:
        raise ValueError(f"x must be on W's device {base.tensors[0].device}; got {x.device}")
    return x.to(base.dtype), None if b is None else b.to(base.dtype)
