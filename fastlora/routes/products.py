"""Matrix products for the routes that multiply by torch: scaled ones, and those with a side of only r."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formula.operands import accumulation_dtype, outranges_fp16

# Rows of x converted at a time if the adapters' dtype is wider. This bounds the temporary: an fp32 block of
# 16,384 columns is 32 MiB, however many rows x has.
_CHUNK_ROWS = 512
ACCUMULATED = (torch.float32, torch.float64)


def scaled_product(left: Tensor, right: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, N], as one product: a 16-bit result is scaled before it is rounded.

    An empty result that is added onto costs the host less than `torch.addmm` with an empty scalar.
    """
    if s == 1:
        return torch.mm(left, right)
    return left.new_empty(left.shape[0], right.shape[1]).addmm_(left, right, beta=0, alpha=s)


def shrink(rows: Tensor, S: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, r] -> [M, r], a new tensor in the accumulation dtype."""
    if rows.dtype == S.dtype:
        product = scaled_product(rows, S, s)
        return product if rows.dtype in ACCUMULATED else product.to(torch.float32)
    accumulate = accumulation_dtype(rows.dtype)
    if not _is_wider(S.dtype, rows.dtype):
        return scaled_product(rows, S.to(rows.dtype), s).to(accumulate)
    product = rows.new_empty(rows.shape[0], S.shape[1], dtype=accumulate)
    for chunk, out in zip(rows.split(_CHUNK_ROWS), product.split(_CHUNK_ROWS), strict=True):
        torch.addmm(out, chunk.to(accumulate), S.to(accumulate), beta=0, alpha=s, out=out)
    return product


def grow(small: Tensor, S: Tensor, dtype: torch.dtype, s: float = 1.0) -> Tensor:
    """s times fp32 [M, r] times [r, C] -> [M, C], multiplied in fp32 and rounded to the dtype."""
    product = small.new_empty(small.shape[0], S.shape[1], dtype=dtype)
    for chunk, out in zip(small.split(_CHUNK_ROWS), product.split(_CHUNK_ROWS), strict=True):
        out.copy_(scaled_product(chunk, S.to(small.dtype), s))
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
    return adapter.itemsize > x.itemsize or outranges_fp16(adapter, x)
