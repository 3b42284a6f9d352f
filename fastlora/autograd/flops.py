"""The FLOPs of our operators, for torch's FlopCounterMode, which cannot see inside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastlora.autograd import grouped_operators, operators  # noqa: F401 - they define the operators

Shapes = Sequence[Any]  # a torch.Size for each member, or None


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator, as FlopCounterMode's `custom_mapping` takes them.

    Example:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(custom_mapping=fastlora.flop_formulas()) as counter:
        ...     model(x).sum().backward()
        >>> counter.get_total_flops()
    """
    ours = torch.ops.fastlora
    return {
        ours.lora_forward: _forward,
        ours.lora_backward: _backward,
        ours.lora_group_forward: _group_forward,
        ours.lora_group_backward: _group_backward,
    }


def _forward(x: torch.Size, W: torch.Size, b: torch.Size | None, A: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of x Wᵀ, x Aᵀ and p Bᵀ."""
    (M, K), N, r = x, W[0], A[0]
    return 2 * M * (N * K + r * (K + N))


def _backward(
    dy: torch.Size,
    x: torch.Size,
    W: torch.Size,
    A: torch.Size,
    B: torch.Size,
    p: torch.Size,
    s: float,
    dropout: float,
    seed: torch.Size | None,
    need_dx: bool,
    need_dA: bool,
    need_dB: bool,
    *_: Any,
    **__: Any,
) -> int:
    """FLOPs of the gradients that are needed: dy W and q A for dx, qᵀ x for dA, dyᵀ p for dB; dy B for q."""
    (M, K), N, r = x, W[0], A[0]
    wanted = need_dx * (N * K + r * K) + need_dA * r * K + need_dB * r * N + (need_dx or need_dA) * r * N
    return 2 * M * wanted


_NO_RANK = torch.Size((0, 0))


def _group_forward(x: torch.Size, W: Shapes, b: Shapes, A: Shapes, *_: Any, **__: Any) -> int:
    """Those of each member."""
    return sum(_forward(x, one, None, factor or _NO_RANK) for one, factor in zip(W, A, strict=True))


def _group_backward(
    dy: Shapes,
    p: Shapes,
    x: torch.Size,
    W: Shapes,
    b: Shapes,
    A: Shapes,
    B: Shapes,
    s: Any,
    dropout: Any,
    seeds: Any,
    need_dx: bool,
    need_dA: list[bool],
    need_dB: list[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Those of each member whose y was used."""
    total = 0
    for dy_i, W_i, A_i, B_i, for_A, for_B in zip(dy, W, A, B, need_dA, need_dB, strict=True):
        if dy_i is not None and W_i is not None:
            A_i, B_i = A_i or _NO_RANK, B_i or _NO_RANK
            total += _backward(dy_i, x, W_i, A_i, B_i, dy_i, 1.0, 0.0, None, need_dx, for_A, for_B)
    return total
