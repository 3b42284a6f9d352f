"""The differentiable formula for rows that take different adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlora.autograd.calls import dequantized, needs_operator
from fastlora.autograd.quantized import converted, quantized_linear
from fastlora.autograd.trained_bias import frozen, with_gradient_of
from fastlora.formula import oracle
from fastlora.formula.cost import Problem
from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import (
    BaseWeight,
    Needs,
    as_rows,
    autocasts,
    check_adapter,
    checked_base,
    plain,
    transforms_active,
)
from fastlora.formula.oracle import Piece
from fastlora.formula.runs import Runs
from fastlora.routes import mixed
from fastlora.routes.backend import backend_of_mask, get_backend
from fastlora.routes.decide_runs import decide_runs
from fastlora.routes.mixed import Factors, Mixed
from fastlora.routes.route import Route


class MixedLoRAFunction(torch.autograd.Function):
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b, where each row has an A, B and s of its own, or none.

    It saves x, W (packed, if it is), p, the A and B of the batch and the seeds. An adapter that no row takes
    is not among its arguments, so its gradient stays None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, o: Mixed, setting: str, *factors: Tensor) -> Tensor:
        """x [M, K] -> y [M, N]; `factors` holds the A and B of `o` in turn, which autograd must see.

        The backward pass takes the code that `setting`, a backend setting, decides here.
        """
        is_fused = _decided(o, setting).is_fused
        y, ps = _passes(is_fused).forward(o._replace(base=_whole(o.base, x)))
        ctx.save_for_backward(x, o.b, o.seeds, *o.base.tensors, *factors, *ps)
        scalars = [None if found is None else (found.s, found.dropout) for found in o.adapters]
        ctx.rest = (o.base._replace(tensors=()), len(o.base.tensors), o.parts, o.runs, scalars, is_fused)
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy [M, N] -> gradients in the order of forward's arguments; None if not needed."""
        x, b, seeds, *tensors = ctx.saved_tensors
        base, count, parts, runs, scalars, is_fused = ctx.rest
        base, tensors = base._replace(tensors=tuple(tensors[:count])), tensors[count:]
        here = [place for place, one in enumerate(scalars) if one is not None]
        factors, ps = tensors[: 2 * len(here)], tensors[2 * len(here) :]
        adapters: list[Factors | None] = [None] * len(scalars)
        for place, A, B in zip(here, factors[::2], factors[1::2], strict=True):
            adapters[place] = Factors(A, B, *scalars[place])
        needs = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]
        if needs[0] or torch.is_grad_enabled():  # else nothing reads W
            base = _whole(base, dy)
        o = Mixed(x, base, b, adapters, parts, seeds, runs)
        if torch.is_grad_enabled():
            return _differentiable(o, dy, factors, needs, is_fused)
        each = [Needs(needs[0], False, False)] * len(adapters)
        for nth, place in enumerate(here):
            each[place] = Needs(needs[0], *needs[1 + 2 * nth : 3 + 2 * nth])
        with torch.autocast(x.device.type, enabled=False):
            dx, dA, dB = _passes(is_fused).backward(o, dy, ps, each)
        return dx, None, None, *(one for place in here for one in (dA[place], dB[place]))


def mixed_lora_linear(
    x: Tensor, W: Tensor | BaseWeight, b: Tensor | None, runs: Runs, adapters: Sequence[Factors | None]
) -> Tensor:
    """y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b with A, B and s by row; differentiable in x, b and each A and B.

    Args:
        x: [..., K]; its rows are divided equally among the items of `runs`.
        W: [N, K] in x's dtype, or packed. Frozen. Over a packed one it is computed in that one's dtype.
        b: [N] in x's dtype, or None.
        runs: Which rows take which adapter.
        adapters: A, B, s and dropout for each index of `runs`; None for no update.

    Returns:
        y [..., N] in x's dtype.

    Raises:
        TypeError: If dtypes do not fit, or x is a nested tensor.
        ValueError: If shapes or devices do not fit, or the rows of x cannot be divided.

    Source: Punica, arXiv 2310.18547, section 4; the formula is LoRA's, arXiv 2106.09685, section 4.1.
    """
    if x.is_nested:
        raise TypeError("x must be a plain tensor in a batch of mixed adapters; got a nested one")
    if autocasts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        if isinstance(W, Tensor):
            x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return mixed_lora_linear(x, W, b, runs, adapters)
    if isinstance(W, BaseWeight):
        y_dtype = x.dtype
        x, b = converted(x, W, b)
        return _computed(x, W, b, runs, adapters).to(y_dtype)
    return _computed(x, checked_base(x, W, b), b, runs, adapters)


