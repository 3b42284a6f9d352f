"""What DoRA adds to the formula: the norms of W + s B A by rows, and columns that are scaled by c = m / n.

    n = ‖W + s B A‖ by rows            [N], a constant for the derivative
    z = x Wᵀ + s p Bᵀ                  [M, N]
    y = c z + b                        c dy stands for dy in dx, dA and dB
    dm = Σ dy z / n by columns         [N]

c dy is rounded to dy's dtype, as every gradient between layers is. Where A and B are wider than that, dA and
dB are free of this rounding: q = s dy (c B) and dB = c (s dyᵀ p), by rows of B.

The norm is summed strip by strip of W: B A is never there as a whole, and there is no closed form, which
would cancel where an update removes most of a row. A row of zeros has n = 0; its c is 0, so y is b there.

DoRA: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, sections 4.1 and 4.3.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fastlora.formula.operands import accumulation_dtype

# Entries of a temporary in the accumulation dtype: small enough for a CPU's cache, few launches on a GPU.
_CHUNK: Final = {"cpu": 2**18}
_CHUNK_ELSEWHERE: Final = 2**24


def row_norms(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """‖W + s B A‖ by rows [N], in fp32 (fp64 for fp64).

    Args:
        W: [N, K], any strides.
        A: [r, K].
        B: [N, r].
        s: The scaling.
    """
    wide = accumulation_dtype(W.dtype)
    n, A = W.new_empty(W.shape[0], dtype=wide), A.to(wide)
    rows = _rows_of_chunk(W)
    for W_i, B_i, n_i in zip(W.split(rows), B.split(rows), n.split(rows), strict=True):
        strip = torch.addmm(W_i.to(wide), B_i.to(wide), A, alpha=s)
        torch.linalg.vector_norm(strip, dim=1, out=n_i)
    return n


def over_norms(values: Tensor, n: Tensor) -> Tensor:
    """values / n [N] in n's dtype, and 0 where n is 0: c of m, and dm of the sums over the rows."""
    return (values.to(n.dtype) / n).masked_fill(n == 0, 0.0)


def scaled(z: Tensor, c: Tensor, b: Tensor | None = None, *, in_place: bool = False) -> Tensor:
    """y = c z + b [M, N] in z's dtype, rounded once.

    Of z + b in the place of z, and (1 - c) b in that of b, it is the same y.

    Args:
        z: [M, N].
        c: [N] in the accumulation dtype.
        b: [N] in z's dtype, or None.
        in_place: Whether y may be written over z.
    """
    if z.dtype == c.dtype:
        out = z if in_place else None
        return torch.mul(z, c, out=out) if b is None else torch.addcmul(b, z, c, out=out)
    y, rows = z if in_place else torch.empty_like(z), _rows_of_chunk(z)
    for z_i, y_i in zip(z.split(rows), y.split(rows), strict=True):
        wide = z_i * c
        y_i.copy_(wide if b is None else wide.add_(b))
    return y


def column_sums(dy: Tensor, z: Tensor, dtype: torch.dtype, b: Tensor | None = None) -> Tensor:
    """Σ dy z by columns [N] of two [M, N] in a dtype, in which it is multiplied and summed; z less b [N]."""
    total, rows = dy.new_zeros(dy.shape[1], dtype=dtype), _rows_of_chunk(dy)
    for dy_i, z_i in zip(dy.split(rows), z.split(rows), strict=True):
        total += (dy_i.to(dtype) * (z_i if b is None else z_i - b)).sum(0)
    return total


def _rows_of_chunk(matrix: Tensor) -> int:
    entries = _CHUNK.get(matrix.device.type, _CHUNK_ELSEWHERE)
    return max(1, entries // max(1, matrix.shape[1]))
