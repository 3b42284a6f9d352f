"""The formula on a CPU: torch's products, in the order and the dtypes that take the least time.

In y and in dx the low-rank product comes first, and the base product is accumulated onto it. The low-rank
product is bound by memory: it is cheaper if it only writes the result than if it reads it too. No [M, N]
temporary is needed besides y.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import Needs, Operands
from fastlora.routes.products import (
    ACCUMULATED,
    gram,
    grow,
    scaled_product,
    shrink,
    shrink_and_gram,
    without_gaps,
)

# For 16, 32 or 48 rows, MKL computes W xᵀ, transposed back, faster than x Wᵀ: up to 1.9 times on an Intel
# Xeon and 1.4 times on an AMD EPYC, for W of 768 x 768 to 4096 x 1024, fp32. Between these sizes it is faster
# on the Xeon only: 10 rows take up to 2.4 times as long on the EPYC.
_FEW_ROWS = (16, 32, 48)
LARGE = 2**19
_MKL = torch.backends.mkl.is_available()


def forward(o: Operands) -> tuple[Tensor, Tensor]:
    """y [M, N] in x's dtype and p [M, r] in fp32 (fp64 for fp64)."""
    x, base, b, A, B, s, dropout, seed = o
    (W,) = base.tensors
    if x.dtype == torch.bfloat16:
        x, W, A, B = map(without_gaps, (x, W, A, B))
    if dropout > 0:
        threshold, kept_scale = dropout_constants(dropout)
        p = shrink(draw_mask(x, threshold, seed).mul_(x), A.t(), kept_scale)
    elif A.dtype == x.dtype in ACCUMULATED:
        p = F.linear(x, A)
    else:
        p = shrink(x, A.t())
    if A.dtype == x.dtype in ACCUMULATED:
        y = scaled_product(p, B.t(), s) if b is None else torch.addmm(b, p, B.t(), alpha=s)
    else:
        y = grow(p, B.t(), x.dtype, s, b)
    if base.N * base.K >= LARGE and is_faster_transposed(x):
        return y.add_(torch.mm(W, x.t()).t()), p
    return y.addmm_(x, W.t()), p


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx [M, K], dA [r, K] and dB [N, r] in their operands' dtypes; None if not needed.

    Args:
        o: The operands of `forward`; their seed gives the same mask again.
        dy: [M, N] in x's dtype.
        p: [M, r] as `forward` returned it.
        needs: Which gradients to compute.
    """
    x, base, _, A, B, s, dropout, seed = o
    (W,) = base.tensors
    if x.dtype == torch.bfloat16:
        x, W, A, B, dy = map(without_gaps, (x, W, A, B, dy))
    dx = dA = dB = mask = None
    kept_scale = 1.0
    if dropout > 0 and (needs.dx or needs.dA):
        threshold, kept_scale = dropout_constants(dropout)
        mask = draw_mask(x, threshold, seed)
    if not (needs.dx or needs.dA):
        return dx, dA, gram(dy, p, B.dtype, s) if needs.dB else None
    if needs.dB:
        q, dB = shrink_and_gram(dy, B, p, s)
    else:
        q = shrink(dy, B, s)
    if needs.dA:
        dA = gram(q, x if mask is None else torch.mul(x, mask), A.dtype, kept_scale)
    if needs.dx:
        if q.dtype == A.dtype == x.dtype:
            dx = scaled_product(q, A, kept_scale)
        else:
            dx = grow(q, A, x.dtype, kept_scale)
        if mask is not None:
            dx.mul_(mask)
        dx.addmm_(dy, W)
    return dx, dA, dB


def is_faster_transposed(x: Tensor) -> bool:
    """Whether W xᵀ, transposed back, is faster than x Wᵀ where W is `LARGE`."""
    return x.shape[0] in _FEW_ROWS and x.dtype == torch.float32 and x.is_cpu and _MKL
