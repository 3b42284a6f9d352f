"""What a method is: a way to compute a linear layer that trains, built on given operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.testing import Operands

Formula = Callable[[Tensor, Tensor, "Tensor | None", Tensor, Tensor, float], Tensor]


class Layer(NamedTuple):
    """A method at work on one set of operands.

    Attributes:
        apply: x [M, K] -> y [M, N].
        trained: The tensors that take a gradient besides x.
    """

    apply: Callable[[Tensor], Tensor]
    trained: tuple[Tensor, ...]


def _present(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """A way to compute the layer.

    Attributes:
        name: In tables and results.
        about: What it does, in a line.
        formula: What it must compute, in plain torch ops; it is held to this in fp64.
        trained: Names of the operands that `Layer.trained` stands for, in its order.
        build: Makes the layer; it shares the operands' memory.
        why_absent: Of a device and dtype: why the method cannot run there, None where it can.
    """

    name: str
    about: str
    formula: Formula
    trained: tuple[str, ...]
    build: Callable[[Operands], Layer]
    why_absent: Callable[[torch.device, torch.dtype], str | None] = _present


def plain(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """x Wᵀ + b: the formula of the methods that have no adapter."""
    return F.linear(x, W, b)


def linear_with(W: Tensor) -> nn.Linear:
    """An nn.Linear whose weight lies in W's memory; it takes a gradient."""
    N, K = W.shape
    # On "meta" no weight is allocated and initialized only to be replaced.
    linear = nn.Linear(K, N, bias=False, device="meta", dtype=W.dtype)
    linear.weight = nn.Parameter(W.detach())
    return linear
