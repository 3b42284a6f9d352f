"""One case: a layer's shape, dtypes and options, and the operands that stand for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tests.testing import Operands, operands


class Case(NamedTuple):
    """One layer and batch: x [M, K], W [N, K], rank r.

    Attributes:
        M: Rows of x.
        K: Columns of x.
        N: Columns of y.
        r: The rank.
        dtype: Of x, W, b and y.
        adapter_dtype: Of A and B.
        dropout: Of the low-rank branch.
        bias: Whether there is a b.
    """

    M: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype
    dropout: float = 0.0
    bias: bool = False

    def operands(self, device: torch.device) -> Operands:
        """Fresh random operands, none of them zero, whose x takes a gradient."""
        ops = operands(
            self.M,
            self.K,
            self.N,
            self.r,
            dtype=self.dtype,
            adapter_dtype=self.adapter_dtype,
            bias=self.bias,
            device=device,
        )
        ops.x.requires_grad_()
        return ops

    @property
    def base_bytes(self) -> int:
        """Of x, W and dy."""
        return self.dtype.itemsize * (self.M * self.K + self.N * self.K + self.M * self.N)

    def labels(self) -> dict[str, Any]:
        """What a result of this case is filed under."""
        return {
            "dtype": dtype_name(self.dtype),
            "adapter_dtype": dtype_name(self.adapter_dtype),
            "shape": {"M": self.M, "K": self.K, "N": self.N, "r": self.r},
            "dropout": self.dropout,
            "bias": self.bias,
        }

    def __str__(self) -> str:
        return f"M={self.M} {self.K}->{self.N} r={self.r} " + ", ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield f"{dtype_name(self.dtype)}, adapters {dtype_name(self.adapter_dtype)}"
        if self.dropout:
            yield f"dropout {self.dropout:g}"
        if self.bias:
            yield "bias"


class Measurement(NamedTuple):
    """What is measured of a case.

    Attributes:
        case: The case.
        methods: Names of the methods that are compared in it.
        modes: Names of the ways to time: "eager" and "graph"; "dry-run" marks times that mean nothing.
        launches: Whether the kernels of a call are counted as well.
        seconds: Rounds are taken for about so long, in each phase and mode, within the setting's bounds.
    """

    case: Case
    methods: tuple[str, ...]
    modes: tuple[str, ...]
    launches: bool = False
    seconds: float = 0.25


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
