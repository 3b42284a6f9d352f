"""The derivative of the backward pass, for gradient penalties and the like, in plain torch operations.

Let g_x, g_A and g_B be the incoming gradients of dx, dA and dB. The sum of their inner products with these is

    L = Σ dy * (g_x Wᵀ + h Bᵀ + s x_d Aᵀ g_Bᵀ)    with h = s (D * g_x) Aᵀ + s x_d g_Aᵀ    [M, r]

and its gradients for dy, x, A and B are computed here. p is treated as a function of x and A, not as an
input. W is frozen here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlora.autograd.operators import lora_backward
from fastlora.formula.masks import dropout_constants


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, W, A, B, _, s, dropout, seed, *_, backend, _ = inputs
    ctx.save_for_backward(dy, x, W, A, B, seed)
    ctx.s, ctx.dropout, ctx.backend = s, dropout, backend
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
    """(g_x, g_A, g_B), each possibly None -> gradients in the order of the operator's arguments."""
    *operands, seed = ctx.saved_tensors
    wide = torch.promote_types(operands[1].dtype, operands[3].dtype)
    dy, x, W, A, B = (tensor.to(wide) for tensor in operands)
    g_x, g_A, g_B = (
        torch.zeros_like(of) if g is None else g.to(wide) for g, of in zip(arrived, (x, A, B), strict=True)
    )
    D = mask(operands[1].detach(), ctx.dropout, seed, ctx.backend).to(wide) if ctx.dropout > 0 else 1.0
    x_d, g_d, W = D * x, D * g_x, W.detach()
    q, q_B = ctx.s * (dy @ B), ctx.s * (dy @ g_B)
    h = ctx.s * (g_d @ A.t() + x_d @ g_A.t())
    for_dy = g_x @ W.t() + h @ B.t() + ctx.s * (x_d @ A.t()) @ g_B.t()
    for_x = D * (q @ g_A + q_B @ A)
    for_A = q.t() @ g_d + q_B.t() @ x_d
    for_B = dy.t() @ h
    for_dy, for_x, for_A, for_B = (
        gradient.to(of.dtype)
        for gradient, of in zip((for_dy, for_x, for_A, for_B), (*operands[:2], *operands[3:]), strict=True)
    )
    return for_dy, for_x, None, for_A, for_B, *[None] * 9


def mask(x: Tensor, dropout: float, seed: Tensor, backend: str | None) -> Tensor:
    """D [M, K] as the passes drew it, found as the dx of a layer with W = 0 and q A = 1."""
    M, K = x.shape
    one, W, A, p = x.new_ones(1, 1), x.new_zeros(1, K), x.new_ones(1, K), x.new_zeros(M, 1)
    need = (True, False, False)
    dx: Tensor
    dx, _, _ = lora_backward(x.new_ones(M, 1), x, W, A, one, p, 1.0, dropout, seed, *need, backend)
    _, kept_scale = dropout_constants(dropout)
    return dx.ne(0) * kept_scale


torch.library.register_autograd("fastlora::lora_backward", _backward, setup_context=_setup_context)
