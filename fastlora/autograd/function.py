"""The differentiable formula: gradients for x, A and B, for a b that is trained, and never for W."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fastlora.arguments import check_dropout, check_scaling
from fastlora.autograd import calls, second_derivative  # noqa: F401 - makes the operator differentiable
from fastlora.autograd.trained_bias import frozen, with_gradient_of
from fastlora.formula.operands import (
    EVERYTHING,
    NOTHING,
    BaseWeight,
    Needs,
    Operands,
    as_rows,
    autocasts,
    check_adapter,
    check_tensors,
    checked_base,
    transforms_active,
)
from fastlora.formula.oracle import unfused
from fastlora.routes.backend import backend_of_mask, get_backend

_unsafe_view = torch.ops.aten._unsafe_view.default


class LoRALinearFunction(torch.autograd.Function):
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b; saves x, W, A, B, p and the seed, but neither the mask nor x_d.

    There is no `setup_context`: with one, torch inspects forward's signature at every call, which takes three
    times the rest of its overhead. x comes with all its dimensions and is reshaped in here, where views add
    no nodes to the autograd graph.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, W: Tensor, o: Operands, setting: str) -> Tensor:
        """x [..., K] -> y [..., N]; `o` holds the same x, A, B and W, which autograd must see apart."""
        flat = x.dim() == 2
        if not flat:
            o = Operands(as_rows(x), *o[1:])
        # Asking costs time, and on a CPU nothing depends on it.
        needs = EVERYTHING if x.is_cpu else Needs(*ctx.needs_input_grad[:3])
        y, p, decision = calls.forward(o, needs, setting)
        # All tensors are saved here, and none on ctx, so that saved-tensor hooks and checkpointing see them.
        ctx.save_for_backward(x, W, A, B, p, o.seed)
        base = o.base
        ctx.rest = (base.format, base.N, base.K, base.dtype, o.s, o.dropout, setting, decision)
        if flat:
            return y
        # As in torch's own linear: a plain view that a Function returns could not be changed in place.
        return cast(Tensor, _unsafe_view(y, (*x.shape[:-1], base.N)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [..., N] -> gradients in the order of forward's arguments; None if not needed."""
        x, W, A, B, p, seed = ctx.saved_tensors
        format, N, K, dtype, s, dropout, setting, decision = ctx.rest
        base = BaseWeight(format, (W,), N, K, dtype)
        needs = Needs(*ctx.needs_input_grad[:3])
        flat = x.dim() == 2
        o = Operands(x if flat else as_rows(x), base, None, A, B, s, dropout, seed)
        dx, dA, dB = calls.backward(o, dy if flat else as_rows(dy), p, needs, setting, decision)
        if not flat and dx is not None:
            dx = dx.view(x.shape)
        return dx, dA, dB, None, None, None


def lora_linear(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, *, dropout: float = 0.0
) -> Tensor:
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b in one fused pass, differentiable in x, A, B and b.

    Under torch.func's transforms (grad, vmap), in forward-mode differentiation and in torch.jit.trace, the
    formula is computed by separate torch operations, which these can handle. So are second derivatives.
    torch.compile has none: most of its backends raise an error, but backend="eager" silently drops the part
    that goes through x, A and B, as it does for every torch.autograd.Function.

    The backward pass takes the code path of its forward pass, even if `set_backend` was called in between.

    Under autocast, x, W and b are converted to autocast's dtype, as in `nn.Linear`; A and B keep theirs.

    Args:
        x: [..., K], fp16, bf16, fp32 or fp64, any strides; one dimension gives one row.
        W: [N, K] in x's dtype. Frozen: it never receives a gradient.
        b: [N] in x's dtype, or None. It gets a gradient if it requires one.
        A: [r, K], floating, possibly wider than x (fp32 master weights on a 16-bit base).
        B: [N, r], in A's dtype.
        s: Scaling, alpha / r or alpha / sqrt(r).
        dropout: Probability in [0, 1) that an entry of x_d, the low-rank branch's input, is dropped; kept
            entries are scaled by 1 / (1 - dropout). The mask's seed is drawn from torch's generator of x's
            device. The mask is not stored, but computed again in the backward pass.

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
    ) or (b is not None and not isinstance(b, Tensor)):
        check_tensors(x, W, b, A, B)
    if type(dropout) is not float or not 0 <= dropout < 1:
        dropout = check_dropout(dropout)
    if type(s) is not float or s - s != 0:
        s = check_scaling(s)
    if torch._C._get_tracing_state():  # which allows neither a Python function nor comparisons of shapes
        return unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0)
    if x.is_nested:
        return unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0)
    if torch._C._is_any_autocast_enabled() and autocasts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return lora_linear(x, W, b, A, B, s, dropout=dropout)
    base = checked_base(x, W, b)
    check_adapter(x, base, A, B)
    if transforms_active():
        return unfused(x, W, b, A, B, s, dropout=dropout, training=dropout > 0)
    # Drawn on the device: needs no synchronization, and a replayed CUDA graph draws a new seed.
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    setting = backend_of_mask() if dropout > 0 else get_backend()
    o = Operands(x, base, frozen(b), A, B, s, dropout, seed)
    if not torch.is_grad_enabled() and not calls.needs_operator(x):
        return _without_graph(o, setting)
    y: Tensor = LoRALinearFunction.apply(x, A, B, W, o, setting)  # type: ignore[no-untyped-call]
    return with_gradient_of(b, y)


def _without_graph(o: Operands, setting: str) -> Tensor:
    """The function's y where nothing is recorded, as in generation: its call takes longer than the rest."""
    x = o.x
    if x.dim() == 2:
        return calls.forward(o, NOTHING, setting)[0]
    y, *_ = calls.forward(Operands(as_rows(x), *o[1:]), NOTHING, setting)
    return cast(Tensor, _unsafe_view(y, (*x.shape[:-1], o.base.N)))
