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
from fastlora.formula.operands import Needs, Operands, accumulation_dtype
from fastlora.routes.products import scaled_product

# Rows of x converted at a time if the adapters' dtype is wider. This bounds the temporary: an fp32 block of
# 16,384 columns is 32 MiB, however many rows x has.
_CHUNK_ROWS = 512

# For a few rows, MKL computes W xᵀ, transposed back, faster than x Wᵀ: 1.1 to 1.9 times with 8 to 48 rows
# and W of 768 x 768 to 4096 x 1024, fp32, one thread on an Intel Xeon; less for smaller W.
_FEW_ROWS = range(8, 49)
_LARGE = 2**19
_ACCUMULATED = (torch.float32, torch.float64)
_MKL = torch.backends.mkl.is_available()


def forward(o: Operands) -> tuple[Tensor, Tensor]:
    """y [M, N] in x's dtype and p [M, r] in fp32 (fp64 for fp64)."""
    x, base, b, A, B, s, dropout, seed = o
    (W,) = base.tensors
    x_d = x
    if dropout > 0:
        threshold, kept_scale = dropout_constants(dropout)
        x_d = draw_mask(x, threshold, seed).mul_(x).mul_(kept_scale)
    if A.dtype == x.dtype in _ACCUMULATED:
        p = p_x = F.linear(x_d, A)
        B_x = B
    else:
        p = shrink(x_d, A.t())
        p_x, B_x = p.to(x.dtype), B.to(x.dtype)
    y = scaled_product(p_x, B_x.t(), s) if b is None else torch.addmm(b, p_x, B_x.t(), alpha=s)
    if base.N * base.K >= _LARGE and _is_faster_transposed(x):
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
    dx = dA = dB = mask = None
    if dropout > 0 and (needs.dx or needs.dA):
        threshold, kept_scale = dropout_constants(dropout)
        mask = draw_mask(x, threshold, seed)
    if needs.dB:
        dB = gram(dy, p, B.dtype, s)
    if needs.dx or needs.dA:
        q = shrink(dy, B, s)
    if needs.dA:
        dA = gram(q, x if mask is None else torch.mul(x, mask).mul_(kept_scale), A.dtype)
    if needs.dx:
        dx = torch.mm(q, A) if q.dtype == A.dtype == x.dtype else torch.mm(q.to(x.dtype), A.to(x.dtype))
        if mask is not None:
            dx.mul_(mask).mul_(kept_scale)
        dx.addmm_(dy, W)
    return dx, dA, dB


def _is_faster_transposed(x: Tensor) -> bool:
    return x.shape[0] in _FEW_ROWS and x.dtype == torch.float32 and x.is_cpu and _MKL


def shrink(rows: Tensor, S: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, r] -> [M, r], a new tensor in the accumulation dtype."""
    if rows.dtype == S.dtype:
        product = scaled_product(rows, S, s)
        return product if rows.dtype in _ACCUMULATED else product.to(torch.float32)
    accumulate = accumulation_dtype(rows.dtype)
    if not _is_wider(S.dtype, rows.dtype):
        return scaled_product(rows, S.to(rows.dtype), s).to(accumulate)
    product = rows.new_empty(rows.shape[0], S.shape[1], dtype=accumulate)
    for chunk, out in zip(rows.split(_CHUNK_ROWS), product.split(_CHUNK_ROWS), strict=True):
        torch.addmm(out, chunk.to(accumulate), S.to(accumulate), beta=0, alpha=s, out=out)
    return product


def gram(left: Tensor, right: Tensor, adapter: torch.dtype, s: float = 1.0) -> Tensor:
    """s times [M, C]ᵀ times [M, D] -> [C, D] in the adapter's dtype.

    One of the two matrices is x or dy, the other p or q, whose dtype may be wider.
    """
    if left.dtype == right.dtype == adapter:
        return scaled_product(left.t(), right, s)
    rows = left.dtype if left.dtype.itemsize < right.dtype.itemsize else right.dtype
    if not _is_wider(adapter, rows):
        return scaled_product(left.to(rows).t(), right.to(rows), s).to(adapter)
    accumulate = accumulation_dtype(rows)
    total = left.new_zeros(left.shape[1], right.shape[1], dtype=accumulate)
    for above, below in zip(left.split(_CHUNK_ROWS), right.split(_CHUNK_ROWS), strict=True):
        total.addmm_(above.t().to(accumulate), below.to(accumulate), alpha=s)
    return total.to(adapter)


def _is_wider(adapter: torch.dtype, x: torch.dtype) -> bool:
    return adapter.itemsize > x.itemsize
