"""Matrix products for the routes that multiply by torch: scaled ones, and those with a side of only r."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formula.operands import accumulation_dtype, outranges_fp16

# Rows of x converted at a time if the adapters' dtype is wider. This bounds the temporary: an fp32 block of
# 16,384 columns is 32 MiB, however many rows x has.
_CHUNK_ROWS = 512
# A product of so many rows whose result has fewer columns than this is faster as the transpose of the other
# order: 3 times at 512 rows and ranks 4 and 8, on an AMD EPYC, fp32, N of 1024 and 4096.
_MANY_ROWS = 64
_NARROW = 16
# From so many rows on, so few columns of a right side are worth a copy that lies by columns: 1.1 to 5 times
# as fast, measured likewise.
_ROWS_WORTH_A_COPY = 128
_FEW_COLUMNS = 8
ACCUMULATED = (torch.float32, torch.float64)


def scaled_product(left: Tensor, right: Tensor, s: float) -> Tensor:
    """s times [M, C] times [C, N], as one product: a 16-bit result is scaled before it is rounded.

    An empty result that is added onto costs the host less than `torch.addmm` with an empty scalar.
    """
    if s == 1:
        return torch.mm(left, right)
    return left.new_empty(left.shape[0], right.shape[1]).addmm_(left, right, beta=0, alpha=s)


def shrink(rows: Tensor, S: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, r] -> [M, r], a new tensor in the accumulation dtype."""
    S = _by_columns(rows, S)
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


def grow(
    small: Tensor,
    S: Tensor,
    dtype: torch.dtype,
    s: float = 1.0,
    b: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """s times p or q [M, r] times [r, C], plus b [C] -> [M, C] in the dtype of x: `out`, or a new tensor.

    Where A and B may hold what fp16 cannot, it is multiplied in fp32 and rounded afterwards.
    """
    if not outranges_fp16(S.dtype, dtype):
        small, S = small.to(dtype), S.to(dtype)
        if b is not None:
            return torch.addmm(b, small, S, alpha=s, out=out)
        return scaled_product(small, S, s) if out is None else out.addmm_(small, S, beta=0, alpha=s)
    if out is None:
        out = small.new_empty(small.shape[0], S.shape[1], dtype=dtype)
    for chunk, rows in zip(small.split(_CHUNK_ROWS), out.split(_CHUNK_ROWS), strict=True):
        rows.copy_(scaled_product(chunk, S.to(small.dtype), s))
    return out if b is None else out.add_(b)


def gram(left: Tensor, right: Tensor, adapter: torch.dtype, s: float = 1.0) -> Tensor:
    """s times [M, C]ᵀ times [M, D] -> [C, D] in the adapter's dtype.

    One of the two matrices is x or dy, the other p or q, whose dtype may be wider.
    """
    if _takes_other_order(left, right):
        return gram(right, left, adapter, s).t().contiguous()
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


def shrink_and_gram(rows: Tensor, S: Tensor, small: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """(shrink(rows, S, s), gram(rows, small, S.dtype, s)); rows that must be converted are so only once."""
    if not _is_wider(S.dtype, rows.dtype):
        return shrink(rows, S, s), gram(rows, small, S.dtype, s)
    accumulate = accumulation_dtype(rows.dtype)
    wide_S, small = _by_columns(rows, S.to(accumulate)), small.to(accumulate)
    product = rows.new_empty(rows.shape[0], S.shape[1], dtype=accumulate)
    transposed = _takes_other_order(rows, small)
    sides = (small, rows) if transposed else (rows, small)
    total = rows.new_zeros(*(side.shape[1] for side in sides), dtype=accumulate)
    chunks = (each.split(_CHUNK_ROWS) for each in (rows, product, small))
    for chunk, out, below in zip(*chunks, strict=True):
        wide = chunk.to(accumulate)
        torch.addmm(out, wide, wide_S, beta=0, alpha=s, out=out)
        left, right = (below, wide) if transposed else (wide, below)
        total.addmm_(left.t(), right, alpha=s)
    return product, (total.t().contiguous() if transposed else total).to(S.dtype)


def _takes_other_order(left: Tensor, right: Tensor) -> bool:
    """Whether leftᵀ right is faster as the transpose of rightᵀ left."""
    return left.is_cpu and left.shape[0] >= _MANY_ROWS and 1 < right.shape[1] < _NARROW < left.shape[1]


def _by_columns(rows: Tensor, S: Tensor) -> Tensor:
    """S, or a copy that lies by columns, where rows S is faster so."""
    few = rows.is_cpu and rows.shape[0] >= _ROWS_WORTH_A_COPY and 1 < S.shape[1] <= _FEW_COLUMNS
    return S.t().contiguous().t() if few else S


def _is_wider(adapter: torch.dtype, x: torch.dtype) -> bool:
    return adapter.itemsize > x.itemsize or outranges_fp16(adapter, x)


def without_gaps(matrix: Tensor) -> Tensor:
    """The matrix, or a copy if there are gaps between its rows or columns.

    On one CPU, torch's bf16 product of 50 and of 150 rows read what lay in the gaps; NaN there spoiled it.
    """
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
