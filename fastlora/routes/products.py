"""A scaled matrix product, for the routes that multiply by torch."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_product(left: Tensor, right: Tensor, s: float = 1.0) -> Tensor:
    """s times [M, C] times [C, N], as one product: a 16-bit result is scaled before it is rounded.

    An empty result that is added onto costs the host less than `torch.addmm` with an empty scalar.
    """
    if s == 1:
        return torch.mm(left, right)
    return left.new_empty(left.shape[0], right.shape[1]).addmm_(left, right, beta=0, alpha=s)
