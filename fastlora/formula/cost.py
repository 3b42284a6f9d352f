"""The least that a pass of a LoRA layer costs: FLOPs, and bytes read from and written to memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

# p, handed from the forward to the backward pass, is fp32.
_P_BYTES = 4


class Cost(NamedTuple):
    """The cost of one pass.

    Attributes:
        flops: Floating-point operations.
        moved: Bytes read and written, counting each input and each output once.
    """

    flops: int
    moved: int

    def floor_us(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least time in microseconds at these rates: the larger of arithmetic time and memory time."""
        return 1e6 * max(self.flops / flops_per_s, self.moved / bytes_per_s)


class Problem(NamedTuple):
    """Shapes and dtypes of one layer and batch.

    Attributes:
        M: Rows of x.
        K: Columns of x.
        N: Columns of y.
        r: The rank.
        dtype: Of x, W and y.
        adapter_dtype: Of A and B.
    """

    M: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype

    def forward(self) -> Cost:
        """The products x Wᵀ, x Aᵀ and p Bᵀ; x, W, A and B are read, y and p are written."""
        M, K, N, r = self[:4]
        small = self.adapter_dtype.itemsize * r * (K + N) + _P_BYTES * M * r
        return Cost(2 * M * (N * K + r * (K + N)), self._base_bytes() + small)

    def backward(self) -> Cost:
        """The products dy W, dy B and q A for dx, dyᵀ p for dB, qᵀ x for dA.

        dy, x, W, A, B and p are read; dx, dA and dB are written.
        """
        M, K, N, r = self[:4]
        small = 2 * self.adapter_dtype.itemsize * r * (K + N) + _P_BYTES * M * r
        dx = self.dtype.itemsize * M * K
        return Cost(2 * M * (N * K + 2 * r * (K + N)), self._base_bytes() + dx + small)

    def _base_bytes(self) -> int:
        """Bytes of x and W, and of y (forward) or dy (backward)."""
        return self.dtype.itemsize * (self.M * self.K + self.N * self.K + self.M * self.N)
