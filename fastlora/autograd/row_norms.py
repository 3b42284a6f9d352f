"""The norms of the rows of W + s B A, on whatever route they take; to a compiler, one operator."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from fastlora.autograd.calls import needs_operator
from fastlora.formula.operands import accumulation_dtype
from fastlora.operator_library import make_operator
from fastlora.routes import dora
from fastlora.routes.route import route_on


def _computed(W: Tensor, A: Tensor, B: Tensor, s: float, backend: str | None = None) -> Tensor:
    if W.numel() and route_on(W.device, W.dtype, backend).is_fused:
        from fastlora.routes import fused_dora

        return fused_dora.row_norms(W, A, B, s)
    return dora.row_norms(W, A, B, s)


def _fake(W: Tensor, A: Tensor, B: Tensor, s: float, backend: str | None = None) -> Tensor:
    return W.new_empty(W.shape[0], dtype=accumulation_dtype(W.dtype))


_operator = make_operator(
    "row_norms(Tensor W, Tensor A, Tensor B, float s, str? backend=None) -> Tensor",
    _computed,
    _fake,
)


def row_norms(W: Tensor, A: Tensor, B: Tensor, s: float, setting: str) -> Tensor:
    """‖W + s B A‖ by rows, of W [N, K], A [r, K] and B [N, r]: [N], in the dtype of sums."""
    if needs_operator(W):
        return cast(Tensor, _operator(W, A, B, s, setting))
    return _computed(W, A, B, s, setting)
