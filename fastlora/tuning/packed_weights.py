"""Packed W to tune with, of random values, made without the libraries that pack such layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from fastlora.formats.bnb_int8 import BnbInt8
from fastlora.formats.registry import FORMATS
from fastlora.formula.cost import Problem
from fastlora.formula.operands import BaseWeight
from fastlora.routes.few_rows import takes

# Formats by the names that a person knows them by.
BASES: Final = {"nf4": "bnb-4bit", "int8": "bnb-int8"}

# The quantiles of a normal distribution between -1 and 1, of Dettmers et al., "QLoRA", arXiv 2305.14314.
_NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BLOCK: Final = 64
_BLOCK2: Final = 256


def packed_weight(
    format: str, N: int, K: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> BaseWeight:
    """A random W [N, K] in a packed format, with entries of about K^-0.5.

    Args:
        format: One of the values of `BASES`.
        N: Columns of y.
        K: Columns of x.
        dtype: Of its values.
        device: Where it lies; "meta" for its shapes alone.
    """
    return _MAKERS[format](N, K, dtype, torch.device(device))


def unpacks_inside(problem: Problem) -> bool:
    """Whether the forward kernel that unpacks W inside the product takes a problem."""
    if problem.base not in _MAKERS:
        return False
    base = packed_weight(problem.base, problem.N, problem.K, problem.dtype, "meta")
    return takes(base, problem.M)


def _nf4(N: int, K: int, dtype: torch.dtype, device: torch.device) -> BaseWeight:
    """NF4 with nested scales, as QLoRA is trained."""
    blocks, scale = -(-N * K // _BLOCK), 2.0 * max(K, 1) ** -0.5
    tensors = (
        _bytes(-(-N * K // 2), device),
        torch.tensor(_NF4, device=device),
        _bytes(blocks, device),
        torch.linspace(-1, 1, 256, device=device),
        torch.full((-(-blocks // _BLOCK2),), scale / 4, device=device),
        torch.tensor(scale, device=device),
    )
    return BaseWeight("bnb-4bit", tensors, N, K, dtype, (_BLOCK, _BLOCK2, 0))


def _int8(N: int, K: int, dtype: torch.dtype, device: torch.device) -> BaseWeight:
    """A scale for each row."""
    q = torch.randint(-127, 128, (N, K), dtype=torch.int8, device=device)
    scales = (1 + torch.rand(N, device=device)) * max(K, 1) ** -0.5
    format = FORMATS["bnb-int8"]
    assert isinstance(format, BnbInt8)
    return format.scaled_base(q, scales, (1, K), dtype)


def _bytes(count: int, device: torch.device) -> Tensor:
    return torch.randint(256, (count,), dtype=torch.uint8, device=device)


_MAKERS: Final[dict[str, Callable[[int, int, torch.dtype, torch.device], BaseWeight]]] = {
    "bnb-4bit": _nf4,
    "bnb-int8": _int8,
}
