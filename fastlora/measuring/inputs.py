"""Random inputs of a LoRA layer's passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fastlora.formula.operands import BaseWeight, Operands, plain

SCALE: Final = 0.75


@dataclass
class Inputs:
    """x [M, K], W [N, K], b [N] or None, A [r, K], B [N, r], s, and a gradient dy [M, N]; B is never zero.

    `packed` is W as a packed format has it, or None; W then is what it unpacks to.
    """

    x: Tensor
    W: Tensor
    b: Tensor | None
    A: Tensor
    B: Tensor
    s: float
    dy: Tensor
    packed: BaseWeight | None = None

    def call(self, dropout: float = 0.0, seed: Tensor | None = None) -> Operands:
        """The bundle that the passes take."""
        return Operands(self.x, plain(self.W), self.b, self.A, self.B, self.s, dropout, seed)

    def to(self, dtype: torch.dtype) -> Inputs:
        """Every tensor converted."""
        x, W, A, B, dy = (tensor.to(dtype) for tensor in (self.x, self.W, self.A, self.B, self.dy))
        return Inputs(x, W, None if self.b is None else self.b.to(dtype), A, B, self.s, dy)


def random_inputs(
    M: int,
    K: int,
    N: int,
    r: int,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_dtype: torch.dtype | None = None,
    bias: bool = True,
    s: float = SCALE,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Scaled so that the base product and the update weigh about the same.

    Args:
        M: Rows of x.
        K: Columns of x.
        N: Columns of y.
        r: The rank.
        dtype: Of x, W, b and dy.
        adapter_dtype: Of A and B; None means `dtype`.
        bias: Whether there is a b.
        s: The scale of the update.
        device: Where they lie.
    """

    def normal(*shape: int, scale: float, kind: torch.dtype) -> Tensor:
        return (torch.randn(shape, device=device, dtype=torch.float32) * scale).to(kind)

    adapter_dtype = adapter_dtype or dtype
    return Inputs(
        x=normal(M, K, scale=1.0, kind=dtype),
        W=normal(N, K, scale=max(K, 1) ** -0.5, kind=dtype),
        b=normal(N, scale=1.0, kind=dtype) if bias else None,
        A=normal(r, K, scale=max(K, 1) ** -0.5, kind=adapter_dtype),
        B=normal(N, r, scale=r**-0.5, kind=adapter_dtype),
        s=s,
        dy=normal(M, N, scale=1.0, kind=dtype),
    )