def _computed(
    x: Tensor, base: BaseWeight, b: Tensor | None, runs: Runs, adapters: Sequence[Factors | None]
) -> Tensor:
    if not any(adapters):
        return quantized_linear(x, base, b) if base.is_packed else F.linear(x, base.tensors[0], b)
    for found in adapters:
        if found is not None:
            check_adapter(x, base, found.A, found.B)
    rows = as_rows(x)
    M = rows.shape[0]
    if M % runs.items if runs.items else M:
        raise ValueError(f"x must have a multiple of {runs.items} rows, the batch's items; got {M}")
    if needs_operator(x) or transforms_active() or torch._C._get_tracing_state():
        y = oracle.mixed(rows, _whole(base, x).tensors[0], b, _pieces(runs, M, adapters))
    else:
        parts = runs.parts(M, x.device)
        drops = any(found is not None and found.dropout > 0 for found in adapters)
        seeds = torch.randint(2**62, (len(parts),), device=x.device) if drops else None
        o = Mixed(rows, base, frozen(b), adapters, parts, seeds, runs.scaled(M))
        factors = [factor for found in adapters if found is not None for factor in found[:2]]
        setting = backend_of_mask() if drops else get_backend()
        y = cast(Tensor, MixedLoRAFunction.apply(rows, o, setting, *factors))  # type: ignore[no-untyped-call]
        y = with_gradient_of(b, y)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], base.N)


def _decided(o: Mixed, setting: str) -> Route:
    """The code of a call, by its operands and a backend setting."""
    taken = [one.A for one in o.taken().values()]
    r, adapter = max((A.shape[0] for A in taken), default=0), taken[0].dtype if taken else o.base.dtype
    problem = Problem(o.x.shape[0], o.base.K, o.base.N, r, o.base.dtype, adapter)
    route = decide_runs(problem, o.x.device, setting, runs=len(o.runs))
    if route.is_fused and any(A.dtype != adapter for A in taken):
        return Route("torch", "the batch's adapters differ in dtype")
    return route


def _passes(is_fused: bool) -> Any:
    """The module whose `forward` and `backward` compute a call; Triton is imported when it first runs."""
    if is_fused:
        from fastlora.routes import mixed_fused

        return mixed_fused
    return mixed


def _whole(base: BaseWeight, after: Tensor) -> BaseWeight:
    """W as a plain tensor; a packed one is unpacked into scratch, `after` what `dequantized` says."""
    return plain(dequantized(base, after)) if base.is_packed else base


def _pieces(runs: Runs, M: int, adapters: Sequence[Factors | None]) -> list[Piece]:
    pieces = []
    for adapter, begin, end in runs.scaled(M):
        found = None if adapter < 0 else adapters[adapter]
        pieces.append(Piece(begin, end, *(found or ())))
    return pieces


def _differentiable(
    o: Mixed, dy: Tensor, factors: Sequence[Tensor], needs: Sequence[bool], is_fused: bool
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of x, A, B and dy, for derivatives of them: by the formula in torch ops."""
    (W,) = o.base.tensors
    y = o.x.new_empty(o.x.shape[0], o.base.N)
    drops = any(one is not None and one.dropout > 0 for one in o.adapters)
    kept = _passes(is_fused).kept(o).to(o.x.dtype) if is_fused and drops else None
    for part, found, seed in o.each():
        rows = o.x[part.rows]
        piece = Piece(0, rows.shape[0])
        if found is not None:
            mask = mixed.mask_of(rows.detach(), found.dropout, seed) if kept is None else kept[part.rows]
            scale = dropout_constants(found.dropout)[1]
            piece = Piece(0, rows.shape[0], *found, None if mask is None else mask * scale)
        every = torch.arange(o.x.shape[0], device=o.x.device)
        y = y.index_put((every[part.rows],), oracle.mixed(rows, W, o.b, [piece]))
    wanted = [one for one, need in zip((o.x, *factors), needs, strict=True) if need]
    found_gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    dx, *others = (next(found_gradients) if need else None for need in needs)
    return dx, None, None, *others
