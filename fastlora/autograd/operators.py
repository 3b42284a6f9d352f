"""The torch operators `torch.ops.fastlora.lora_forward`, `lora_backward` and `dequantize`.

A compiler sees each pass of a layer as one of these. They have flat signatures, so only here are the operands
spelled out. An operator decides its code path by its operands and by `backend`, a backend setting; None means
the current one; what was measured counts by `unpacked_from` too (see `BaseWeight`). A backward is given the
setting of its forward, because the code paths draw different masks.
`triton` is imported only when a kernel first runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlora.formula.operands import EVERYTHING, BaseWeight, Needs, Operands, accumulation_dtype, plain
from fastlora.operator_library import make_operator, without_autocast
from fastlora.routes.decide import decide
from fastlora.routes.dequantize import dequantize
from fastlora.routes.passes import passes_of


def _forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    backend: str | None = None,
    unpacked_from: str = "plain",
) -> tuple[Tensor, Tensor]:
    o = Operands(x, plain(W, unpacked_from), b, A, B, s, dropout, seed)
    return passes_of(decide(o, EVERYTHING, backend).forward.name, x.is_cpu).forward(o)


def _forward_fake(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    M, N, r = x.shape[0], W.shape[0], A.shape[0]
    return x.new_empty(M, N), x.new_empty(M, r, dtype=accumulation_dtype(x.dtype))


def _backward(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    need_dx: bool,
    need_dA: bool,
    need_dB: bool,
    backend: str | None = None,
    unpacked_from: str = "plain",
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dA and dB; one that is not needed is an empty tensor of shape [0]."""
    o = Operands(x, plain(W, unpacked_from), None, A, B, s, dropout, seed)
    needs = Needs(need_dx, need_dA, need_dB)
    passes = passes_of(decide(o, needs, backend).backward.name, x.is_cpu)
    found = passes.backward(o, dy, p, needs)
    dx, dA, dB = (
        like.new_empty(0) if one is None else one for one, like in zip(found, (x, A, B), strict=True)
    )
    return dx, dA, dB


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float,
    seed: Tensor | None,
    need_dx: bool,
    need_dA: bool,
    need_dB: bool,
    backend: str | None = None,
    unpacked_from: str = "plain",
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        A.new_empty(A.shape if need_dA else (0,)),
        B.new_empty(B.shape if need_dB else (0,)),
    )


def _dequantize(
    packed: list[Tensor],
    format: str,
    N: int,
    K: int,
    statics: list[int],
    dtype: torch.dtype,
    after: Tensor | None = None,
) -> Tensor:
    return dequantize(BaseWeight(format, tuple(packed), N, K, dtype, tuple(statics)))


def _dequantize_fake(
    packed: list[Tensor], format: str, N: int, K: int, statics: list[int], dtype: torch.dtype, *_: Any
) -> Tensor:
    return packed[0].new_empty(N, K, dtype=dtype)


def _forward_under_autocast(kind: str, operator: Any) -> Any:
    """The forward operator, with x, W and b converted to autocast's dtype, as nn.Linear does it.

    An exported program calls the operator itself. The backward operator converts nothing.
    """
    run = without_autocast(kind, operator)

    def forward(x: Tensor, W: Tensor, b: Tensor | None, *rest: Any) -> Any:
        if x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x, W, b = x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
        return run(x, W, b, *rest)

    return forward


lora_forward = make_operator(
    "lora_forward(Tensor x, Tensor W, Tensor? b, Tensor A, Tensor B, float s, float dropout, Tensor? seed, "
    "str? backend=None, str unpacked_from='plain') -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    under_autocast=_forward_under_autocast,
)
lora_backward = make_operator(
    "lora_backward(Tensor dy, Tensor x, Tensor W, Tensor A, Tensor B, Tensor p, float s, "
    "float dropout, Tensor? seed, bool need_dx, bool need_dA, bool need_dB, str? backend=None, "
    "str unpacked_from='plain') -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    under_autocast=without_autocast,
)
# `after` is not read. A backward pass gives dy: else a compiler would see the same call as in the forward
# pass, make one of the two, and keep W between them.
unpack = make_operator(
    "dequantize(Tensor[] packed, str format, int N, int K, int[] statics, ScalarType dtype, "
    "Tensor? after=None) -> Tensor",
    _dequantize,
    _dequantize_fake,
)
