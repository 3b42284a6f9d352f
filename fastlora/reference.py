"""LoRA in plain torch: the oracle of the kernels, the CPU path, and the unfused way most libraries write it.

    forward    p  = x_d Aᵀ                [M, r]
               y  = x Wᵀ + s p Bᵀ + b     [M, N]
    backward   q  = s dy B                [M, r]
               dB = s dyᵀ p               [N, r]
               dA = qᵀ x_d                [r, K]
               dx = dy W + D * (q A)      [M, K]

x_d = D * x is x after LoRA dropout, with D the mask over 1 - dropout; without dropout x itself.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlora.masks import draw_mask, dropout_constants

# Rows converted at a time where adapters are wider than x: at 16,384 columns an fp32 block is 32 MiB,
# however long x is.
_CHUNK_ROWS = 512

# MKL computes W xᵀ faster than x Wᵀ for a few rows, transposing back included: 1.1 to 1.9 times with 8 to 48
# rows and W of 768 x 768 to 4096 x 1024, fp32, one thread on an Intel Xeon; less for smaller W.
_FEW_ROWS = range(8, 49)
_LARGE = 2**19
_ACCUMULATED = (torch.float32, torch.float64)
_MKL = torch.backends.mkl.is_available()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of p, q and every accumulator: fp32, and fp64 for an fp64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b and p = x_d Aᵀ, with no M x N temporary beside y.

    The thin product comes first and the base product is added onto it, here and in dx: a thin product is
    bound by memory, and costs less where it only writes its result than where it reads it as well.

    Args:
        x: [M, K].
        W: [N, K], in x's dtype.
        b: [N] or None, in x's dtype.
        A: [r, K], in any floating dtype.
        B: [N, r], in A's dtype.
        s: The scaling, alpha / r.
        dropout: Probability of dropping an entry of x_d, to the nearest 2^-16.
        seed: [1] int64, the seed of the mask; needed where dropout > 0.

    Returns:
        y [M, N] in x's dtype and p [M, r] in fp32 (fp64 for fp64).
    """
    x_d = x
    if dropout > 0:
        threshold, kept_scale = dropout_constants(dropout)
        x_d = draw_mask(x, threshold, seed).mul_(x).mul_(kept_scale)
    p = _shrink(x_d, A.t())
    p_x, B_x = (p, B) if p.dtype == B.dtype == x.dtype else (p.to(x.dtype), B.to(x.dtype))
    y = _scaled_product(p_x, B_x.t(), s) if b is None else torch.addmm(b, p_x, B_x.t(), alpha=s)
    if W.numel() >= _LARGE and _is_faster_transposed(x):
        return y.add_(torch.mm(W, x.t()).t()), p
    return y.addmm_(x, W.t()), p


def backward(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    *,
    need_dx: bool = True,
    need_dA: bool = True,
    need_dB: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, A and B; one that is not needed is neither computed nor returned.

    Args:
        dy: [M, N], the gradient of y, in x's dtype.
        x: [M, K].
        W: [N, K].
        A: [r, K].
        B: [N, r].
        p: [M, r], as `forward` returned it.
        s: The scaling, alpha / r.
        dropout: As in `forward`.
        seed: As in `forward`; it gives the same mask again, so that none is kept.
        need_dx: Whether x needs its gradient.
        need_dA: Whether A needs its gradient.
        need_dB: Whether B needs its gradient.

    Returns:
        (dx [M, K] in x's dtype, dA [r, K] in A's dtype, dB [N, r] in B's dtype), None where not needed.
    """
    dx = dA = dB = mask = None
    if dropout > 0 and (need_dx or need_dA):
        threshold, kept_scale = dropout_constants(dropout)
        mask = draw_mask(x, threshold, seed)
    if need_dB:
        dB = _gram(dy, p, B.dtype, s)
    if need_dx or need_dA:
        q = _shrink(dy, B, s)
    if need_dA:
        dA = _gram(q, x if mask is None else torch.mul(x, mask).mul_(kept_scale), A.dtype)
    if need_dx:
        dx = torch.mm(q, A) if q.dtype == A.dtype == x.dtype else torch.mm(q.to(x.dtype), A.to(x.dtype))
        if mask is not None:
            dx.mul_(mask).mul_(kept_scale)
        dx.addmm_(dy, W)
    return dx, dA, dB


def _is_faster_transposed(x: Tensor) -> bool:
    return x.shape[0] in _FEW_ROWS and x.dtype == torch.float32 and x.is_cpu and _MKL


def _scaled_product(left: Tensor, right: Tensor, s: float) -> Tensor:
    """The matrix product times s, in one operation."""
    if s == 1:
        return torch.mm(left, right)
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=s)


def _shrink(rows: Tensor, S: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, r] -> [M, r], a new tensor in the accumulation dtype."""
    if rows.dtype == S.dtype:
        product = _scaled_product(rows, S, s)
        return product if rows.dtype in _ACCUMULATED else product.to(torch.float32)
    accumulate = accumulation_dtype(rows.dtype)
    if not _is_wider(S.dtype, rows.dtype):
        return _scaled_product(rows, S.to(rows.dtype), s).to(accumulate)
    product = rows.new_empty(rows.shape[0], S.shape[1], dtype=accumulate)
    for chunk, out in zip(rows.split(_CHUNK_ROWS), product.split(_CHUNK_ROWS), strict=True):
        torch.addmm(out, chunk.to(accumulate), S.to(accumulate), beta=0, alpha=s, out=out)
    return product


def _gram(left: Tensor, right: Tensor, adapter: torch.dtype, s: float = 1.0) -> Tensor:
    """s times [M, C]ᵀ times [M, D] -> [C, D] in the adapter's dtype.

    One of the two is x or dy, the other p or q, which may be wider.
    """
    if left.dtype == right.dtype == adapter:
        return _scaled_product(left.t(), right, s)
    rows = left.dtype if left.dtype.itemsize < right.dtype.itemsize else right.dtype
    if not _is_wider(adapter, rows):
        return _scaled_product(left.to(rows).t(), right.to(rows), s).to(adapter)
    accumulate = accumulation_dtype(rows)
    total = left.new_zeros(left.shape[1], right.shape[1], dtype=accumulate)
    for above, below in zip(left.split(_CHUNK_ROWS), right.split(_CHUNK_ROWS), strict=True):
        total.addmm_(above.t().to(accumulate), below.to(accumulate), alpha=s)
    return total.to(adapter)


def _is_wider(adapter: torch.dtype, x: torch.dtype) -> bool:
    return adapter.itemsize > x.itemsize


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
    """The formula as most libraries write it: separate torch ops, differentiated by autograd.

    Args:
        x: [..., K].
        W: [N, K].
        b: [N] or None.
        A: [r, K]; x is converted to its dtype for the low-rank branch, as PEFT does.
        B: [N, r].
        s: The scaling, alpha / r.
        dropout: Probability with which an entry of x is dropped on the low-rank branch.
        training: Whether dropout acts.

    Returns:
        y [..., N] in x's dtype.
    """
    x_d = F.dropout(x, dropout, training)
    update = F.linear(F.linear(x_d.to(A.dtype), A), B) * s
    y = F.linear(x, W, b)
    return y + update.to(y.dtype)


def effective_weight(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """W + s B A [N, K], summed in the accumulation dtype and rounded once to W's dtype."""
    accumulate = accumulation_dtype(W.dtype)
    total = torch.addmm(W.to(accumulate), B.to(accumulate), A.to(accumulate), alpha=s)
    return total.to(W.dtype)
