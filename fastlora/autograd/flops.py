"""The FLOPs of our operators, for torch's FlopCounterMode, which cannot see inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastlora.autograd import operators  # noqa: F401 - it defines the operators


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator, as FlopCounterMode's `custom_mapping` takes them.

    Example:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(custom_mapping=fastlora.flop_formulas()) as counter:
        ...     model(x).sum().backward()
        >>> counter.get_total_flops()
    """
    return {torch.ops.fastlora.lora_forward: _forward, torch.ops.fastlora.lora_backward: _backward}


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
