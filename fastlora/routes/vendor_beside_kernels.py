"""The base products by the vendor's library, and all that is low-rank by the kernels: a route for GPUs.

Where a plain product of the vendor's is much faster than the kernels' main loop, this wins, although x is
read twice: `fastlora tune` finds out. The low-rank product comes first, and the vendor's is accumulated onto
it (beta = 1). The masks are the fused kernels', so that the two passes of a layer may take different routes.
"""

from __future__ import annotations

from torch import Tensor

from fastlora.formula.operands import Needs, Operands
from fastlora.routes import fused
from fastlora.routes.products import grow


def forward(o: Operands) -> tuple[Tensor, Tensor]:
    """y [M, N] in x's dtype and p [M, r] in fp32: p in one launch, then two products."""
    x, (W,) = o.x, o.base.tensors
    y = x.new_empty(x.shape[0], o.base.N)
    p = fused.project(o, y)
    grow(p, o.B.t(), x.dtype, o.s, o.b, out=y)
    return y.addmm_(x, W.t()), p


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx [M, K], dA [r, K] and dB [N, r]; None if not needed: q, dA and dB in a launch, then two products."""
    if not any(needs):
        return None, None, None
    dA, dB, q = fused.gradients(o, dy, p, needs)
    if not needs.dx:
        return None, dA, dB
    dx = fused.masked_update(o, q) if o.dropout > 0 else grow(q, o.A, o.x.dtype)
    return dx.addmm_(dy, o.base.tensors[0]), dA, dB
