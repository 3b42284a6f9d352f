"""The formula by the vendor's matrix products: for devices without kernels, and where kernels are slower.

It is written for few launches. Adapters in a wider dtype than x are multiplied in that dtype, which takes a
temporary copy of x in it during the product; if x is fp16, the update of y or dx is made in that dtype too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formula.masks import draw_mask, dropout_constants
from fastlora.formula.operands import Needs, Operands, accumulation_dtype, outranges_fp16
from fastlora.routes.products import scaled_product


def forward(o: Operands) -> tuple[Tensor, Tensor]:
    """y [M, N] in x's dtype and p [M, r] in fp32 (fp64 for fp64)."""
    x, (W,), b, A, B = o.x, o.base.tensors, o.b, o.A, o.B
    p = _product(_dropped(x, _mask(o), o.dropout), A.t())
    y = torch.mm(x, W.t()) if b is None else torch.addmm(b, x, W.t())
    if outranges_fp16(A.dtype, x.dtype):
        y.add_(_product(p, B.t(), o.s))
    else:
        y.addmm_(p.to(x.dtype), B.t().to(x.dtype), alpha=o.s)
    return y, p.to(accumulation_dtype(x.dtype))


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx [M, K], dA [r, K] and dB [N, r] in their operands' dtypes, as `cpu.backward`."""
    x, (W,), A, B = o.x, o.base.tensors, o.A, o.B
    dx = dA = dB = None
    mask = _mask(o) if needs.dx or needs.dA else None
    if needs.dB:
        dB = _product(dy.t(), p.to(torch.promote_types(dy.dtype, B.dtype)), o.s).to(B.dtype)
    if needs.dx or needs.dA:
        q = _product(dy, B, o.s)
    if needs.dA:
        dA = _product(q.t(), _dropped(x, mask, o.dropout)).to(A.dtype)
    if needs.dx:
        wide = outranges_fp16(A.dtype, x.dtype)
        update = _product(q, A).to(x.dtype) if wide else torch.mm(q.to(x.dtype), A.to(x.dtype))
        dx = _dropped(update, mask, o.dropout).addmm_(dy, W)
    return dx, dA, dB


def _mask(o: Operands) -> Tensor | None:
    """Ones and zeros [M, K] in x's dtype; None without dropout."""
    return draw_mask(o.x, dropout_constants(o.dropout)[0], o.seed) if o.dropout > 0 else None


def _dropped(rows: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """D * rows [M, K]: the mask, then the scale, which would be rounded in a 16-bit D."""
    return rows if mask is None else (rows * mask).mul_(dropout_constants(dropout)[1])


def _product(left: Tensor, right: Tensor, s: float = 1.0) -> Tensor:
    """s times the matrix product, in the wider of the two dtypes."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return scaled_product(left.to(dtype), right.to(dtype), s)
