"""The differentiable formula: gradients for x, A and B, never for W or b."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from fastlora import ops, reference, second_derivative  # noqa: F401 - the last makes the operator differentiable
from fastlora.backend import backend_of_mask, get_backend
from fastlora.config import check_dropout, shown

_unsafe_view = torch.ops.aten._unsafe_view.default


class LoRALinearFunction(torch.autograd.Function):
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b; saves x, W, A, B, p and a seed, no mask and no x_d.

    forward takes the context itself: where a `setup_context` does, torch inspects forward's signature at
    every call, for three times the rest of its overhead. And x comes with all its dimensions, as views made
    in here are no nodes of the graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        dropout: float,
        seed: Tensor | None,
        backend: str,
    ) -> Tensor:
        """x [..., K] -> y [..., N]."""
        y, p = ops.forward(_rows(x), W, b, A, B, s, dropout, seed, backend)
        # Everything goes through here, so that saved-tensor hooks and checkpointing see it.
        ctx.save_for_backward(x, W, A, B, p, seed)
        ctx.s, ctx.dropout, ctx.backend = s, dropout, backend
        if x.dim() == 2:
            return y
        # As torch's own linear does it: a view that a Function returns could not be changed in place.
        return cast(Tensor, _unsafe_view(y, (*x.shape[:-1], W.shape[0])))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [..., N] -> gradients in the order of forward's arguments, None where nobody asked."""
        x, W, A, B, p, seed = ctx.saved_tensors
        need_dx, _, _, need_dA, need_dB, *_ = ctx.needs_input_grad
        need = (need_dx, need_dA, need_dB)
        dx, dA, dB = ops.backward(
            _rows(dy), _rows(x), W, A, B, p, ctx.s, ctx.dropout, seed, *need, ctx.backend
        )
        if dx is not None and x.dim() != 2:
            dx = dx.view(x.shape)
        return dx, None, None, dA, dB, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """[..., K] -> [M, K]; one dimension is one row."""
    dims = x.dim()
    if dims == 2:
        return x
    return x.flatten(0, -2) if dims > 2 else x.unsqueeze(0)


def lora_linear(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, *, dropout: float = 0.0
) -> Tensor:
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b in one fused pass, differentiable in x, A and B.

    Under torch.func's transforms (grad, vmap) and in torch.jit.trace it is the same formula in separate
    operations, which these can go through; so is the derivative of a derivative.

    The backward pass takes the code path of its forward, whatever `set_backend` says by then.

    Under autocast x, W and b are taken in autocast's dtype, as `nn.Linear` does; A and B keep theirs.

    Args:
        x: [..., K], fp16, bf16, fp32 or fp64, any strides; one dimension gives one row.
        W: [N, K] in x's dtype. Frozen: it never receives a gradient.
        b: [N] in x's dtype, or None. Frozen too.
        A: [r, K], floating, possibly wider than x (fp32 master weights on a 16-bit base).
        B: [N, r], in A's dtype.
        s: Scaling, alpha / r or alpha / sqrt(r).
        dropout: Probability in [0, 1) that an entry of x_d, the low-rank branch's input, is dropped; what is
            kept is scaled by 1 / (1 - dropout). The mask's seed is drawn from torch's generator of x's
            device; the mask is computed again in the backward pass, not stored.

    Returns:
        y [..., N] in x's dtype.

    Raises:
        TypeError: If an operand is no Tensor, s or dropout no number, a dtype not floating, or x, W and b, or
            A and B, differ in dtype.
        ValueError: If shapes or devices do not fit together, s is not finite, or dropout is outside [0, 1).

    Source: arXiv 2106.09685, section 4.1, equation 3.
    """
    if not (
        isinstance(x, Tensor) and isinstance(W, Tensor) and isinstance(A, Tensor) and isinstance(B, Tensor)
    ):
        tensors = {"x": x, "W": W, "A": A, "B": B}
        name, other = next((n, t) for n, t in tensors.items() if not isinstance(t, Tensor))
        raise TypeError(f"{name} must be a Tensor; got {type(other).__name__}")
    if type(dropout) is not float or not 0 <= dropout < 1:
        dropout = check_dropout(dropout)
    if type(s) is not float or s - s != 0:
        s = _check_scaling(s)
    if torch._C._is_any_autocast_enabled() and x.is_floating_point() and x.dtype != torch.float64:
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
            with torch.autocast(kind, enabled=False):
                return lora_linear(x, W, b, A, B, s, dropout=dropout)
    if torch._C._get_tracing_state():  # it takes neither a Python function nor comparisons of shapes
        return reference.unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0)
    check_operands(x, W, b, A, B)
    if torch._C._are_functorch_transforms_active():
        return reference.unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0)
    # Drawn on the device: no synchronization, and a replayed CUDA graph draws anew.
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    backend = backend_of_mask() if dropout > 0 else get_backend()
    y: Tensor = LoRALinearFunction.apply(x, W, b, A, B, s, dropout, seed, backend)  # type: ignore[no-untyped-call]
    return y


def _check_scaling(s: object) -> float:
    """The scaling as a float; else TypeError or ValueError."""
    if isinstance(s, torch.SymFloat):
        return cast(float, s)
    if isinstance(s, bool) or not isinstance(s, Real):
        raise TypeError(f"s must be a number; got {type(s).__name__}")
    try:
        number = float(s)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"s must be finite; got {shown(s)}")
    return number


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
    if b is not None and not isinstance(b, Tensor):
        raise TypeError(f"b must be a Tensor or None; got {type(b).__name__}")
    if b is not None and (b.shape != (N,) or b.dtype != W.dtype):
        raise ValueError(f"b must have shape [N={N}] and W's dtype {W.dtype}; got {list(b.shape)}, {b.dtype}")
    device = x.device
    if (
        W.device != device
        or A.device != device
        or B.device != device
        or (b is not None and b.device != device)
    ):
        tensors = {"W": W, "b": b, "A": A, "B": B}
        name, other = next((n, t.device) for n, t in tensors.items() if t is not None and t.device != device)
        raise ValueError(f"{name} must be on x's device {device}; got {other}")
