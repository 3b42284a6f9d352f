"""The dropout mask that a method draws, read back through the method itself."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from bench.methods import Layer, Method
from bench.phases import forward_backward
from tests.testing import Operands

_SEED = 20251001

# The share that is dropped may miss the rate by so many standard deviations of that many fair draws.
_DEVIATIONS = 5


def seeded_run(layer: Layer, ops: Operands) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward from one state of torch's and Python's generators: always the same mask."""
    torch.manual_seed(_SEED)
    random.seed(_SEED)
    return forward_backward(layer, ops)


def read_mask(method: Method, ops: Operands, dropout: float) -> Tensor:
    """The D [M, K] in fp64 of the method's `seeded_run` on operands of these shapes and dtypes.

    It is dx where W is 0 and q A is 1 everywhere: the first rank's row of A is 1, that of Bᵀ is 1 / s in the
    first column of y, the others are 0, and dy is 1.

    Raises:
        AssertionError: If the share of dropped entries is not the rate.
    """
    probe = Operands(
        x=torch.ones_like(ops.x, requires_grad=True),
        W=torch.zeros_like(ops.W),
        b=None if ops.b is None else torch.zeros_like(ops.b),
        A=torch.zeros_like(ops.A),
        B=torch.zeros_like(ops.B),
        s=ops.s,
        dy=torch.ones_like(ops.dy),
    )
    probe.A[0] = 1
    probe.B[0, 0] = 1 / ops.s
    dx = seeded_run(method.build(probe, dropout), probe)[1][0]
    kept = dx > 0.5  # kept entries are at least 1
    dropped = 1 - kept.double().mean().item()
    bound = _DEVIATIONS * math.sqrt(dropout * (1 - dropout) / kept.numel())
    assert abs(dropped - dropout) <= bound, f"dropout: {dropped:.4f} of the entries, not {dropout:g}"
    return kept.double() / (1 - dropout)
