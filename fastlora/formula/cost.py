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
        base: The format that the layer keeps W in, "plain" or a packed one; the cost of unpacking is not
            counted here.
    """

    M: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype
    base: str = "plain"

    def forward(self) -> Cost:
        """The products x Wᵀ, x Aᵀ and p Bᵀ; x, W, A and B are read, y and p are written."""
        M, K, N, r = self[:4]
        small = self.adapter_dtype.itemsize * r * (K + N) + _P_BYTES * M * r
        return Cost(2 * M * (N * K + r * (K + N)), self.base_bytes() + small)

    def backward(self, *, needs_dx: bool = True) -> Cost:
        """The products dy W, dy B and q A for dx, dyᵀ p for dB, qᵀ x for dA.

        dy, x, W, A, B and p are read; dx, dA and dB are written. Without dx, W and A are not read; without an
        update (r = 0) x is not.
        """
        M, K, N, r = self[:4]
        dx = N * K + r * K if needs_dx else 0
        base = M * N + (M * K if r else 0) + (N * K + M * K if needs_dx else 0)
        small = r * (K + 2 * N) + (r * K if needs_dx else 0)
        moved = self.dtype.itemsize * base + self.adapter_dtype.itemsize * small + _P_BYTES * M * r
        return Cost(2 * M * (dx + r * (K + 2 * N)), moved)

    def base_bytes(self) -> int:
        """Bytes of x and W, and of y (forward) or dy (backward)."""
        return self.dtype.itemsize * (self.M * self.K + self.N * self.K + self.M * self.N)
