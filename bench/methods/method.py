"""What a method is: a way to compute a linear layer that trains, built on given operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases import Case
from fastlora.reference import unfused
from tests.testing import Operands


class Formula(Protocol):
    """What a method must compute, in plain torch ops."""

    def __call__(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        D: Tensor | None = None,
        /,
    ) -> Tensor:
        """Y; with a dropout mask D [M, K] of 0 and 1 / (1 - dropout) where there is one."""
        ...


class Layer(NamedTuple):
    """A method at work on one set of operands.

    Attributes:
        apply: x [M, K] -> y [M, N].
        trained: The tensors that take a gradient besides x.
    """

    apply: Callable[[Tensor], Tensor]
    trained: tuple[Tensor, ...]


class Build(Protocol):
    """Makes a layer that shares the operands' memory."""

    def __call__(self, ops: Operands, dropout: float = 0.0) -> Layer:
        """The layer, in training, with that LoRA dropout."""
        ...


def _present(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _takes_all(case: Case) -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """A way to compute the layer.

    Attributes:
        name: In tables and results.
        about: What it does, in a line.
        formula: What it must compute; it is held to this in fp64.
        trained: Names of the operands that `Layer.trained` stands for, in its order.
        build: Makes the layer.
        why_absent: Of a device and dtype: why the method cannot run there, None where it can.
        why_not: Of a case: why the method is left out of it, None where it takes it.
        drops: Whether a case's dropout changes what it computes.
        external: Whether the code is another library's. What fails in it is a reason to leave it out, not a
            failure of the run.
    """

    name: str
    about: str
    formula: Formula
    trained: tuple[str, ...]
    build: Build
    why_absent: Callable[[torch.device, torch.dtype], str | None] = _present
    why_not: Callable[[Case], str | None] = _takes_all
    drops: bool = True
    external: bool = False


def plain(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, D: Tensor | None = None, /
) -> Tensor:
    """x Wᵀ + b: the formula of the methods that have no adapter, and so no dropout."""
    return F.linear(x, W, b)


def adapted(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float, D: Tensor | None = None, /
) -> Tensor:
    """x Wᵀ + s (D * x) Aᵀ Bᵀ + b: the formula of the methods that have one."""
    if D is None:
        return unfused(x, W, b, A, B, s)
    update = F.linear(F.linear((x * D.to(x.dtype)).to(A.dtype), A), B) * s
    return F.linear(x, W, b) + update.to(x.dtype)


def linear_with(W: Tensor, b: Tensor | None = None) -> nn.Linear:
    """An nn.Linear whose weight lies in W's memory and takes a gradient; its bias in b's, frozen."""
    N, K = W.shape
    # On "meta" no weight is allocated and initialized only to be replaced.
    linear = nn.Linear(K, N, bias=b is not None, device="meta", dtype=W.dtype)
    linear.weight = nn.Parameter(W.detach())
    if b is not None:
        linear.bias = nn.Parameter(b.detach(), requires_grad=False)
    return linear
