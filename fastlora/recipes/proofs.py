"""How a job proves what LoRA promises about the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor, to compare with later."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def is_sum(weight: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> bool:
    """Whether `weight` is W + s B A up to its rounding.

    The sum is computed anew in fp64. Each entry takes r products and sums, one scaling and one addition, so
    its error is at most (r + 2) roundings of |W| + |s| |B| |A| (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1). Twice that is allowed, since the sum in fp64 is rounded too.
    """
    A, B, whole = A.double(), B.double(), W.double()
    exact, size = whole + s * (B @ A), whole.abs() + abs(s) * (B.abs() @ A.abs())
    error = (weight.double() - exact).abs()
    return bool((error <= (A.shape[0] + 2) * torch.finfo(weight.dtype).eps * size).all())
