"""LoRA in plain torch, written to be read: the reference that every other code path is tested against.

    forward    p  = x_d Aᵀ                [M, r]
               y  = x Wᵀ + s p Bᵀ + b     [M, N]
    backward   q  = s dy B                [M, r]
               dB = s dyᵀ p               [N, r]
               dA = qᵀ x_d                [r, K]
               dx = dy W + D * (q A)      [M, K]

x_d = D * x is x after LoRA dropout, where D is the mask divided by 1 - dropout. Without dropout, x_d = x.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def unfused(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    *,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """The formula as separate torch ops, differentiated by autograd, as most libraries compute it.

    Args:
        x: [..., K].
        W: [N, K].
        b: [N] or None.
        A: [r, K]; x is converted to its dtype for the low-rank branch, as PEFT does.
        B: [N, r].
        s: The scaling, alpha / r.
        dropout: Probability with which an entry of x is dropped on the low-rank branch.
        training: Whether dropout is applied.

    Returns:
        y [..., N] in x's dtype.
    """
    x_d = F.dropout(x, dropout, training)
    update = F.linear(F.linear(x_d.to(A.dtype), A), B) * s
    y = F.linear(x, W, b)
    return y + update.to(y.dtype)


def effective_weight(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """W + s B A [N, K], summed in fp32 (fp64 for fp64) and rounded once to W's dtype.

    Of stacks W [E, N, K], A [E, r, K] and B [E, N, r] each for itself, one at a time.
    """
    if W.dim() > 2:
        merged = torch.empty_like(W)
        for total, W_e, A_e, B_e in zip(merged, W, A, B, strict=True):
            total.copy_(effective_weight(W_e, A_e, B_e, s))
        return merged
    accumulate = torch.float64 if W.dtype == torch.float64 else torch.float32
    total = torch.addmm(W.to(accumulate), B.to(accumulate), A.to(accumulate), alpha=s)
    return total.to(W.dtype)


def dora(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    m: Tensor,
    *,
    dropout: float = 0.0,
    training: bool = False,
    D: Tensor | None = None,
    n: Tensor | None = None,
) -> Tensor:
    """DoRA as separate torch ops: y = c (x Wᵀ + s (x_d Aᵀ) Bᵀ) + b with c = m / ‖W + s B A‖ by rows.

    The norm is a constant for the derivative. Where it is 0, so is c.

    Args:
        x: [..., K].
        W: [N, K].
        b: [N] or None.
        A: [r, K].
        B: [N, r].
        s: The scaling.
        m: [N], the magnitudes.
        dropout: Probability with which an entry of x is dropped on the low-rank branch.
        training: Whether dropout is applied.
        D: The scaled mask, where it is given and not to be drawn.
        n: [N], the norms, where they are known.

    Source: Liu et al., arXiv 2402.09353, equation 5 and section 4.3.
    """
    if n is None:
        n = torch.linalg.vector_norm(W.detach() + s * (B.detach() @ A.detach()), dim=1)
    c = (m / n.detach()).masked_fill(n == 0, 0.0)
    x_d = F.dropout(x, dropout, training) if D is None else x * D
    update = F.linear(F.linear(x_d.to(A.dtype), A), B) * s
    z = F.linear(x, W)
    y = (z + update.to(z.dtype)) * c
    return (y if b is None else y + b).to(z.dtype)


def dora_weight(W: Tensor, A: Tensor, B: Tensor, s: float, m: Tensor) -> Tensor:
    """diag(c) (W + s B A) [N, K], c = m / ‖W + s B A‖ by rows, in fp32 (fp64), rounded once to W's dtype."""
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    total = torch.addmm(W.to(wide), B.to(wide), A.to(wide), alpha=s)
    n = torch.linalg.vector_norm(total, dim=1)
    return total.mul_((m.to(wide) / n).masked_fill(n == 0, 0.0).unsqueeze(1)).to(W.dtype)


class Piece(NamedTuple):
    """Rows [begin, end) of x and the update that they take.

    Attributes:
        begin: The first row.
        end: The row after the last.
        A: [r, K], or None for no update.
        B: [N, r] or None.
        s: The scaling.
        dropout: Probability with which an entry of x is dropped on the low-rank branch.
        D: [end - begin, K], the scaled mask, where it is given and not to be drawn.
    """

    begin: int
    end: int
    A: Tensor | None = None
    B: Tensor | None = None
    s: float = 1.0
    dropout: float = 0.0
    D: Tensor | None = None


def mixed(x: Tensor, W: Tensor, b: Tensor | None, pieces: Iterable[Piece]) -> Tensor:
    """The formula for rows that take different updates: that of each piece alone.

    Args:
        x: [M, K].
        W: [N, K].
        b: [N] or None.
        pieces: Every row of x once, in order.

    Returns:
        y [M, N] in x's dtype.
    """
    results = []
    for begin, end, A, B, s, dropout, D in pieces:
        rows = x[begin:end]
        y = F.linear(rows, W, b)
        if A is not None and B is not None:
            x_d = F.dropout(rows, dropout) if D is None else rows * D
            y = y + (F.linear(F.linear(x_d.to(A.dtype), A), B) * s).to(y.dtype)
        results.append(y)
    return torch.cat(results)
