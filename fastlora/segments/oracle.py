"""The formula for rows that choose their operands, in plain torch, written to be read: the reference.

    forward    p  = x_d A_eᵀ                         [m, r]     for the m rows of run e
               y  = w (x W_eᵀ + s p B_eᵀ + b_e)      [m, N]
    backward   q  = s dy B_e                         [m, r]
               g  = dy W_e + D * (q A_e)             [m, K]
               dB_e = s dyᵀ (w p)                    [N, r]
               dA_e = (w q)ᵀ x_d                     [r, K]
               dx = w g                              [m, K]
               dw = sum of g x over K, and dy b_e    [m]

y itself is not needed for dw, as y is linear in x. Where a row has several places, its y is the sum over
them, and so is its dx.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formula import oracle


def unfused(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    s: float,
    chosen: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """The formula by separate torch operations, differentiated by autograd, without dropout.

    Args:
        x: [T, K], or [T, copies, K] where the places of a row have inputs of their own.
        W: [E, N, K].
        b: [E, N] or None.
        A: [E, r, K] or None.
        B: [E, N, r] or None.
        s: The scaling.
        chosen: [T, copies], the operands of each place; E and more mean none, which gives 0.
        weights: [T, copies]; None keeps the places apart.

    Returns:
        [T, N] with weights, else [T, copies, N].
    """
    places = x[:, None].expand(*chosen.shape, x.shape[-1]) if x.dim() == 2 else x
    y = x.new_zeros(*chosen.shape, W.shape[1])
    for e in range(W.shape[0]):
        here = chosen == e
        bias = None if b is None else b[e]
        if A is None or B is None:
            run = torch.nn.functional.linear(places[here], W[e], bias)
        else:
            run = oracle.unfused(places[here], W[e], bias, A[e], B[e], s)
        y = y.index_put(here.nonzero(as_tuple=True), run)
    return y if weights is None else (y * weights[..., None]).sum(1)
