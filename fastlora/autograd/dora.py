"""The differentiable formula of DoRA: y = c (x Wᵀ + s (x_d Aᵀ) Bᵀ) + b with c = m / ‖W + s B A‖ by rows.

The products are LoRA's own, on whatever route those take. Where that is the kernels, they scale columns of y
and dy themselves (`routes.fused_dora`); elsewhere torch scales what the products give, and dy before they
take it (`routes.dora`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fastlora.autograd import calls
from fastlora.autograd.calls import Gradients, dequantized, needs_operator
from fastlora.autograd.function import _unsafe_view
from fastlora.autograd.quantized import converted
from fastlora.autograd.row_norms import row_norms
from fastlora.autograd.second_derivative import mask
from fastlora.autograd.trained_bias import frozen, with_gradient_of
from fastlora.formula import oracle
from fastlora.formula.operands import (
    EVERYTHING,
    BaseWeight,
    Needs,
    Operands,
    as_rows,
    autocasts,
    check_adapter,
    checked_base,
    plain,
    transforms_active,
)
from fastlora.routes import dora
from fastlora.routes.backend import backend_of_mask, get_backend
from fastlora.routes.decide import Decision, decide


class DoRAFunction(torch.autograd.Function):
    """y = c z + b; saves x, W (packed, if it is), A, B, m, b, p, n, the seed and z: one [M, N] tensor.

    z is saved only where m is trained. Where `_holds_b`, it is z + b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        o: Operands,
        setting: str,
        keeps_z: bool,
        *weight: Tensor,
    ) -> Tensor:
        """x [..., K] -> y [..., N]; `o` holds the same x, A, B and tensors of W, which autograd must see."""
        rows, base = as_rows(x), o.base
        W = _whole(base, rows)
        n = row_norms(W, A, B, o.s, setting)
        needs = EVERYTHING if x.is_cpu else Needs(*ctx.needs_input_grad[:3])
        on_rows = o._replace(x=rows, base=plain(W, base.format))
        y, z, p, decision = _forward(on_rows, dora.over_norms(m, n), needs, setting, keeps_z)
        ctx.save_for_backward(x, A, B, m, o.b, p, n, z, o.seed, *weight)
        ctx.rest = (base._replace(tensors=()), o.s, o.dropout, setting, decision)
        return cast(Tensor, _unsafe_view(y, (*x.shape[:-1], base.N)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [..., N] -> gradients in the order of forward's arguments; None if not needed."""
        x, A, B, m, b, p, n, z, seed, *weight = ctx.saved_tensors
        base, s, dropout, setting, decision = ctx.rest
        base, rest = base._replace(tensors=tuple(weight)), (None,) * (3 + len(weight))
        rows, needs = as_rows(dy), Needs(*ctx.needs_input_grad[:3])
        reads = needs.dx or torch.is_grad_enabled()
        W = _whole(base, rows) if reads or not base.is_packed else rows.new_empty(base.N, base.K)
        o = Operands(as_rows(x), plain(W, base.format), b, A, B, s, dropout, seed)
        if torch.is_grad_enabled():
            return *_differentiable(o, x, m, n, dy, ctx.needs_input_grad[:4], setting), *rest
        dm = None
        if z is not None and ctx.needs_input_grad[3]:
            inside = b if _holds_b(b, n.dtype, rows.dtype, decision) else None
            dm = dora.over_norms(_column_sums(rows, z, inside, n.dtype, decision), n).to(m.dtype)
        dx, dA, dB = _gradients(o._replace(b=None), rows, p, dora.over_norms(m, n), needs, setting, decision)
        return None if dx is None else dx.view(x.shape), dA, dB, dm, *rest


def dora_linear(
    x: Tensor,
    W: Tensor | BaseWeight,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    m: Tensor,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """y = c (x Wᵀ + s (x_d Aᵀ) Bᵀ) + b with c = m / ‖W + s B A‖ by rows, differentiable in x, A, B, m and b.

    The norm is a constant for the derivative (the paper's section 4.3). Dropout falls on the low-rank branch
    alone. It is computed by separate torch operations where `lora_linear` is.

    Args:
        x: [..., K].
        W: [N, K] in x's dtype, or packed. Frozen.
        b: [N] or None; it is not scaled.
        A: [r, K].
        B: [N, r], in A's dtype.
        s: The scaling.
        m: [N], the magnitudes, floating.
        dropout: Probability in [0, 1) that an entry of x_d is dropped.

    Returns:
        y [..., N] in x's dtype.

    Raises:
        TypeError: If a dtype is not floating, or x, W and b, or A and B, differ in dtype.
        ValueError: If shapes or devices do not fit together.

    Source: arXiv 2402.09353, equation 5.
    """
    if autocasts(x):
        if isinstance(W, Tensor):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return dora_linear(x, W, b, A, B, s, m, dropout=dropout)
    y_dtype = x.dtype
    if isinstance(W, BaseWeight):
        x, b = converted(x, W, b)
    separately = torch._C._get_tracing_state() or x.is_nested or transforms_active()
    if separately:
        whole = dequantized(W, x) if isinstance(W, BaseWeight) else W
        return oracle.dora(x, whole, b, A, B, s, m, dropout=dropout, training=dropout > 0).to(y_dtype)
    base = W if isinstance(W, BaseWeight) else checked_base(x, W, b)
    check_adapter(x, base, A, B)
    if m.shape != (base.N,) or m.device != x.device:
        raise ValueError(f"m must be [N={base.N}] on {x.device}; got {list(m.shape)} on {m.device}")
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    setting = backend_of_mask() if dropout > 0 else get_backend()
    o = Operands(x, base, frozen(b), A, B, s, dropout, seed)
    keeps_z = torch.is_grad_enabled() and m.requires_grad
    y: Tensor = DoRAFunction.apply(x, A, B, m, o, setting, keeps_z, *base.tensors)  # type: ignore[no-untyped-call]
    return with_gradient_of(b, y).to(y_dtype)


def _whole(base: BaseWeight, after: Tensor) -> Tensor:
    """W [N, K]; a packed one is unpacked into scratch, `after` what `dequantized` says."""
    return dequantized(base, after) if base.is_packed else base.tensors[0]


def _forward(
    o: Operands, c: Tensor, needs: Needs, setting: str, keeps_z: bool
) -> tuple[Tensor, Tensor | None, Tensor, Decision | None]:
    """y, z (or z + b) where it is kept, p, and the decision for the backward pass."""
    decision = None if needs_operator(o.x) else decide(o, needs, setting, alone=False)
    if decision is not None and decision.forward.is_fused:
        from fastlora.routes import fused_dora

        return *fused_dora.forward(o, c, keeps_z), decision
    b = o.b
    if b is not None and _holds_b(b, c.dtype, o.x.dtype, decision):
        b = b - c * b
    else:
        o = o._replace(b=None)
    z, p, decision = calls.forward(o, needs, setting, decision)
    y = _scaled(z, c, b, in_place=not keeps_z)
    return y, z if keeps_z else None, p, decision


def _holds_b(b: Tensor | None, wide: torch.dtype, dtype: torch.dtype, decision: Decision | None) -> bool:
    """Whether torch scales z + b in the place of z: y = c (z + b) + (1 - c) b.

    Where c is 1, as in a new adapter, y is then the base layer's to the last bit. Not where z has 16 bits, as
    a b that is large beside z would leave few of them to dm, nor where a kernel sums dy z.
    """
    by_kernel = decision is not None and decision.backward.name != "torch"
    return b is not None and wide == dtype and not by_kernel


def _scaled(rows: Tensor, c: Tensor, b: Tensor | None = None, *, in_place: bool = False) -> Tensor:
    """As `dora.scaled`; where something must see operations, in few of them and never in place."""
    if not needs_operator(rows):
        return dora.scaled(rows, c, b, in_place=in_place)
    wide = rows * c if b is None else rows * c + b
    return wide.to(rows.dtype)


def _column_sums(
    dy: Tensor, z: Tensor, b: Tensor | None, dtype: torch.dtype, decision: Decision | None
) -> Tensor:
    if needs_operator(dy):
        return (dy.to(dtype) * (z if b is None else z - b)).sum(0)
    if decision is not None and decision.backward.name != "torch":
        from fastlora.routes import fused_dora

        return fused_dora.column_sums(dy, z)
    return dora.column_sums(dy, z, dtype, b)


def _gradients(
    o: Operands, dy: Tensor, p: Tensor, c: Tensor, needs: Needs, setting: str, decision: Decision | None
) -> Gradients:
    """dx, dA and dB: LoRA's of c dy, and where A is wider than dy, dA and dB without rounding that."""
    if decision is not None and decision.backward.is_fused and not needs_operator(dy):
        from fastlora.routes import fused_dora

        return fused_dora.backward(o, dy, p, c, needs)
    if o.A.dtype.itemsize <= dy.dtype.itemsize:
        return calls.backward(o, _scaled(dy, c), p, needs, setting, decision)
    dx = dA = dB = None
    if needs.dx:
        dx, _, _ = calls.backward(o, _scaled(dy, c), p, Needs(True, False, False), setting, decision)
    if needs.dA or needs.dB:
        by_rows = c.to(o.B.dtype).unsqueeze(1)
        factors = Needs(False, needs.dA, needs.dB)
        _, dA, dB = calls.backward(o._replace(B=o.B * by_rows), dy, p, factors, setting, decision)
    return dx, dA, None if dB is None else dB * by_rows


def _differentiable(
    o: Operands,
    x: Tensor,
    m: Tensor,
    n: Tensor,
    dy: Tensor,
    needs: tuple[bool, ...],
    setting: str,
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of x, A, B, m and dy, to be differentiated: by the formula in torch ops."""
    (W,) = o.base.tensors
    D = mask(o.x.detach(), o.dropout, o.seed, setting) if o.dropout > 0 and o.seed is not None else None
    y = oracle.dora(o.x, W, o.b, o.A, o.B, o.s, m, D=D, n=n)
    wanted = [one for one, need in zip((x, o.A, o.B, m), needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, as_rows(dy), create_graph=True))
    return tuple(next(found) if need else None for need in needs)
